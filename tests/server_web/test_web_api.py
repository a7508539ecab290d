"""The REST API: every address, who may change what, and errors in one shape."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.routing import Mount, Route

from sanderling.engine.models import mlp
from sanderling.server.errors import StorageError
from sanderling.server.service import Service
from sanderling.server.web.answers import HEADERS
from sanderling.server.web.api import create_app
from tests.support.web import Api, add_delta, add_device, add_release, add_report, make_service

CHANGING = [
    ("PUT", "/api/models/wrist/files/model.onnx"),
    ("POST", "/api/models/wrist/releases"),
    ("POST", "/api/models/wrist/rollback"),
    ("POST", "/api/token"),
]


def refusal(answer: Any, status: int) -> dict[str, str]:
    """The error in an answer, which must have this status and the one shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"what", "remedy"}
    error: dict[str, str] = body["error"]
    assert error["what"]
    return error


def arrays(**given: Any) -> bytes:
    """An .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **given)
    return buffer.getvalue()


def test_a_new_server_answers_every_question(api: Api) -> None:
    status = api.get("/api/status")
    assert status["fleet"] == "wrists" and status["devices"] == {"total": 0, "online": 0, "silent": []}
    assert status["accuracy"]["now"] is None and status["accuracy"]["before"] is None
    for path in ("devices", "models", "events", "jobs", "audit"):
        assert api.get(f"/api/{path}") == []
    assert api.get("/api/history")["devices"] == {}
    assert api.get("/healthz") == {"ok": True, "broker": False}


def test_push_look_download_and_roll_back(api: Api) -> None:
    first, second = mlp(4, [8], 3, seed=1), mlp(4, [8], 3, seed=2)
    proxy = arrays(x=np.zeros((12, 4), np.float32), y=np.arange(12) % 3)
    for name, data in (("model.onnx", first), ("proxy.npz", proxy)):
        answer = api.ask("PUT", f"/api/models/wrist/files/{name}", content=data)
        assert answer.status_code == 201, answer.text
        assert answer.json()["length"] == len(data)
    answer = api.ask("POST", "/api/models/wrist/releases", json={"labels": ["a", "b", "c"], "notes": {"lab": 4}})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == "/api/models/wrist/versions/1"
    assert answer.json()["metrics"]["trainable"] is True
    assert api.ask("PUT", "/api/models/wrist/files/model.onnx", content=second).status_code == 201
    assert set(api.get("/api/models/wrist")["staged"]) == {"model.onnx"}
    assert api.ask("POST", "/api/models/wrist/releases").json()["version"] == 2
    answer = api.ask("POST", "/api/models/wrist/rollback", json={"to_version": 1})
    assert answer.status_code == 201 and answer.json()["version"] == 3

    newest = api.get("/api/models/wrist/releases")
    assert [(r["version"], r["source"]) for r in newest] == [(3, "rollback"), (2, "push"), (1, "push")]
    assert api.get("/api/models/wrist/versions/1")["notes"] == {"lab": 4}
    for version, expected in ((1, first), (2, second), (3, first)):
        answer = api.ask("GET", f"/api/models/wrist/versions/{version}/model.onnx", token=None)
        assert answer.content == expected
        assert answer.headers["content-disposition"] == 'attachment; filename="model.onnx"'
    assert [line["action"] for line in api.get("/api/audit")].count("release") == 3


def test_a_model_that_is_none_is_refused_with_the_reason(api: Api) -> None:
    assert api.ask("PUT", "/api/models/wrist/files/model.onnx", content=b"not a model").status_code == 201
    assert "model" in refusal(api.ask("POST", "/api/models/wrist/releases"), 400)["what"]
    assert api.get("/api/models") == []


@pytest.mark.parametrize(("method", "path"), CHANGING)
def test_changes_need_the_token(api: Api, method: str, path: str) -> None:
    for token in (None, "wrong", api.service.token + "x", api.service.token[:-1], "Ünicode".encode().decode("latin-1")):
        answer = api.ask(method, path, token=token, content=b"{}")
        assert "token" in refusal(answer, 401)["what"]
        assert answer.headers["www-authenticate"].startswith("Bearer")
    answer = api.ask(method, path, token=None, headers={"Authorization": f"Basic {api.service.token}"})
    refusal(answer, 401)
    assert api.service.store.staged("wrist") == {}


def test_every_address_that_changes_something_is_in_that_list(service: Service) -> None:
    reading = {"GET", "HEAD"}
    routes = [r for r in create_app(service).routes if isinstance(r, Route) and set(r.methods or ()) - reading]
    named = [(re.sub(r"\{model\}", "wrist", r.path).replace("{file}", "model.onnx"), r.methods) for r in routes]
    assert sorted((m, path) for path, methods in named for m in methods or ()) == sorted(CHANGING)


def test_what_is_not_there(api: Api) -> None:
    for path in (
        "/api/devices/nobody", "/api/models/none", "/api/models/none/releases", "/api/models/none/versions/1",
        "/api/models/none/versions/1/model.onnx", "/api/nothing", "/nothing.html", "/../server.py",
    ):  # fmt: skip
        refusal(api.ask("GET", path), 404)
    refusal(api.ask("DELETE", "/api/status"), 405)
    refusal(api.ask("POST", "/api/models/none/rollback", json={"to_version": 1}), 404)
    add_release(api.service)
    refusal(api.ask("GET", "/api/models/wrist/versions/1/release.key"), 404)
    refusal(api.ask("GET", "/api/models/wrist/versions/1/..%2f..%2fapi.token"), 404)


@pytest.mark.parametrize("query", ["since=x", "since=-1", "since=nan", "since=inf", "points=x"])
def test_queries_are_checked(api: Api, query: str) -> None:
    assert query.split("=")[0] in refusal(api.ask("GET", f"/api/history?{query}"), 400)["what"]


def test_lists_are_bounded(api: Api) -> None:
    add_device(api.service, "wrist-5")
    for _ in range(5):
        add_release(api.service)
    assert len(api.get("/api/models/wrist/releases?limit=2")) == 2
    assert len(api.get("/api/audit?limit=100000000")) == 5


def test_a_body_that_is_too_long_is_refused_unread(tmp_path: Path) -> None:
    service = make_service(tmp_path / "small", "[limits]\nlargest_file = 1000\n")
    api = Api(service)
    path = "/api/models/wrist/files/model.onnx"
    assert api.ask("PUT", path, content=b"x" * 1000).status_code == 201
    assert "largest_file" in refusal(api.ask("PUT", path, content=b"x" * 1001), 413)["remedy"]

    async def pieces() -> Any:  # no length is declared: found out while reading
        for _ in range(50):
            yield b"x" * 100

    refusal(api.ask("PUT", path, content=pieces()), 413)
    assert service.store.staged("wrist")["model.onnx"]["length"] == 1000
    refusal(api.ask("POST", "/api/models/wrist/releases", content=b" " * 300_000), 413)
    service.close()


def test_wrong_bodies(api: Api) -> None:
    for body in (b"{", b"[]", b"\xff", b'{"labels": 3}', b'{"label": []}', b'{"notes": {"a": []}}', b"[" * 100_000):
        refusal(api.ask("POST", "/api/models/wrist/releases", content=body), 400)
    for body in (b"", b'{"to_version": "1"}', b'{"to_version": 1.5}'):
        refusal(api.ask("POST", "/api/models/wrist/rollback", content=body), 400)
    refusal(api.ask("PUT", "/api/models/wrist/files/passwd", content=b"x"), 400)
    refusal(api.ask("PUT", "/api/models/-wrist/files/model.onnx", content=b"x"), 400)
    refusal(api.ask("PUT", "/api/models/wrist/files/model.onnx", content=b""), 400)


@given(body=st.binary(max_size=200), method=st.sampled_from(["POST", "PUT"]), name=st.text(max_size=20))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_gets_an_answer_below_500(api: Api, body: bytes, method: str, name: str) -> None:
    from urllib.parse import quote

    for path in (f"/api/models/{quote(name, safe='')}/releases", f"/api/models/wrist/files/{quote(name, safe='')}"):
        answer = api.ask(method, path, content=body)
        assert 200 <= answer.status_code < 500, (path, answer.text)
    assert api.ask("GET", f"/api/devices/{quote(name, safe='')}").status_code in (200, 404)


def test_failures_of_ours_are_told_apart(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise StorageError("database x: disk full", "free space")

    def broken() -> None:
        raise KeyError("inside")

    monkeypatch.setattr(api.service, "devices", full)
    assert refusal(api.ask("GET", "/api/devices"), 507)["remedy"] == "free space"
    monkeypatch.setattr(api.service, "devices", broken)
    answer = api.ask("GET", "/api/devices")
    assert "inside" not in refusal(answer, 500)["what"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/app.js", "/api/status", "/api/nothing", "/metrics", "/healthz"])
def test_security_headers_are_on_every_answer(api: Api, path: str) -> None:
    answer = api.ask("GET", path, token=None)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_metrics_are_prometheus_text_and_name_no_device(story: Service) -> None:
    answer = Api(story).ask("GET", "/metrics", token=None)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert answer.text.endswith("\n") and len(lines) > 10
    for kind, sample in zip(lines[::2], lines[1::2], strict=True):
        name, value = re.fullmatch(r"(sanderling_[a-z0-9_]+) (\S+)", sample).groups()  # type: ignore[union-attr]
        assert kind == f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"
        float(value)
    assert "sanderling_devices 5" in lines and "sanderling_devices_online 4" in lines
    assert "wrist" not in answer.text


def test_a_device_is_shown_with_what_it_reported(api: Api) -> None:
    service = api.service
    add_release(service)
    add_device(service, "wrist-5")
    before = api.get("/api/devices")[0]
    assert before["version"] is None and before["accuracy"]["serving"] is None and before["is_current"] is False
    add_report(service, "wrist-5", held_out_fleet={"value": 0.7, "count": 9})
    add_report(service, "wrist-5", held_out_fleet={"value": 0.75, "count": 40})
    add_report(
        service, "wrist-5", serving="personal", held_out_fleet={"value": 0.76, "count": 44},
        held_out_personal={"value": 0.95, "count": 44}, outbox=2,
    )  # fmt: skip
    add_delta(service, "wrist-5", 1, merged_into=1)
    add_delta(service, "wrist-5", 2, status="rejected")
    (device,) = api.get("/api/devices")
    assert device["accuracy"]["serving"] == {"value": 0.95, "count": 44}
    assert device["memory"]["total"] == sum(device["memory"]["resident"].values()) > 0
    assert device["is_current"] is True
    assert device["deltas"] == {
        "accepted": 1, "rejected": 1, "merged": 1, "waiting": 2, "bytes": 3007, "float32_bytes": 44_000,
    }  # fmt: skip
    status = api.get("/api/status")
    # the first report on at least ten samples says where the device began
    assert status["accuracy"]["before"] == 0.75 and status["accuracy"]["now"] == 0.95
    assert status["memory"] == {"training_peak": 97 * 2**20, "memory_limit": 128 * 2**20, "device": "wrist-5"}
    whole = api.get("/api/devices/wrist-5")
    assert len(whole["deltas_newest"]) == 2 and whole["history"]["devices"]["wrist-5"]


def test_the_reference_page_lists_exactly_these_addresses(service: Service) -> None:
    text = (Path(__file__).parents[2] / "docs/reference/api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(GET|PUT|POST) (/\S*)`", text, re.M))
    routes = {
        (method, re.sub(r":int\}", "}", route.path))
        for route in create_app(service).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert any(isinstance(route, Mount) for route in create_app(service).routes)
    assert documented == routes | {("GET", "/")}


def test_status_is_json_that_anything_reads(story: Service) -> None:
    answer = Api(story).ask("GET", "/api/status", token=None)
    assert msgspec.json.decode(answer.content)["traffic"]["deltas"] == 30
    assert answer.headers["cache-control"] == "no-store"
