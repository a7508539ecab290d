"""Keep the broker showing what the fleet should run: the current release of every model and its chunks, all retained.

What should be there follows from the database alone, so publishing is repeating one idempotent step until it succeeds:
chunks first, then the manifest that names them, then away with chunks that no current release names. On every
connection everything is published anew, because a broker that was killed has lost what it retained. Chunks are written
down before they are published, so that a server killed in between still removes them some day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from sanderling.codec import topics
from sanderling.codec.topics import Topic

from .errors import ServerError
from .files import Files
from .signing import chunks_of
from .store import Row, Store

log = logging.getLogger(__name__)

#: Chunks on their way at once, and seconds until a failed step is repeated.
WINDOW, RETRY = 16, 1.0


class Wire(Protocol):
    """The part of `host.mqtt.Connection` that publishing needs."""

    connected: bool

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout: float = 10.0) -> None:
        """Publish and wait for the broker's acknowledgement; raises `OSError` or `TimeoutError`."""


class Publisher:
    """Publishes the current releases in `store` over `wire`."""

    def __init__(self, fleet: str, store: Store, files: Files, wire: Wire) -> None:
        self._fleet, self._store, self._files, self._wire = fleet, store, files, wire
        self._wake = asyncio.Event()
        self._chunks: set[str] = set()
        self._manifests: dict[str, str] = {}

    def wake(self) -> None:
        """There may be something new to publish."""
        self._wake.set()

    def reconnected(self) -> None:
        """The broker may have forgotten everything."""
        self._chunks.clear()
        self._manifests.clear()
        self._wake.set()

    async def run(self) -> None:
        """Publish whenever there is something to, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._wire.connected:
                continue  # `reconnected` will come
            try:
                await self.step()
            except (OSError, TimeoutError, ServerError) as error:
                log.warning("publishing is repeated in %.0f s: %s", RETRY, error)
                await asyncio.sleep(RETRY)
                self._wake.set()

    async def step(self) -> None:
        """Make the broker show what it should. Raises `OSError`, `TimeoutError`, `StorageError`."""
        releases = await asyncio.to_thread(self._current)
        wanted: set[str] = set()
        for release in releases:
            chunks = await asyncio.to_thread(chunks_of, release, self._files)
            wanted |= set(chunks)
            if self._manifests.get(release["model"]) == release["digest"]:
                continue
            missing = {digest: data for digest, data in chunks.items() if digest not in self._chunks}
            await asyncio.to_thread(self._remember, missing)
            await self._publish_chunks(missing)
            topic = topics.build(Topic(self._fleet, "release", release["model"]))
            await self._wire.publish(topic, release["manifest"], retain=True)
            self._manifests[release["model"]] = release["digest"]
            log.info("published %s version %d in %d chunks", release["model"], release["version"], len(chunks))
        stale = {row["sha256"] for row in self._store.rows("SELECT sha256 FROM published_chunks")} - wanted
        if stale:
            await self._publish_chunks(dict.fromkeys(stale, b""))
            await asyncio.to_thread(self._forget, stale)

    async def _publish_chunks(self, chunks: dict[str, bytes]) -> None:
        window = asyncio.Semaphore(WINDOW)

        async def one(digest: str, data: bytes) -> None:
            async with window:
                await self._wire.publish(topics.build(Topic(self._fleet, "chunk", digest)), data, retain=True)
            if data:
                self._chunks.add(digest)
            else:
                self._chunks.discard(digest)

        async with asyncio.timeout(600):
            results = await asyncio.gather(*(one(*item) for item in chunks.items()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _current(self) -> list[Row]:
        found = [self._store.current(row["name"]) for row in self._store.models()]
        return [release for release in found if release is not None]

    def _remember(self, digests: Iterable[str]) -> None:
        with self._store.writing() as db:
            for digest in digests:
                db.execute("INSERT OR IGNORE INTO published_chunks (sha256) VALUES (?)", [digest])

    def _forget(self, digests: Iterable[str]) -> None:
        with self._store.writing() as db:
            for digest in digests:
                db.execute("DELETE FROM published_chunks WHERE sha256 = ?", [digest])
