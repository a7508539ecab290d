"""Live changes: told soon, gathered, bounded, and ended with the server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Iterator

from sanderling.server.changes import Change
from sanderling.server.service import Service
from sanderling.server.web.live import MOST_SUBJECTS, Gathered, Live
from tests.support.web import add_device, serving


def events(lines: Iterator[bytes]) -> Iterator[dict[str, list[str] | None]]:
    """What the events of a stream say has changed."""
    for line in lines:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])["changed"]


def test_a_viewer_hears_of_a_change_soon(service: Service) -> None:
    with serving(service) as address, urllib.request.urlopen(f"{address}/api/live", timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        heard = events(answer)
        assert next(heard) == {}
        begun = time.monotonic()
        threading.Timer(0.2, add_device, (service, "wrist-5")).start()
        assert next(heard) == {"device": ["wrist-5"]}
        assert time.monotonic() - begun < 5


def test_a_stopping_server_lets_its_viewers_go(service: Service) -> None:
    with serving(service) as address:
        answer = urllib.request.urlopen(f"{address}/api/live", timeout=20)
        next(events(answer))
    with answer:
        assert list(events(answer)) == []


def test_many_changes_become_one_bounded_event() -> None:
    gathered = Gathered()
    for n in range(10 * MOST_SUBJECTS):
        gathered.add(Change("telemetry", f"d{n % 1000}", 0.0))
        gathered.add(Change("release", "wrist", 0.0))
    (changed,) = events(iter(gathered.take().splitlines()))
    assert changed == {"telemetry": None, "release": ["wrist"]}
    assert gathered.changed == {} and not gathered.ready.is_set()


def test_silence_is_filled_and_a_viewer_that_leaves_is_forgotten(service: Service) -> None:
    async def view() -> None:
        live = Live(service, heartbeat=0.05)
        stream = live.stream()
        first = await anext(stream)
        assert first.startswith(b"retry:") and live.viewers == 1
        assert await anext(stream) == b": still here\n\n"
        service.changes.tell("job", "1")
        assert b'"job":["1"]' in await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator has it
        assert live.viewers == 0

    asyncio.run(view())
