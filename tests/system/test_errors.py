"""Faults that a whole device or a whole server must outlive: what is said, and that the loop goes on without a loss."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sanderling.agent.layout import Layout
from sanderling.agent.ledger import Ledger
from sanderling.codec.release import generate_key
from sanderling.engine.models import depthwise_cnn_1d
from sanderling.server.store import DATABASE
from tests.support.brokers import BrokerProcess, start_broker
from tests.support.fleets import RunningAgent, ServerSide, motions, until
from tests.support.servers import PaperFleet, ServerProcess, delta_message, small_delta, small_model

pytestmark = pytest.mark.system
MODELS = [depthwise_cnn_1d(channels=6, length=100, classes=4, seed=seed) for seed in range(3)]
LEARN = {"new_labels": 40, "min_samples": 40, "epochs": 4, "learning_rate": 0.002}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with start_broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def server(broker: BrokerProcess) -> Iterator[ServerSide]:
    server = ServerSide(broker.port)
    yield server
    server.close()


@contextmanager
def running(agent: RunningAgent) -> Iterator[RunningAgent]:
    agent.start()
    try:
        yield agent
    finally:
        agent.stop()


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    """A real file system of this size; skips the test, saying so, for those who may not mount one."""
    where.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here (root is needed): {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def fill(disk: Path) -> Path:
    """Take every free byte; remove the returned file to give them back."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for piece in (bytes(1 << 16), bytes(1 << 12)):
            try:
                while file.write(piece) == len(piece):
                    pass
            except OSError:
                continue
    return filler


def installed(agent: RunningAgent, version: int) -> bool:
    return agent.status().get("version") == version


def worker_of(agent: RunningAgent) -> int:
    assert agent.process is not None
    parent = agent.process.pid
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"sanderling.agent.worker" in words:
            return int(pid)
    return 0


def test_a_device_with_a_full_disk_predicts_and_catches_up(
    tmp_path: Path, broker: BrokerProcess, server: ServerSide
) -> None:
    agent = RunningAgent(tmp_path / "a", broker.port, server.public, learn=LEARN)
    x, y = motions(240, seed=31)
    with small_disk(agent.state, "8m") as disk, running(agent):
        server.release(1, {"model.onnx": MODELS[0]})
        until(lambda: installed(agent, 1))
        filler = fill(disk)
        refusals = [agent.teach(x[:60], y[:60]) for _ in range(20)]
        code, answer = refusals[-1]
        assert code == 507
        assert "disk is full; free space" in answer["error"]
        server.release(2, {"model.onnx": MODELS[1]})
        until(lambda: "storage full" in agent.log.read_text(), what="the log to tell it")
        assert agent.infer(x[:2])[1]["model_version"] == "1"
        filler.unlink()
        until(lambda: installed(agent, 2), 40, "the release to arrive when there is room again")
        assert agent.teach(x[60:], y[60:])[0] == 200
        until(lambda: any(base == 2 for base, _ in server.deltas) and agent.status()["outbox"] == 0, 60)
        agent.stop()
        ledger = Ledger(Layout(agent.state).database)
        here = ledger.rows("SELECT base_version, sequence FROM outbox WHERE kind = 'delta'")
        ledger.close()
    assert sorted(here) == sorted(server.deltas)
    assert [version for kind, version in server.kinds() if kind == "installed"] == [1, 2]
    assert "Traceback" not in agent.log.read_text()


def test_a_server_with_a_full_disk_acknowledges_only_what_it_has(tmp_path: Path, broker: BrokerProcess) -> None:
    model = small_model()
    with small_disk(tmp_path / "server", "8m") as disk:
        server = ServerProcess(disk, broker.port, enabled=False)
        server.start()
        try:
            server.push(model)

            async def story() -> None:
                fleet = PaperFleet(broker.port)
                await fleet.connection.start()
                await fleet.until(lambda: 1 in fleet.releases)
                filler = fill(disk)
                sequence = 0
                for sequence in range(1, 200):
                    payload = delta_message(small_delta(model, seed=sequence), sequence=sequence)
                    try:
                        await fleet.deliver("d1", payload, sequence, seconds=3)
                    except TimeoutError:
                        break
                assert ("d1", "delta", sequence) not in fleet.receipts
                assert sequences(disk) == list(range(1, sequence))
                assert b"ok" in server.get("/healthz").lower()
                filler.unlink()
                for late in (sequence, sequence + 1):
                    payload = delta_message(small_delta(model, seed=late), sequence=late)
                    assert await fleet.deliver("d1", payload, late) in ("accepted", "duplicate")
                assert sequences(disk) == list(range(1, sequence + 2))
                await fleet.connection.stop()

            asyncio.run(story())
            assert server.stop() == 0
        finally:
            server.close()
    log = server.log.read_text()
    assert "full" in log
    assert "can be written again" in log
    assert "Traceback" not in log


def sequences(data: Path) -> list[int]:
    connection = sqlite3.connect(f"file:{data / DATABASE}?mode=ro", uri=True)
    try:
        return [row[0] for row in connection.execute("SELECT sequence FROM deltas ORDER BY sequence")]
    finally:
        connection.close()


def with_determinants() -> bytes:
    """A classifier of the same windows that runs, but has an operator without a gradient behind its weights."""
    weights = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
        helper.make_node("Reshape", ["z", "squares"], ["s"]),
        helper.make_node("Det", ["s"], ["y"], name="odd"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 100])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])], [
            onnx.numpy_helper.from_array(weights, "w"),
            onnx.numpy_helper.from_array(np.array([-1, 4, 2, 2]), "squares"),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_a_model_that_cannot_be_trained_predicts_and_the_next_one_learns(
    tmp_path: Path, broker: BrokerProcess, server: ServerSide
) -> None:
    agent = RunningAgent(tmp_path / "a", broker.port, server.public, learn=LEARN)
    x, y = motions(60, seed=32)
    with running(agent):
        server.release(1, {"model.onnx": with_determinants()})
        until(lambda: installed(agent, 1))
        assert agent.teach(x, y)[0] == 200
        until(lambda: ("training_failed", 1) in server.kinds(), 30)
        [event] = [event for event in server.events.values() if event.kind == "training_failed"]
        assert "operator Det (node 'odd')" in event.reason
        assert agent.infer(x[:1])[0] == 200
        assert "Det" in agent.status()["learning"]
        server.release(2, {"model.onnx": MODELS[0]})
        until(lambda: any(base == 2 for base, _ in server.deltas), 60, "the next model to learn from what was kept")


def test_a_model_with_which_the_worker_keeps_crashing_is_given_up(
    tmp_path: Path, broker: BrokerProcess, server: ServerSide
) -> None:
    agent = RunningAgent(tmp_path / "a", broker.port, server.public, learn={"enabled": False})
    x, _ = motions(1, seed=33)
    with running(agent):
        for version in (1, 2):
            server.release(version, {"model.onnx": MODELS[version]})
            until(lambda version=version: installed(agent, version))  # type: ignore[misc]  # mypy and defaults
        before = 0
        for _ in range(3):
            until(lambda: agent.status(), what="a worker to answer")
            pid = until(lambda before=before: (found := worker_of(agent)) != before and found)  # type: ignore[misc]
            os.kill(pid, signal.SIGKILL)
            before = pid
        until(lambda: ("rolled_back", 2) in server.kinds(), 30)
        until(lambda: installed(agent, 1))
        assert agent.infer(x)[1]["model_version"] == "1"
    reasons = [event.reason for event in server.events.values() if event.kind == "rolled_back"]
    assert any("crashed 3 times in a row" in reason for reason in reasons)


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """The agent predicts without a broker, and says which file to put right; so does `agent check`."""
    missing = str(tmp_path / "ca.pem")
    agent = RunningAgent(tmp_path / "a", 1, generate_key()[1], broker={"ca_file": missing})
    checked = subprocess.run(agent.command("check"), capture_output=True, text=True, timeout=60)
    assert checked.returncode == 1
    assert f"ca_file {missing} cannot be used" in checked.stdout
    with running(agent):
        until(lambda: f"ca_file {missing} cannot be used" in agent.log.read_text())
        assert agent.ask("GET", "/v2/health/live")[0] == 200
    assert "Traceback" not in agent.log.read_text() + checked.stderr


def test_state_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file or a damaged database where the state directory should be: refused with the place, nothing changed."""
    key = generate_key()[1]
    blocked = RunningAgent(tmp_path / "a", 1, key)
    blocked.state.write_text("not a directory")
    damaged = RunningAgent(tmp_path / "b", 1, key)
    damaged.state.mkdir()
    Layout(damaged.state).database.write_text("not a database, but somebody's text" * 20)
    for agent, place in ((blocked, blocked.state), (damaged, Layout(damaged.state).database)):
        found = subprocess.run(agent.command("run"), capture_output=True, text=True, timeout=60)
        assert found.returncode == 1
        assert str(place) in found.stderr
        assert "Traceback" not in found.stderr
    assert blocked.state.read_text() == "not a directory"
    assert Layout(damaged.state).database.read_text().startswith("not a database")
