"""What has just changed, for those who watch: one bounded queue per viewer, so a slow one costs only its own view."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

Kind = Literal["device", "telemetry", "delta", "event", "release", "job", "broker", "missed"]


class Change(msgspec.Struct, frozen=True):
    """Something changed: ask for it again. `subject` is a device, a model or a job; "missed": ask for everything."""

    kind: Kind
    subject: str
    time: float


class Changes:
    """Hands every change to every subscriber; to be used on one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queues: set[asyncio.Queue[Change | None]] = set()
        self._closed = False

    def tell(self, kind: Kind, subject: str) -> None:
        """Pass a change on; a viewer whose queue is full gets one "missed" in place of what it could not take."""
        change = Change(kind, subject, time.time())
        for queue in self._queues:
            if queue.qsize() < self._limit - 1:
                queue.put_nowait(change)
            elif queue.qsize() == self._limit - 1:
                queue.put_nowait(Change("missed", "", change.time))

    async def subscribe(self) -> AsyncIterator[Change]:
        """Changes from now on, until `close` or until the reader stops reading."""
        queue: asyncio.Queue[Change | None] = asyncio.Queue(self._limit + 1)
        self._queues.add(queue)
        try:
            while not self._closed:
                change = await queue.get()
                if change is None:
                    return
                yield change
        finally:
            self._queues.discard(queue)

    def close(self) -> None:
        """End every subscription: the server stops."""
        self._closed = True
        for queue in self._queues:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(None)
