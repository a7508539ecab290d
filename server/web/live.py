"""Server-Sent Events: what changed, told to each viewer at most a few times a second.

Changes that come close together are told as one event, so that a busy fleet does not make every page ask for everything
hundreds of times a second. An event names what changed, not the figures: the viewer asks for those it shows.

    event: change
    data: {"time": 1790000000.0, "changed": {"telemetry": ["wrist-5"], "release": ["wrist"]}}

A list of subjects that would grow beyond `MOST_SUBJECTS` is given as null: all of that kind. A comment every
`HEARTBEAT` seconds keeps proxies from closing the line and finds viewers that have left.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec

from ..changes import Change
from ..service import Service

#: Seconds between two events to a viewer, and of silence before a comment is sent.
PAUSE, HEARTBEAT = 0.4, 15.0
MOST_SUBJECTS = 50
MOST_VIEWERS = 256


class Gathered:
    """Changes since the last event, in bounded memory whatever the viewer's speed."""

    def __init__(self) -> None:
        self.changed: dict[str, set[str] | None] = {}
        self.ready = asyncio.Event()

    def add(self, change: Change) -> None:
        """Note one change."""
        subjects = self.changed.setdefault(change.kind, set())
        if subjects is not None:
            subjects.add(change.subject)
            if len(subjects) > MOST_SUBJECTS:
                self.changed[change.kind] = None
        self.ready.set()

    def take(self) -> bytes:
        """The event for what was gathered, which is forgotten."""
        changed = {kind: sorted(names) if names is not None else None for kind, names in self.changed.items()}
        self.changed = {}
        self.ready.clear()
        return b"event: change\ndata: " + msgspec.json.encode({"time": time.time(), "changed": changed}) + b"\n\n"


class Live:
    """The viewers of one server."""

    def __init__(self, service: Service, heartbeat: float = HEARTBEAT) -> None:
        self._service, self._heartbeat = service, heartbeat
        self.viewers = 0

    async def stream(self) -> AsyncIterator[bytes]:
        """The lines for one viewer, until it leaves or the server stops."""
        gathered = Gathered()
        pump = asyncio.create_task(self._pump(gathered))
        self.viewers += 1
        try:
            yield b"retry: 2000\n\n" + gathered.take()
            while not pump.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._heartbeat):
                        await gathered.ready.wait()
                if gathered.changed:
                    yield gathered.take()
                    await asyncio.sleep(PAUSE)
                elif not pump.done():
                    yield b": still here\n\n"
        finally:
            self.viewers -= 1
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, gathered: Gathered) -> None:
        try:
            async for change in self._service.subscribe():
                gathered.add(change)
        finally:
            gathered.ready.set()  # the server stops: whoever waits is to see that
