"""The planner and trainer children as real processes: what they commit, and that a kill leaves all or nothing."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from sanderling.agent import children
from sanderling.agent.children import Failure
from sanderling.agent.jobs import HealthDone, HealthJob, PlanDone, PlanJob, TrainDone, TrainJob
from sanderling.agent.layout import Layout
from sanderling.agent.ledger import Ledger
from sanderling.agent.outbox import Outbox
from sanderling.agent.store import Store
from sanderling.agent.tensors import pack, unpack
from sanderling.agent.versions import Versions
from sanderling.codec import accumulate
from sanderling.codec.messages import Delta, Receipt, decode
from sanderling.engine import read_weights
from sanderling.engine.models import depthwise_cnn_1d
from tests.support.fleets import motions

LIMIT = 160 * 2**20
DIGEST = "d" * 64


def run(module: str, job: msgspec.Struct, kind: type[Any]) -> Any:
    return asyncio.run(children.run(module, job, kind, 120))


@dataclass
class Device:
    """A state directory with samples and a planned model."""

    layout: Layout
    model: Path
    planned: PlanDone

    def job(self, **changes: Any) -> TrainJob:
        job = TrainJob(
            state_directory=str(self.layout.root), model_name="gait", base_version=1, base_digest=DIGEST,
            model=str(self.model), anchor="", plan=self.planned.plan, weights=self.planned.weights,
            memory_limit=LIMIT, store_bytes=10**7, held_out=0.2, epochs=4, batch=16, learning_rate=2e-3, seed=1,
            anchor_drop=0.1, quality=0.95,
        )  # fmt: skip
        return msgspec.structs.replace(job, **changes)

    def deltas(self) -> list[Delta]:
        ledger = Ledger(self.layout.database)
        outbox = Outbox(ledger)
        found = [outbox.payload(sequence) for sequence, kind in outbox.pending() if kind == "delta"]
        ledger.close()
        return [decode(Delta, payload) for payload in found if payload]

    def check_consistent(self) -> int:
        """Deltas, what is noted as sent, records, files and counters agree; returns the number of runs."""
        ledger = Ledger(self.layout.database)
        deltas = self.deltas()
        runs = ledger.number("training_runs")
        assert len(deltas) == runs == ledger.row("SELECT count(*) FROM personal")[0]
        row = ledger.row("SELECT weights FROM sent")
        base = read_weights(self.model)
        total = {name: np.zeros_like(array) for name, array in base.items()}
        for delta in deltas:
            accumulate(delta.blob, total)
        if row is None:
            assert not deltas
        else:
            for name, array in unpack(row[0]).items():
                np.testing.assert_allclose(array, total[name], atol=1e-6)
        versions = Versions(ledger, self.layout.personal)
        latest = versions.latest(DIGEST)
        if latest is not None:
            onnx.checker.check_model(onnx.load(versions.path(latest, ".onnx")))
            personal = unpack(versions.path(latest, ".weights").read_bytes())
            gap = sum(float(np.abs(personal[n] - base[n] - total[n]).sum()) for n in base)
            size = sum(float(np.abs(personal[n] - base[n]).sum()) for n in base)
            assert gap < 0.6 * size  # what was sent is most of what was learned
        ledger.close()
        return runs


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlanDone]:
    directory = tmp_path_factory.mktemp("plans")
    model = directory / "model.onnx"
    model.write_bytes(depthwise_cnn_1d(channels=6, length=100, classes=4, seed=1))
    planned = run("planner", PlanJob(str(model), str(directory), LIMIT, 16, "adam"), PlanDone)
    assert isinstance(planned, PlanDone), planned
    return model, planned


@pytest.fixture
def device(tmp_path: Path, plans: tuple[Path, PlanDone]) -> Device:
    layout = Layout(tmp_path / "state")
    layout.create()
    model, planned = plans
    x, y = motions(120, seed=5)
    store = Store(layout.samples, capacity=10**7, held_out=0.2)
    store.add([(pack({"x": window}), int(label)) for window, label in zip(x, y, strict=True)])
    store.close()
    return Device(layout, model, planned)


def test_runs_go_on_from_each_other_and_the_server_can_follow(device: Device) -> None:
    first = run("trainer", device.job(), TrainDone)
    assert isinstance(first, TrainDone), first
    assert first.adopted
    assert first.sent
    assert first.peak <= LIMIT
    second = run("trainer", device.job(seed=2), TrainDone)
    assert isinstance(second, TrainDone), second
    assert second.loss < first.loss
    assert device.check_consistent() == 2
    one, two = device.deltas()
    assert (one.samples, one.label_histogram) == (two.samples, two.label_histogram)
    assert sum(one.label_histogram) == one.samples


def test_refused_delta_is_taken_back(device: Device) -> None:
    run("trainer", device.job(), TrainDone)
    ledger = Ledger(device.layout.database)
    outbox = Outbox(ledger)
    [delta] = device.deltas()
    outbox.settle(
        Receipt(time=0.0, of="delta", base_version=1, sequence=delta.sequence, status="rejected", reason="too large")
    )
    ledger.close()
    assert isinstance(run("trainer", device.job(seed=2), TrainDone), TrainDone)
    [again] = device.deltas()  # carries everything: the first is as if never sent
    ledger = Ledger(device.layout.database)
    sent = unpack(ledger.row("SELECT weights FROM sent")[0])
    ledger.close()
    total = {name: np.zeros_like(array) for name, array in sent.items()}
    accumulate(again.blob, total)
    for name, array in sent.items():
        np.testing.assert_allclose(array, total[name], atol=1e-5)


def test_kill_at_any_moment_leaves_all_or_nothing(device: Device) -> None:
    begin = time.monotonic()
    assert isinstance(run("trainer", device.job(epochs=1), TrainDone), TrainDone)
    whole = time.monotonic() - begin
    chance, done = random.Random(7), 1
    killed = 0
    for attempt in range(8):
        process = subprocess.Popen(
            [*children.command("trainer"), str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(device.job(epochs=1, seed=attempt)))
        process.stdin.close()
        time.sleep(whole * chance.uniform(0.5, 1.0))  # the second half: where files and the transaction are written
        killed += process.poll() is None
        process.kill()
        process.wait()
        runs = device.check_consistent()
        assert done <= runs <= done + 1
        done = runs
    assert killed >= 2, "the kills came too late to say anything"
    final = run("trainer", device.job(epochs=1), TrainDone)
    assert isinstance(final, TrainDone), final
    assert device.check_consistent() >= done


def test_trainer_needs_no_onnx(device: Device) -> None:
    code = "import sys, sanderling.agent.trainer; print([m for m in sys.modules if m.split('.')[0] == 'onnx'])"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_plan_is_found_again_for_other_weights(device: Device, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(depthwise_cnn_1d(channels=6, length=100, classes=4, seed=2))
    again = run("planner", PlanJob(str(other), str(Path(device.planned.plan).parent), LIMIT, 16, "adam"), PlanDone)
    assert again.plan == device.planned.plan
    assert again.weights != device.planned.weights
    base = unpack(Path(again.weights).read_bytes())
    for name, array in read_weights(other).items():
        np.testing.assert_array_equal(base[name], array)


def test_damaged_plan_is_made_again(device: Device) -> None:
    plan = Path(device.planned.plan)
    plan.write_bytes(plan.read_bytes()[:1000])
    failed = run("trainer", device.job(), TrainDone)
    assert isinstance(failed, Failure)
    assert not failed.permanent
    again = run("planner", PlanJob(str(device.model), str(plan.parent), LIMIT, 16, "adam"), PlanDone)
    assert again.plan == device.planned.plan
    assert isinstance(run("trainer", device.job(), TrainDone), TrainDone)


def test_limit_that_is_too_small_names_the_smallest(device: Device) -> None:
    job = PlanJob(str(device.model), str(device.layout.plans), 20 * 2**20, 16, "adam")
    found = run("planner", job, PlanDone)
    assert isinstance(found, Failure)
    assert found.permanent
    assert "MiB at least" in found.reason


def test_operator_without_a_gradient_is_named(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        onnx.helper.make_node("Det", ["h"], ["d"], "odd"),
        onnx.helper.make_node("Unsqueeze", ["d", "axes"], ["u"], "column"),
        onnx.helper.make_node("Concat", ["u", "u"], ["y"], "last", axis=1),
    ]
    real = onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    axes = onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")
    graph = onnx.helper.make_graph(
        nodes, "odd",
        [onnx.helper.make_tensor_value_info("x", real, ["N", 3, 3])],
        [onnx.helper.make_tensor_value_info("y", real, ["N", 2])],
        [weights, axes],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = tmp_path / "odd.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), model)
    found = run("planner", PlanJob(str(model), str(tmp_path), LIMIT, 8, "adam"), PlanDone)
    assert isinstance(found, Failure)
    assert found.permanent
    assert "Det" in found.reason
    healthy = run("health", HealthJob(str(model), "", "", 0.1), HealthDone)  # it still predicts
    assert healthy.healthy, healthy.reason


def test_health_check(device: Device, tmp_path: Path) -> None:
    x, y = motions(40, seed=9)
    anchor = tmp_path / "anchor.npz"
    np.savez(anchor, x=x, y=y)
    good = run("health", HealthJob(str(device.model), "", str(anchor), 0.1), HealthDone)
    assert good.healthy, good.reason
    assert good.anchor is not None
    assert good.anchor.count == 40

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(device.model.read_bytes()[:-2000])
    found = run("health", HealthJob(str(broken), str(device.model), "", 0.1), HealthDone)
    assert not found.healthy
    assert "cannot load" in found.reason

    other = tmp_path / "other.onnx"
    other.write_bytes(depthwise_cnn_1d(channels=3, length=100, classes=4, seed=2))
    found = run("health", HealthJob(str(other), str(device.model), "", 0.1), HealthDone)
    assert "other inputs" in found.reason

    run("trainer", device.job(epochs=12), TrainDone)
    [personal] = device.layout.personal.glob("*.onnx")
    found = run("health", HealthJob(str(device.model), str(personal), str(anchor), 0.1), HealthDone)
    assert not found.healthy
    assert "anchor set" in found.reason

    anchor.write_bytes(b"PK\x03\x04 not an archive")
    found = run("health", HealthJob(str(device.model), "", str(anchor), 0.1), HealthDone)
    assert "anchor.npz" in found.reason
