"""Merges that go wrong: tried again, set aside, given back. Most find the result that a child would have left."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sanderling.codec import encode_delta
from sanderling.server import jobs, ledger
from sanderling.server.config import DistillSection, MergeSection
from sanderling.server.intake import Intake, Received
from sanderling.server.jobs import Merges
from sanderling.server.limits import Limits
from sanderling.server.merge_settings import JobSettings
from sanderling.server.service import Service
from tests.support.servers import delta_message
from tests.support.web import add_release, make_service

BLOB = encode_delta({"w": np.array([0.5, -0.25, 0.0], np.float32)})[0]
SETTINGS = msgspec.to_builtins(JobSettings(merge=MergeSection(), distill=DistillSection(), limits=Limits()))
MODEL = b"a merged model" * 100


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(jobs, "PAUSE", 0.01)
    service = make_service(tmp_path, "[merge]\nmin_devices = 99\n[limits]\nmerge_attempts = 2")
    add_release(service, weights={"w": [3]})
    Intake(service.store, Limits()).commit([Received("d1", "delta", delta_message(BLOB))])
    with service.store.writing() as db:
        assert ledger.begin_job(db, "wrist", SETTINGS, 10) == 1
    yield service
    service.close()


def leave(service: Service, model: bytes = MODEL, **changed: Any) -> Path:
    """What the child leaves behind."""
    out = service.settings.data / "jobs" / "1"
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "outcome": "released", "sha256": hashlib.sha256(MODEL).hexdigest(), "metrics": {"validation_accuracy": 0.9},
        "lineage": {"devices": ["d1"], "deltas": 1, "from_version": 1}, **changed,
    }  # fmt: skip
    (out / "model.onnx").write_bytes(model)
    (out / "result.json").write_text(json.dumps(result))
    return out


async def ended(running: asyncio.Task[None]) -> None:
    """Cancel merges and wait until their child is gone: a loop that closes earlier would leave it unreaped."""
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def settle(service: Service) -> dict[str, Any]:
    """Run merges until the job has ended; returns its row."""

    async def story() -> None:
        running = asyncio.create_task(Merges(service).run())
        async with asyncio.timeout(60):
            while service.jobs()[0]["state"] == "running":
                await asyncio.sleep(0.02)
                assert not running.done()
        await ended(running)

    asyncio.run(story())
    return service.jobs()[0]


def test_a_result_found_at_the_start_is_taken_over_once(service: Service) -> None:
    leave(service)
    job = settle(service)
    assert (job["state"], job["version"], job["attempts"]) == ("done", 2, 0)
    assert service.file("wrist", 2, "model.onnx") == MODEL
    assert service.store.deltas()[0]["merged_into"] == 2
    assert service.store.release("wrist", 2)["notes"]["validation_accuracy"] == 0.9


def test_refused_deltas_are_set_aside_with_the_reason(service: Service) -> None:
    leave(service, outcome="refused", reason="every candidate falls")
    assert settle(service)["state"] == "refused"
    (delta,) = service.store.deltas()
    assert (delta["status"], delta["merged_into"]) == ("accepted", None)
    assert "every candidate falls" in delta["reason"]
    assert service.store.pending("wrist")["deltas"] == 0
    assert service.models()[0]["current_version"] == 1


def test_superseded_by_a_push_the_deltas_wait_for_the_next(service: Service) -> None:
    leave(service)
    add_release(service, weights={"w": [3]})
    assert settle(service)["state"] == "superseded"
    assert service.store.pending("wrist")["deltas"] == 1
    assert service.models()[0]["current_version"] == 2


def test_a_child_that_keeps_failing_is_given_up(service: Service) -> None:
    job = settle(service)  # version 1 is no ONNX file here
    assert (job["state"], job["attempts"]) == ("failed", 2)
    assert "not an ONNX model" in job["reason"]
    assert service.store.counters()["jobs_failed"] == 1


def test_a_result_damaged_on_the_disk_is_not_released(service: Service) -> None:
    leave(service, model=MODEL[:-1])
    job = settle(service)  # computed again, and this model is no ONNX
    assert job["state"] == "failed"
    assert service.models()[0]["current_version"] == 1


def test_a_lost_file_is_waited_for_and_costs_no_delta(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    lost = service.files.path(service.store.release("wrist", 1)["files"]["model.onnx"]["sha256"])
    lost.unlink()

    async def story() -> None:
        running = asyncio.create_task(Merges(service).run())
        async with asyncio.timeout(60):
            while "backup" not in caplog.text:
                await asyncio.sleep(0.02)
        assert not running.done()
        await ended(running)

    asyncio.run(story())
    job = service.jobs()[0]
    assert (job["state"], job["attempts"]) == ("running", 0)
    assert service.store.deltas()[0]["job"] == 1
    leave(service)
    lost.write_bytes(b"onnx" * 9000)  # restored from a backup
    assert settle(service)["state"] == "done"
