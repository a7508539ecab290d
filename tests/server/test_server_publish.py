"""What the broker shows: whole releases, again after every reconnect, and nothing that is no longer needed."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from sanderling.codec import release as wire
from sanderling.codec import topics
from sanderling.server.publish import Publisher
from sanderling.server.service import Service
from tests.support.web import add_release, make_service


class PaperBroker:
    """The retained messages of a broker that may break at any publication."""

    def __init__(self) -> None:
        self.connected = True
        self.retained: dict[str, bytes] = {}
        self.published: list[str] = []
        self.break_after: int | None = None

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout: float = 10.0) -> None:
        if self.break_after is not None:
            if self.break_after == 0:
                raise ConnectionResetError("gone")
            self.break_after -= 1
        assert retain
        self.published.append(topic)
        if payload:
            self.retained[topic] = payload
        else:
            self.retained.pop(topic, None)

    def forget(self) -> None:
        self.retained.clear()
        self.published.clear()


def shown(service: Service, broker: PaperBroker) -> bytes:
    """The model that a device would install; fails if anything of it is missing, damaged or left over."""
    (manifest,) = [p for t, p in broker.retained.items() if topics.parse(t).kind == "release"]
    release = wire.verify(manifest, [service.signer.public])
    chunks = {topics.parse(t).name: p for t, p in broker.retained.items() if topics.parse(t).kind == "chunk"}
    assert set(chunks) == {digest for target in release.targets.values() for digest in target.chunks}
    target = release.targets["model.onnx"]
    data = b"".join(chunks[digest] for digest in target.chunks)
    assert hashlib.sha256(data).hexdigest() == target.sha256
    return data


def test_a_new_release_replaces_the_old_one_and_shares_its_chunks(tmp_path: Path) -> None:
    service, broker = make_service(tmp_path), PaperBroker()
    publisher = Publisher("wrists", service.store, service.files, broker)
    old, new = b"a" * 32768 + b"b" * 32768, b"a" * 32768 + b"c" * 100
    add_release(service, files={"model.onnx": old, "proxy.npz": b"stays here"})
    asyncio.run(publisher.step())
    assert shown(service, broker) == old
    assert broker.published[-1].endswith("release/wrist"), "the manifest comes after what it names"
    before = len(broker.published)
    add_release(service, files={"model.onnx": new})
    asyncio.run(publisher.step())
    assert shown(service, broker) == new
    assert len(broker.published) - before == 3, "one new chunk, the manifest, one old chunk taken away"
    asyncio.run(publisher.step())
    assert len(broker.published) - before == 3, "nothing changed, nothing published"
    service.close()


@pytest.mark.parametrize("breaks", range(5))
def test_broken_anywhere_it_ends_complete(tmp_path: Path, breaks: int) -> None:
    service, broker = make_service(tmp_path), PaperBroker()
    add_release(service, files={"model.onnx": b"x" * 40000})
    publisher = Publisher("wrists", service.store, service.files, broker)
    asyncio.run(publisher.step())
    add_release(service, files={"model.onnx": b"y" * 70000})
    broker.break_after = breaks
    with pytest.raises(ConnectionResetError):
        asyncio.run(publisher.step())
    broker.break_after = None
    # a new process, which knows only the database
    asyncio.run(Publisher("wrists", service.store, service.files, broker).step())
    assert shown(service, broker) == b"y" * 70000
    service.close()


def test_a_broker_that_forgot_is_told_again(tmp_path: Path) -> None:
    service, broker = make_service(tmp_path), PaperBroker()
    add_release(service)
    publisher = Publisher("wrists", service.store, service.files, broker)

    async def story() -> None:
        running = asyncio.create_task(publisher.run())
        for _ in range(2):
            broker.forget()
            publisher.reconnected()
            async with asyncio.timeout(10):
                while not any("release/" in topic for topic in broker.published):
                    await asyncio.sleep(0.01)
            shown(service, broker)
        running.cancel()

    asyncio.run(story())
    service.close()
