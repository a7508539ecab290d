"""The queue between broker and database: bounded, and honest when the disk or the broker fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sanderling.codec import encode_delta, messages, topics
from sanderling.codec.messages import Receipt
from sanderling.codec.topics import Topic
from sanderling.server import ingest
from sanderling.server.ingest import Ingest
from sanderling.server.service import Service
from tests.support.servers import delta_message
from tests.support.web import add_release, make_service

# large enough to need pages of its own in the database, so that a full one cannot take it in
BLOB = encode_delta({"w": np.random.default_rng(0).normal(size=30_000).astype(np.float32)})[0]
TOPIC = topics.build(Topic("wrists", "delta", "d1"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = make_service(tmp_path, "[limits]\nqueue_messages = 3")
    add_release(service, weights={"w": [30_000]})
    yield service
    service.close()


class PaperBroker:
    def __init__(self) -> None:
        self.receipts: list[Receipt] = []
        self.broken = False

    async def publish(self, topic: str, payload: bytes) -> None:
        if self.broken:
            raise ConnectionResetError("gone")
        assert topic == topics.build(Topic("wrists", "receipt", "d1"))
        self.receipts.append(messages.decode(Receipt, payload))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.receipts) < count:
                await asyncio.sleep(0.01)


def test_full_queue_drops_and_full_disk_gives_no_receipt(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "DISK_PAUSE", 0.05)
    broker = PaperBroker()

    async def story() -> None:
        commits = 0

        def committed() -> None:
            nonlocal commits
            commits += 1

        door = Ingest(service, broker.publish, committed)
        for sequence in range(1, 6):
            door.receive(TOPIC, delta_message(BLOB, sequence=sequence))
        door.receive("somebody/elses/topic", b"x")
        with service.store.writing() as db:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
        running = asyncio.create_task(door.run())
        await asyncio.sleep(0.5)
        assert broker.receipts == []
        assert commits == 0
        with service.store.writing() as db:
            db.execute("PRAGMA max_page_count = 1073741823")
        for sequence in (1, 2):  # as the device would: what has no receipt is sent again
            door.receive(TOPIC, delta_message(BLOB, sequence=sequence))
        await broker.until(2)
        assert {(r.sequence, r.status) for r in broker.receipts} == {(1, "accepted"), (2, "accepted")}
        assert not running.done()
        running.cancel()

    asyncio.run(story())
    assert sorted(d["sequence"] for d in service.store.deltas()) == [1, 2]


def test_receipt_that_cannot_be_sent_is_asked_for_again(service: Service) -> None:
    broker = PaperBroker()

    async def story() -> None:
        door = Ingest(service, broker.publish, lambda: None)
        running = asyncio.create_task(door.run())
        broker.broken = True
        door.receive(TOPIC, delta_message(BLOB))
        async with asyncio.timeout(10):
            while not service.store.deltas():
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        broker.broken = False
        door.receive(TOPIC, delta_message(BLOB))
        await broker.until(1)
        assert broker.receipts[0].status == "duplicate"
        assert not running.done()
        running.cancel()

    asyncio.run(story())


def test_queue_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    service = make_service(tmp_path, "[limits]\nqueue_bytes = 1000")
    door = Ingest(service, PaperBroker().publish, lambda: None)
    for _ in range(10):
        door.receive(TOPIC, b"x" * 400)
    assert door.waiting == (2, 800)
    service.close()
