"""The connection against real brokers: MQTT 5 (mosquitto) and 3.1.1 (amqtt)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sanderling.host.mqtt import BrokerAddress, Connection, NotConnected
from tests.support.brokers import BROKER_KINDS, BrokerProcess, free_port, start_broker


class Peer:
    """A connection that remembers what it was told."""

    def __init__(self, port: int, name: str, will: tuple[str, bytes] | None = None) -> None:
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.changes: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
        self.connection = Connection(
            BrokerAddress(port=port),
            name,
            on_message=lambda topic, payload: self.messages.put_nowait((topic, payload)),
            on_change=lambda connected, reason: self.changes.put_nowait((connected, reason)),
            will=will,
        )

    async def until(self, connected: bool) -> str:
        async with asyncio.timeout(25):
            while True:
                state, reason = await self.changes.get()
                if state == connected:
                    return reason

    async def next(self) -> tuple[str, bytes]:
        async with asyncio.timeout(15):
            return await self.messages.get()


async def exchange(broker: BrokerProcess) -> None:
    """Subscribe, publish, retained messages, a killed broker, and everything again after it."""
    a, b = Peer(broker.port, "a"), Peer(broker.port, "b")
    b.connection.subscribe("t/+")
    await a.connection.start()
    await b.connection.start()
    try:
        assert f"MQTT {'5' if broker.kind == 'mosquitto' else '3.1.1'}" in await a.until(True)
        await b.until(True)
        await a.connection.publish("t/1", b"one")
        assert await b.next() == ("t/1", b"one")
        await a.connection.publish("kept", b"x" * 32768, retain=True)
        b.connection.subscribe("kept")
        assert await b.next() == ("kept", b"x" * 32768)
        b.connection.unsubscribe("kept")

        await asyncio.to_thread(broker.kill)
        assert "lost" in await a.until(False)
        with pytest.raises(NotConnected, match="no connection"):
            await a.connection.publish("t/2", b"two")
        await asyncio.to_thread(broker.start)
        await a.until(True)
        await b.until(True)
        await a.connection.publish("t/3", b"three")
        assert await b.next() == ("t/3", b"three")
    finally:
        await a.connection.stop()
        await b.connection.stop()


@pytest.mark.parametrize("kind", BROKER_KINDS)
def test_exchange_and_reconnect(kind: str, tmp_path: Path) -> None:
    with start_broker(tmp_path, kind) as broker:
        asyncio.run(exchange(broker))


@pytest.mark.parametrize("kind", BROKER_KINDS)
def test_last_will_is_retained(kind: str, tmp_path: Path) -> None:
    async def scene(port: int) -> None:
        doomed, watcher = Peer(port, "doomed", will=("w", b"gone")), Peer(port, "watcher")
        watcher.connection.subscribe("w")
        for peer in (watcher, doomed):
            await peer.connection.start()
            await peer.until(True)
        client = doomed.connection._client
        assert client is not None
        broken = client.socket()
        assert broken is not None
        broken.close()  # what a crash looks like to the broker
        assert await watcher.next() == ("w", b"gone")
        await doomed.connection.stop()
        await watcher.connection.stop()

    with start_broker(tmp_path, kind) as broker:
        asyncio.run(scene(broker.port))


def test_absent_broker_is_reported_and_never_raises() -> None:
    async def scene() -> None:
        port = free_port()
        peer = Peer(port, "lonely")
        await peer.connection.start()
        reason = await peer.until(False)
        assert f"no broker at mqtt://127.0.0.1:{port}" in reason
        await peer.connection.stop()

    asyncio.run(scene())
