"""One agent as it runs on a device: real processes, a real broker, and a server's side of the protocol."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.agent.layout import Layout
from sanderling.agent.ledger import Ledger
from sanderling.codec.release import generate_key
from sanderling.codec.topics import Topic
from sanderling.engine import read_weights
from sanderling.engine.models import depthwise_cnn_1d
from tests.support.brokers import BrokerProcess, start_broker
from tests.support.fleets import FLEET, MODEL, RunningAgent, ServerSide, motions, until

pytestmark = pytest.mark.system
MODELS = [depthwise_cnn_1d(channels=6, length=100, classes=4, seed=seed) for seed in range(4)]
LEARN = {"new_labels": 40, "min_samples": 40, "epochs": 6, "learning_rate": 0.002}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with start_broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def server(broker: BrokerProcess) -> Iterator[ServerSide]:
    server = ServerSide(broker.port)
    yield server
    server.close()


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training plans, shared: they are found by content, and planning takes longer than all else here."""
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
def agent(tmp_path: Path, broker: BrokerProcess, server: ServerSide, plans: Path) -> Iterator[RunningAgent]:
    agent = RunningAgent(tmp_path / "a", broker.port, server.public, learn=LEARN)
    agent.state.mkdir()
    (agent.state / "plans").symlink_to(plans)
    yield agent
    if agent.process is not None:
        agent.stop()


def installed(agent: RunningAgent, version: int) -> bool:
    return agent.status().get("version") == version


def padding(size: int) -> bytes:
    """An anchor set of about this many bytes that says nothing against anybody."""
    file = io.BytesIO()
    x, y = motions(max(1, size // 2400), seed=11)
    np.savez(file, x=x, y=y)
    return file.getvalue()


def modules_of(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:"))


def test_the_loop(agent: RunningAgent, server: ServerSide, tmp_path: Path) -> None:
    """Receive, predict, learn, send, receive again, go back; and the supervisor stays small all the way."""
    agent.start()
    until(lambda: agent.socket.exists() and agent.ask("GET", "/v2/health/live")[0] == 200)
    assert agent.ask("GET", f"/v2/models/{MODEL}/ready")[0] == 503
    server.release(1, {"model.onnx": MODELS[1]})
    until(lambda: installed(agent, 1))
    x, y = motions(200, seed=21)
    code, found = agent.infer(x[:3])
    assert (code, found["model_version"], found["parameters"]["model"]) == (200, "1", "fleet")
    assert agent.ask("POST", f"/v2/models/{MODEL}/feedback", {"id": found["id"], "labels": [0, 1]})[0] == 400
    assert agent.ask("POST", f"/v2/models/{MODEL}/feedback", {"id": found["id"], "labels": y[:3].tolist()})[0] == 200
    assert agent.ask("POST", f"/v2/models/{MODEL}/feedback", {"id": found["id"], "labels": y[:3].tolist()})[0] == 404
    assert agent.teach(x[:1], y[:1] + 9)[0] == 400
    assert agent.teach(x[3:150], y[3:150])[0] == 200

    until(lambda: server.deltas, what="a delta")
    until(lambda: agent.status()["serving"] == "personal" and agent.status()["outbox"] == 0)
    status = agent.status()
    assert status["held_out_personal"]["value"] > status["held_out_fleet"]["value"]
    assert 0 < status["training_peak"] <= status["memory_limit"]
    assert status["samples_seen"] == 150
    base = read_weights(MODELS[1])
    followed = server.learned(base, 1)
    assert any(np.abs(followed[name] - base[name]).max() > 1e-3 for name in base)

    assert agent.process is not None
    maps = modules_of(agent.process.pid)
    for heavy in ("numpy", "onnx", "cryptography", "_rust"):
        assert f"/{heavy}" not in maps, f"the supervisor has loaded {heavy}"
    assert resident(agent.process.pid) < 34 * 1024

    server.release(2, {"model.onnx": MODELS[2], "anchor.npz": padding(100_000)})
    until(lambda: ("installed", 2) in server.kinds() and (2 in {base for base, _ in server.deltas}), 30)
    assert server.telemetry[-1].memory_limit == 160 * 2**20

    done = subprocess.run(agent.command("rollback", "--release"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "went back from version 2 to 1\n")
    until(lambda: ("rolled_back", 2) in server.kinds())
    assert agent.infer(x[:1])[1]["model_version"] == "1"
    again = subprocess.run(agent.command("rollback", "--release"), capture_output=True, text=True)
    assert again.returncode == 1
    assert "no older release" in again.stderr
    checked = subprocess.run(agent.command("check"), capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    shown = subprocess.run(agent.command("status"), capture_output=True, text=True)
    assert "gait version 1" in shown.stdout
    second = subprocess.run(agent.command("run"), capture_output=True, text=True)
    assert second.returncode == 1
    assert "another agent runs" in second.stderr

    assert agent.stop() == 0
    until(lambda: not server.states[-1].online)
    offline = subprocess.run(agent.command("rollback", "--release"), capture_output=True, text=True)
    assert offline.returncode == 1  # version 2 stays refused


def test_kill_anything_anywhere(agent: RunningAgent, server: ServerSide, broker: BrokerProcess) -> None:
    """kill -9 of agent, worker and broker, again and again: no delta is lost or counted twice, no event either."""
    agent.start()
    server.release(1, {"model.onnx": MODELS[1]})
    until(lambda: installed(agent, 1))
    x, y = motions(400, seed=22)
    chance = random.Random(5)
    for turn in range(5):
        agent.teach(x[turn * 60 : turn * 60 + 60], y[turn * 60 : turn * 60 + 60])
        time.sleep(chance.uniform(0.2, 2.0))
        if turn == 2:
            broker.kill()
            time.sleep(0.5)
            broker.start()
        if turn == 3:
            os.kill(agent_child(agent, "worker"), signal.SIGKILL)
        else:
            agent.kill()
            agent.start()
            until(lambda: agent.status(), what="the agent to come back")
        assert agent.infer(x[:1])[0] == 200
    until(lambda: agent.status().get("training_runs", 0) >= 2 and agent.status()["outbox"] == 0, 40)
    time.sleep(1.0)
    agent.stop()
    ledger = Ledger(Layout(agent.state).database)
    here = set(ledger.rows("SELECT base_version, sequence FROM outbox WHERE kind = 'delta'"))
    events = {row[0] for row in ledger.rows("SELECT sequence FROM outbox WHERE kind = 'event'")}
    waiting = ledger.row("SELECT count(*) FROM outbox WHERE status = 'pending'")[0]
    ledger.close()
    assert waiting == 0
    assert here == set(server.deltas)
    assert events == set(server.events)
    assert [kind for kind, _ in server.kinds()].count("installed") == 1
    boots = {state.boot for state in server.states if state.online}
    assert len(boots) >= 4


def agent_child(agent: RunningAgent, module: str) -> int:
    assert agent.process is not None
    for pid in Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split():
        if f"sanderling.agent.{module}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise AssertionError(f"no {module} runs")


def test_update_resumes_after_kills(agent: RunningAgent, server: ServerSide) -> None:
    server.release(1, {"model.onnx": MODELS[1]})
    agent.start()
    until(lambda: installed(agent, 1))
    chance = random.Random(6)
    for version in range(2, 4):
        server.release(version, {"model.onnx": MODELS[version % 4], "anchor.npz": padding(1_500_000 + version)})
        for _ in range(3):
            time.sleep(chance.uniform(0.05, 1.2))
            agent.kill()
            agent.start()
        until(lambda version=version: installed(agent, version), 40)  # type: ignore[misc]  # mypy and defaults
    until(lambda: agent.status()["outbox"] == 0)
    assert [v for kind, v in server.kinds() if kind == "installed"] == [1, 2, 3]
    assert not [kind for kind, _ in server.kinds() if kind in ("rejected", "chunk_refused")]


def test_wrong_key_damaged_chunk_and_unhealthy_model(agent: RunningAgent, server: ServerSide) -> None:
    agent.start()
    server.release(1, {"model.onnx": MODELS[1]})
    until(lambda: installed(agent, 1))

    stranger, _ = generate_key()
    _, envelope, _ = server.make(2, {"model.onnx": MODELS[2]}, key=stranger)
    server.publish(Topic(FLEET, "release", MODEL), envelope)
    until(lambda: ("rejected", 0) in server.kinds())
    [refusal] = [event for event in server.events.values() if event.kind == "rejected"]
    assert "trusted_keys" in refusal.reason

    server.release(3, {"model.onnx": MODELS[3][:-3000]})
    until(lambda: ("rejected", 3) in server.kinds())

    _, envelope, chunks = server.make(4, {"model.onnx": MODELS[2]})
    first, *rest = chunks
    for digest in rest:
        server.publish(Topic(FLEET, "chunk", digest), chunks[digest])
    server.publish(Topic(FLEET, "chunk", first), b"damaged on its way")
    server.publish(Topic(FLEET, "release", MODEL), envelope)
    until(lambda: ("chunk_refused", 4) in server.kinds())
    assert agent.status()["version"] == 1
    server.publish(Topic(FLEET, "chunk", first), chunks[first])
    server.publish(Topic(FLEET, "release", MODEL), envelope)
    until(lambda: installed(agent, 4), 30)


def test_without_a_broker_it_learns(agent: RunningAgent, server: ServerSide, broker: BrokerProcess) -> None:
    agent.start()
    server.release(1, {"model.onnx": MODELS[1]})
    until(lambda: installed(agent, 1))
    broker.kill()
    x, y = motions(120, seed=23)
    assert agent.teach(x, y)[0] == 200
    until(lambda: agent.status().get("training_runs") == 1, 30)
    until(lambda: agent.infer(x[:1])[1]["parameters"]["model"] == "personal")
    assert not agent.status()["connected"]
    assert agent.status()["outbox"] >= 1
    assert not server.deltas
    broker.start()
    until(lambda: server.deltas and agent.status()["outbox"] == 0, 60)
    log = agent.log.read_text()
    assert "start it, or correct [broker]" in log


def test_receipts_not_the_broker_empty_the_outbox(agent: RunningAgent, server: ServerSide) -> None:
    server.mute = True
    agent.start()
    server.release(1, {"model.onnx": MODELS[1]})
    until(lambda: installed(agent, 1))
    x, y = motions(60, seed=24)
    agent.teach(x, y)
    until(lambda: server.received >= 2, 30, "the same delta twice")
    assert agent.status()["outbox"] >= 2
    server.mute = False
    until(lambda: agent.status()["outbox"] == 0, 30)
    assert len(server.deltas) == 1


def test_the_loop_on_mqtt_3_1_1(tmp_path: Path, plans: Path) -> None:
    """The same protocol on a broker that knows no MQTT 5, killed in the middle of a download."""
    with start_broker(tmp_path, "amqtt") as broker:
        server = ServerSide(broker.port)
        agent = RunningAgent(tmp_path / "a", broker.port, server.public, learn=LEARN)
        agent.state.mkdir()
        (agent.state / "plans").symlink_to(plans)
        agent.start()
        try:
            server.release(1, {"model.onnx": MODELS[1]})
            until(lambda: installed(agent, 1), 40)
            x, y = motions(60, seed=27)
            agent.teach(x, y)
            server.release(2, {"model.onnx": MODELS[2], "anchor.npz": padding(400_000)})
            broker.kill()
            broker.start()  # with nothing retained: the server publishes again when it is back
            until(lambda: installed(agent, 2), 60)
            until(lambda: {base for base, _ in server.deltas} >= {2} and agent.status()["outbox"] == 0, 60)
        finally:
            agent.stop()
            server.close()


def test_killed_trainer_is_reported_and_run_again(
    tmp_path: Path, broker: BrokerProcess, server: ServerSide, plans: Path
) -> None:
    agent = RunningAgent(tmp_path / "a", broker.port, server.public, learn={**LEARN, "epochs": 150})
    agent.state.mkdir()
    (agent.state / "plans").symlink_to(plans)
    agent.start()
    try:
        server.release(1, {"model.onnx": MODELS[1]})
        until(lambda: installed(agent, 1))
        x, y = motions(60, seed=28)
        agent.teach(x, y)
        os.kill(until(lambda: child_or_none(agent, "trainer"), 30, "the trainer"), signal.SIGKILL)
        assert agent.infer(x[:1])[0] == 200
        until(lambda: ("training_failed", 1) in server.kinds())
        [event] = [event for event in server.events.values() if event.kind == "training_failed"]
        assert "SIGKILL" in event.reason
        until(lambda: server.deltas, 60, "the run after it")
        assert agent.status()["training_runs"] == 1
    finally:
        agent.stop()


def test_worker_comes_and_goes(tmp_path: Path, broker: BrokerProcess, server: ServerSide) -> None:
    """Idle: it ends. A connection: it is back. Killed: waiting connections are answered by the next one."""
    agent = RunningAgent(
        tmp_path / "a", broker.port, server.public, serve={"idle_seconds": 0.7}, learn={"enabled": False}
    )
    agent.start()
    try:
        server.release(1, {"model.onnx": MODELS[1]})
        until(lambda: installed(agent, 1))
        assert agent_child(agent, "worker")
        until(lambda: not has_worker(agent), what="the idle worker to end")
        x, _ = motions(5, seed=25)
        for _ in range(3):
            assert agent.infer(x)[0] == 200
            until(lambda: not has_worker(agent), what="the idle worker to end")
        agent.infer(x)
        os.kill(agent_child(agent, "worker"), signal.SIGKILL)
        assert until(lambda: answer(agent, x)) == 200
        until(lambda: ("worker_crashed", 1) in server.kinds())
    finally:
        assert agent.stop() == 0


def answer(agent: RunningAgent, x: Any) -> int:
    try:
        return agent.infer(x)[0]
    except OSError:
        return 0


def has_worker(agent: RunningAgent) -> bool:
    return child_or_none(agent, "worker") > 0


def child_or_none(agent: RunningAgent, module: str) -> int:
    try:
        return agent_child(agent, module)
    except (AssertionError, OSError):  # none, or it ended while we looked
        return 0


def test_limit_too_small_turns_learning_off_with_the_remedy(
    tmp_path: Path, broker: BrokerProcess, server: ServerSide
) -> None:
    agent = RunningAgent(tmp_path / "a", broker.port, server.public, learn={**LEARN, "memory_limit": "30MiB"})
    agent.start()
    try:
        server.release(1, {"model.onnx": MODELS[1]})
        until(lambda: installed(agent, 1))
        x, y = motions(60, seed=26)
        agent.teach(x, y)
        until(lambda: ("training_failed", 1) in server.kinds(), 30)
        [event] = [event for event in server.events.values() if event.kind == "training_failed"]
        assert "MiB at least" in event.reason
        assert agent.infer(x[:1])[0] == 200
        assert "MiB at least" in agent.status()["learning"]
    finally:
        agent.stop()


def test_configuration_that_cannot_work_is_refused_at_the_start(tmp_path: Path) -> None:
    _, key = generate_key()
    agent = RunningAgent(tmp_path / "a", 1, key, serve={"socket": "/proc/nowhere/s"})
    found = subprocess.run(agent.command("run"), capture_output=True, text=True)
    assert found.returncode == 1
    assert "serve.socket" in found.stderr
    checked = subprocess.run(agent.command("check"), capture_output=True, text=True)
    assert checked.returncode == 1
    assert "FAILED  broker" in checked.stdout
    agent.config.write_text("[device]\nname = 3")
    found = subprocess.run(agent.command("status"), capture_output=True, text=True)
    assert (found.returncode, "agent.toml: device.name" in found.stderr) == (1, True)


def test_systemd_is_told(tmp_path: Path) -> None:
    import socket

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.settimeout(15)
    listener.bind(str(tmp_path / "notify"))
    _, key = generate_key()
    agent = RunningAgent(tmp_path / "a", 1, key)
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    process = subprocess.Popen(agent.command("run"), env=environment, stderr=subprocess.DEVNULL)
    try:
        assert listener.recv(100) == b"READY=1"
        assert listener.recv(100) == b"WATCHDOG=1"
        process.terminate()
        until(lambda: listener.recv(100) == b"STOPPING=1")
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        listener.close()


def test_supervisor_imports_nothing_heavy() -> None:
    code = (
        "import sys, sanderling.agent.cli, sanderling.agent.supervisor, sanderling.agent.control\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'h11', 'cryptography'}\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & heavy))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
