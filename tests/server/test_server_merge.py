"""Merging in earnest: small models trained on skewed devices, their deltas, and what comes out."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sanderling.codec import decode_delta, encode_delta
from sanderling.engine import Trainer, compile, evaluate, export_model, read_weights
from sanderling.server import ledger
from sanderling.server.config import DistillSection, MergeSection
from sanderling.server.intake import Intake, Received
from sanderling.server.limits import Limits
from sanderling.server.merge import Merge
from sanderling.server.merge_settings import DISK_FAILED, JobSettings
from sanderling.server.service import Service
from tests.support.servers import Samples, delta_message, small_delta, small_model, windows
from tests.support.web import add_release, make_service

LABELS = {"d0": (0, 1), "d1": (1, 2), "d2": (2, 3), "d3": (3, 0)}
TEST = windows(400, seed=99)


def trained(model: bytes, data: Samples, epochs: int, learning_rate: float = 3e-3) -> bytes:
    plan = compile(model, batch=16)
    trainer = Trainer(plan, learning_rate=learning_rate)
    generator = np.random.default_rng(0)
    for _ in range(epochs):
        order = generator.permutation(len(data[0]))
        for first in range(0, len(order), 16):
            chosen = order[first : first + 16]
            trainer.step(data[0][chosen], data[1][chosen])
    return export_model(model, trainer.weights())


@pytest.fixture(scope="module")
def base() -> bytes:
    """A model that has seen a little of everything."""
    return trained(small_model(), windows(40, seed=2), epochs=8)


@pytest.fixture(scope="module")
def learned(base: bytes) -> dict[str, bytes]:
    """The coded deltas of four devices, each of which knows two classes of four."""
    deltas = {}
    before = read_weights(base)
    for k, (name, labels) in enumerate(LABELS.items()):
        after = read_weights(trained(base, windows(120, seed=10 + k, labels=labels), epochs=6))
        deltas[name] = encode_delta({n: after[n] - before[n] for n in before})[0]
    return deltas


@pytest.fixture
def service(tmp_path: Path, base: bytes) -> Iterator[Service]:
    service = make_service(tmp_path)
    x, y = windows(240, seed=5)
    file = io.BytesIO()
    np.savez(file, x=x, y=y)
    push(service, base, {"proxy.npz": file.getvalue()})
    yield service
    service.close()


def push(service: Service, model: bytes, files: dict[str, bytes]) -> None:
    shapes = {name: list(array.shape) for name, array in read_weights(model).items()}
    add_release(service, weights=shapes, labels=[], files={"model.onnx": model, **files})


def begin(service: Service, deltas: dict[str, bytes], **changed: Any) -> int:
    """Receive deltas and begin a job, as the server would."""
    intake = Intake(service.store, Limits())
    for device, blob in deltas.items():
        outcome = intake.commit([Received(device, "delta", skewed(device, blob))])
        assert outcome.receipts[0][1].status == "accepted", outcome.receipts
    distill = DistillSection(epochs=changed.pop("epochs", 12), enabled=changed.pop("distilling", True))
    settings = JobSettings(merge=MergeSection(**changed), distill=distill, limits=Limits())
    with service.store.writing() as db:
        job = ledger.begin_job(db, "wrist", msgspec.to_builtins(settings), 100)
    assert job is not None
    return job


def skewed(device: str, blob: bytes) -> bytes:
    from sanderling.codec import messages
    from sanderling.codec.messages import Delta

    message = messages.decode(Delta, delta_message(blob, samples=120))
    histogram = [60 if label in LABELS.get(device, (0, 1, 2, 3)) else 0 for label in range(4)]
    return messages.encode(msgspec.structs.replace(message, label_histogram=histogram))


def accuracy(model: bytes) -> float:
    return evaluate(model, TEST[0], TEST[1])


def test_distillation_beats_the_plain_average_of_skewed_devices(
    service: Service, base: bytes, learned: dict[str, bytes]
) -> None:
    job = begin(service, learned)
    result, model = Merge(service.store, service.files, job).run()
    assert result["outcome"] == "released"
    weights = read_weights(base)
    for blob in learned.values():
        for name, change in decode_delta(blob).items():
            weights[name] = weights[name] + change / np.float32(4)
    average = export_model(base, weights)
    assert accuracy(model) > accuracy(average) + 0.03
    assert accuracy(model) > accuracy(base) + 0.03
    lineage = result["lineage"]
    assert lineage["teachers"] == list(LABELS)
    assert {"aggregate", "distilled", "between_0.5", "cautious", "present"} <= set(lineage["candidates"])
    assert sum(c["share"] for c in lineage["contributions"]) == pytest.approx(1, abs=1e-5)
    assert result["metrics"]["validation_accuracy"] >= result["metrics"]["previous_validation_accuracy"] - 0.05
    json.dumps(result)


def test_the_same_job_gives_the_same_model(service: Service, learned: dict[str, bytes]) -> None:
    job = begin(service, learned, epochs=2)
    first, second = (Merge(service.store, service.files, job).run() for _ in range(2))
    assert first[1] == second[1]


def test_without_distillation_or_proxy_the_release_is_the_aggregate(
    tmp_path: Path, base: bytes, learned: dict[str, bytes]
) -> None:
    service = make_service(tmp_path)
    push(service, base, {})
    job = begin(service, {name: learned[name] for name in ("d0", "d1")}, server_learning_rate=0.5)
    result, model = Merge(service.store, service.files, job).run()
    assert result["metrics"]["candidate"] == "aggregate"
    before, after = read_weights(base), read_weights(model)
    changes = [decode_delta(learned[name]) for name in ("d0", "d1")]
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array + 0.25 * (changes[0][name] + changes[1][name]), atol=1e-6)
    service.close()


def test_wild_deltas_are_refused(service: Service, base: bytes) -> None:
    wild = {name: small_delta(base, scale=5.0, seed=k) for k, name in enumerate(LABELS)}
    result, model = Merge(service.store, service.files, begin(service, wild, distilling=False)).run()
    assert result["outcome"] == "refused"
    assert model == b""
    assert "falls more than" in result["reason"]


def test_a_model_that_cannot_be_distilled_is_still_aggregated(
    service: Service, learned: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sanderling.engine import MemoryLimitError
    from sanderling.server import merge

    def too_small(*_: object) -> None:
        raise MemoryLimitError("the limit is too small", smallest=2**30)

    monkeypatch.setattr(merge, "distill", too_small)
    result, _ = Merge(service.store, service.files, begin(service, learned)).run()
    assert "too small" in result["lineage"]["distillation_failed"]
    assert set(result["lineage"]["candidates"]) == {"aggregate", "cautious", "present"}


def test_the_child_leaves_a_result_or_says_why_not(service: Service, learned: dict[str, bytes], tmp_path: Path) -> None:
    job = begin(service, learned, epochs=1)
    out = tmp_path / "out"
    out.mkdir()

    def child() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sanderling.server.merge", "--parent", str(os.getpid())]
        command += ["--data", str(service.settings.data), "--job", str(job), "--out", str(out)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    damaged = service.files.path(service.store.release("wrist", 1)["files"]["model.onnx"]["sha256"])
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    failed = child()
    assert failed.returncode == DISK_FAILED
    assert "damaged" in failed.stderr
    assert list(out.iterdir()) == []
    damaged.write_bytes(whole)
    assert child().returncode == 0
    assert {path.name for path in out.iterdir()} == {"model.onnx", "result.json"}
