"""The worker's routes without a supervisor: documented, bounded, and predicting while the disk is full."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.agent import pipe
from sanderling.agent.errors import RequestError
from sanderling.agent.http import Request
from sanderling.agent.worker import ROUTES, Remembered, Worker
from sanderling.engine.models import mlp

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def worker(tmp_path: Path, told: list[Any]) -> Worker:
    start = pipe.Start("m", str(tmp_path / "samples.db"), 10**6, 0.2, 60.0)
    worker = Worker(start, told.append)
    (tmp_path / "m.onnx").write_bytes(mlp(3, [8], 4))
    asyncio.run(worker.serve(pipe.Serve(str(tmp_path / "m.onnx"), 7, "fleet")))
    return worker


def ask(worker: Worker, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    request = Request(method, path, json.dumps(body).encode() if body is not None else b"")
    try:
        response = asyncio.run(worker.handle(request))
    except RequestError as error:
        return error.status, {"error": str(error)}
    return response.status, json.loads(response.body)


def tensor(rows: int) -> dict[str, Any]:
    return {"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": [0.5] * (3 * rows)}


def test_every_route_is_documented() -> None:
    page = (ROOT / "docs/reference/agent.md").read_text()
    rows = re.findall(r"^\| `(GET|POST) (/[^`]*)` \|", page, re.M)
    commands = re.findall(r"^\$S http://agent(/\S+)( -d)?", page, re.M)
    assert len(rows) == len(ROUTES)
    for method, pattern, _ in ROUTES:
        shown = [path for verb, path in rows if verb == method and pattern.fullmatch(path.replace("{model}", "m"))]
        assert len(shown) == 1, f"{method} {pattern.pattern}"
        assert any(pattern.fullmatch(path) and bool(data) == (method == "POST") for path, data in commands)


def test_model_predictions_and_feedback(worker: Worker, told: list[Any]) -> None:
    assert told == [pipe.Serving(7, "fleet")]
    code, about = ask(worker, "GET", "/v2/models/m")
    assert (code, about["versions"], about["inputs"]) == (
        200, ["7"], [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    )  # fmt: skip
    code, found = ask(worker, "POST", "/v2/models/m/infer", {"id": "p1", "inputs": [tensor(2)]})
    assert (code, found["id"], found["model_version"], found["parameters"]) == (200, "p1", "7", {"model": "fleet"})
    assert found["outputs"][0]["shape"] == [2, 4]
    assert ask(worker, "POST", "/v2/models/m/feedback", {"id": "p1", "labels": [1, 2]})[1]["accepted"] == 2
    assert ask(worker, "POST", "/v2/models/m/feedback", {"inputs": [tensor(1)], "label": 3})[1]["accepted"] == 1
    assert told[1:] == [pipe.Labelled(2), pipe.Labelled(1)]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/v2/models/other", None, 404),
        ("DELETE", "/v2/models/m", None, 405),
        ("GET", "/v2/models/m/infer", None, 405),
        ("POST", "/v2/models/m/infer", {}, 400),
        ("POST", "/v2/models/m/infer", {"inputs": []}, 400),
        ("POST", "/v2/models/m/infer", {"inputs": [tensor(1)], "outputs": [{"name": "nothing"}]}, 400),
        ("POST", "/v2/models/m/feedback", {"id": "unknown", "label": 1}, 404),
        ("POST", "/v2/models/m/feedback", {"label": 1}, 400),
        ("POST", "/v2/models/m/feedback", {"inputs": [tensor(1)], "label": 4}, 400),
        ("POST", "/v2/models/m/feedback", {"inputs": [tensor(1)], "label": 1, "labels": [1]}, 400),
        ("POST", "/v2/models/m/feedback", {"inputs": [tensor(2)], "labels": [1]}, 400),
        ("POST", "/v2/models/m/feedback", {"inputs": [tensor(1)], "label": -1}, 400),
    ],
)
def test_refusals(worker: Worker, method: str, path: str, body: Any, status: int) -> None:
    code, found = ask(worker, method, path, body)
    assert code == status
    assert found["error"]


def test_a_model_that_does_not_load_changes_nothing(worker: Worker, told: list[Any], tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    asyncio.run(worker.serve(pipe.Serve(str(tmp_path / "bad.onnx"), 8, "personal")))
    assert isinstance(told[-1], pipe.CannotServe)
    assert ask(worker, "POST", "/v2/models/m/infer", {"inputs": [tensor(1)]})[1]["model_version"] == "7"


def test_full_disk_refuses_feedback_and_predicts_on(worker: Worker, told: list[Any]) -> None:
    database = worker._store._db
    pages = database.row("PRAGMA page_count")[0]
    database.run(f"PRAGMA max_page_count = {pages}")
    code, found = ask(worker, "POST", "/v2/models/m/feedback", {"inputs": [tensor(2000)], "labels": [1] * 2000})
    assert (code, "disk is full" in found["error"]) == (507, True)
    assert isinstance(told[-1], pipe.StorageTrouble)
    assert worker._store.counts().seen == 0
    assert ask(worker, "POST", "/v2/models/m/infer", {"inputs": [tensor(1)]})[0] == 200
    database.run(f"PRAGMA max_page_count = {pages + 10_000}")
    assert ask(worker, "POST", "/v2/models/m/feedback", {"inputs": [tensor(2000)], "labels": [1] * 2000})[0] == 200


def test_remembered_predictions_are_bounded() -> None:
    remembered = Remembered(count=3, size=1000)
    for number in range(5):
        remembered.keep(str(number), {"x": np.zeros(10)}, [0])
    assert [remembered.find(str(n)) is not None for n in range(5)] == [False, False, True, True, True]
    remembered.keep("large", {"x": np.zeros(120)}, [0])
    assert remembered.find("4") is None
    assert remembered.find("large") is not None
    remembered.keep("too large", {"x": np.zeros(200)}, [0])
    assert remembered.find("too large") is None
    remembered.keep("after", {"x": np.zeros(10)}, [0])
    assert remembered.find("after") is not None
