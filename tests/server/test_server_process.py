"""The whole server as a process, with a real broker: killed where it hurts, it counts right when it is back."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sanderling.codec import release as wire
from sanderling.server.store import DATABASE, Store
from tests.support.brokers import BROKER_KINDS, BrokerProcess, free_port, start_broker
from tests.support.servers import (
    PaperFleet,
    ServerProcess,
    delta_message,
    event_message,
    run_command,
    small_delta,
    small_model,
    state_message,
    windows,
)

pytestmark = pytest.mark.system
MODEL = small_model()
BLOB = small_delta(MODEL)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with start_broker(tmp_path) as process:
        yield process


def proxy_file(count: int = 200) -> bytes:
    x, y = windows(count)
    file = io.BytesIO()
    np.savez(file, x=x, y=y)
    return file.getvalue()


@pytest.mark.parametrize("kind", BROKER_KINDS)
def test_loop_from_delta_to_signed_release(tmp_path: Path, kind: str) -> None:
    with start_broker(tmp_path, kind) as broker:
        server = ServerProcess(tmp_path / "server", broker.port, max_releases=1)
        server.start()
        try:
            server.push(MODEL, proxy_file())

            async def story() -> None:
                fleet = PaperFleet(broker.port)
                await fleet.connection.start()
                await fleet.until(lambda: 1 in fleet.releases)
                await fleet.send("d0", "state", state_message(True))
                assert await fleet.deliver("d0", event_message(), 1, "event") == "accepted"
                for k in range(2):
                    assert await fleet.deliver(f"d{k}", delta_message(BLOB), 1) == "accepted"
                await fleet.until(lambda: 2 in fleet.releases)
                fleet.receipts.clear()
                assert await fleet.deliver("d0", delta_message(BLOB), 1) == "duplicate"
                await fleet.connection.stop()

            asyncio.run(story())
            key = run_command("server", "keys", "--config", str(server.config)).stdout.strip()
            assert server.stop() == 0
            store = Store(server.directory / DATABASE)
            assert wire.verify(store.release("wrist", 2)["manifest"], [key]).version == 2
            assert {(d["status"], d["merged_into"]) for d in store.deltas()} == {("accepted", 2)}
            assert set(store.release("wrist", 2)["lineage"]["candidates"]) >= {"aggregate", "distilled", "present"}
            store.close()
        finally:
            server.close()


def test_killed_while_merging_each_delta_counts_once(tmp_path: Path, broker: BrokerProcess) -> None:
    server = ServerProcess(tmp_path / "server", broker.port, max_releases=1, epochs=250)
    server.start()
    try:
        server.push(MODEL, proxy_file())

        async def story() -> None:
            fleet = PaperFleet(broker.port)
            await fleet.connection.start()
            for k in range(2):
                assert await fleet.deliver(f"d{k}", delta_message(BLOB), 1) == "accepted"
            for wait in (0.3, 1.2):  # early in the child, and far into it
                deadline = time.monotonic() + 20
                while b'"state":"running"' not in server.get("/api/jobs").replace(b" ", b""):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.02)
                await asyncio.sleep(wait)
                server.kill()
                assert fleet.releases.keys() <= {1}
                server.start()
            # a delta that comes while the interrupted merge is repeated belongs to the next one
            assert await fleet.deliver("d0", delta_message(BLOB, sequence=2), 2) == "accepted"
            await fleet.until(lambda: 2 in fleet.releases)
            await fleet.connection.stop()

        asyncio.run(story())
        assert server.stop() == 0
        store = Store(server.directory / DATABASE)
        assert {(d["device"], d["sequence"]): d["merged_into"] for d in store.deltas()} == {
            ("d0", 1): 2, ("d1", 1): 2, ("d0", 2): None,
        }  # fmt: skip
        assert [j["state"] for j in store.jobs()] == ["done"]
        assert store.counters()["deltas_merged"] == 2
        store.close()
    finally:
        server.close()


def test_killed_while_receiving_nothing_receipted_is_lost(tmp_path: Path, broker: BrokerProcess) -> None:
    server = ServerProcess(tmp_path / "server", broker.port, enabled=False)
    server.start()
    try:
        server.push(MODEL)
        count, receipted_before_kill = 120, 0

        async def story() -> None:
            nonlocal receipted_before_kill
            fleet = PaperFleet(broker.port)
            await fleet.connection.start()
            deliveries = [
                asyncio.create_task(fleet.deliver(f"d{i % 3}", delta_message(BLOB, sequence=i), i))
                for i in range(1, count + 1)
            ]
            await fleet.until(lambda: len(fleet.receipts) >= 20)
            server.kill()
            receipted_before_kill = len(fleet.receipts)
            server.start()
            statuses = await asyncio.gather(*deliveries)
            assert set(statuses) <= {"accepted", "duplicate"}
            await fleet.connection.stop()

        asyncio.run(story())
        assert server.stop() == 0
        assert receipted_before_kill >= 20
        store = Store(server.directory / DATABASE)
        rows = store.deltas(limit=1000)
        assert sorted(d["sequence"] for d in rows) == list(range(1, count + 1)), "each once, none missing"
        store.close()
    finally:
        server.close()


def test_broker_comes_late_and_is_killed_and_shows_the_release_again(tmp_path: Path) -> None:
    with start_broker(tmp_path) as broker:
        broker.kill()
        server = ServerProcess(tmp_path / "server", broker.port)
        server.start()
        try:
            server.push(MODEL)
            assert b'"connected":false' in server.get("/api/status").replace(b" ", b""), (
                "the web is up without a broker"
            )
            broker.start()

            async def sees_release() -> None:
                fleet = PaperFleet(broker.port)
                await fleet.connection.start()
                await fleet.until(lambda: 1 in fleet.releases)
                await fleet.connection.stop()

            asyncio.run(sees_release())
            broker.kill()  # with all that it retained
            broker.start()
            asyncio.run(sees_release())
            assert server.stop() == 0
        finally:
            server.close()


def test_start_errors_name_the_remedy(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "server", free_port())
    server.start()
    try:
        command = [sys.executable, "-m", "sanderling", "server", "run", "--config"]
        second = subprocess.run([*command, str(server.config)], capture_output=True, text=True, timeout=30)
        assert second.returncode == 1
        assert "another server is using" in second.stderr
        other = ServerProcess(tmp_path / "other", free_port())
        other.config.write_text(other.config.read_text().replace(str(other.port), str(server.port)))
        taken = subprocess.run([*command, str(other.config)], capture_output=True, text=True, timeout=30)
        assert taken.returncode == 1
        assert f":{server.port}" in taken.stderr
        assert "web.port" in taken.stderr
        assert "Traceback" not in taken.stderr + second.stderr
    finally:
        server.close()
