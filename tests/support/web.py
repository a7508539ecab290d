"""A server's face under test: a service on a fresh data directory, the same behind a socket, and a fleet's past."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from sanderling.server import ledger
from sanderling.server.config import Settings, parse
from sanderling.server.service import Service
from sanderling.server.setup import initialize
from sanderling.server.store import note
from sanderling.server.web.api import create_app
from tests.support.brokers import free_port

MIB = 2**20


def settings(directory: Path, extra: str = "") -> Settings:
    """Settings of a fleet called "wrists" with its data in `directory`."""
    return parse(f'[server]\nfleet = "wrists"\ndata_directory = "."\n{extra}', directory / "server.toml")


def make_service(directory: Path, extra: str = "") -> Service:
    """A service on a data directory as `sanderling server init` leaves it."""
    initialize(directory, "wrists")
    return Service(settings(directory, extra))


class Api:
    """The application of a service, asked without a socket."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._app = create_app(service)

    def ask(self, method: str, path: str, *, token: str | None = "", **given: Any) -> httpx.Response:
        """One request; the token is the right one unless another, or None for none, is given."""
        headers = dict(given.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.service.token}".encode("latin-1")

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, headers=headers, **given)

        return asyncio.run(ask())

    def get(self, path: str) -> Any:
        """The JSON answer of a reading request without token."""
        answer = self.ask("GET", path, token=None)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The address of `service` behind uvicorn on a free loopback port, in a thread with a loop of its own."""
    port = free_port()
    config = uvicorn.Config(create_app(service), host="127.0.0.1", port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    loop = asyncio.new_event_loop()
    service.attach(loop)
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(),), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        loop.call_soon_threadsafe(service.changes.close)
        thread.join(20)
        assert not thread.is_alive(), "uvicorn did not stop"
        loop.close()


def add_release(service: Service, *, model: str = "wrist", source: str = "push", **changed: Any) -> int:
    """A signed release straight into the ledger (its model.onnx is not a real one); returns its version."""
    files = changed.pop("files", {"model.onnx": b"onnx" * 9000})
    for data in files.values():
        service.files.add(data)
    created = changed.pop("created", None)
    with service.store.writing() as db:
        version = ledger.next_version(db, model)
        given: dict[str, Any] = {"weights": {"w": [3]}, "labels": ["rest", "walk"], "notes": {}, "metrics": {},
                                 "lineage": {}, **changed}  # fmt: skip
        row = service.signer.release(model=model, version=version, files=files, source=source, **given)
        ledger.add_release(db, row if created is None else {**row, "created": created}, actor="test")
    service.told("release", model)
    return version


def report(**changed: Any) -> dict[str, Any]:
    """A telemetry message as a device sends it, as JSON values."""
    figures: dict[str, Any] = {
        "v": 1, "time": time.time(), "boot": 1, "model": "wrist", "version": 1, "serving": "fleet", "samples_seen": 200,
        "samples_stored": 150, "prequential": {"value": 0.75, "count": 64},
        "held_out_fleet": {"value": 0.7, "count": 40},
        "held_out_personal": None, "resident": {"supervisor": 27 * MIB, "worker": 58 * MIB}, "training_runs": 2,
        "training_peak": 97 * MIB, "memory_limit": 128 * MIB, "deltas_sent": 2, "delta_bytes": 6000,
        "float32_bytes": 88000, "outbox": 0,
    }  # fmt: skip
    return {**figures, **changed}


def add_device(service: Service, name: str, *, online: bool = True, seen: float | None = None) -> None:
    """A device that was born and has not reported yet."""
    at = time.time() if seen is None else seen
    with service.store.writing() as db:
        db.table("devices").insert(
            {"name": name, "online": int(online), "boot": 1, "agent_version": "0.1.0", "first_seen": at,
             "last_seen": at, "models": "{}", "telemetry": None}, replace=True,
        )  # fmt: skip
    service.told("device", name)


def add_report(service: Service, name: str, received: float | None = None, **changed: Any) -> None:
    """One telemetry message of a device, as if it had arrived at `received`."""
    add_reports(service, [(name, time.time() if received is None else received, changed)])


def add_reports(service: Service, reports: Iterable[tuple[str, float, dict[str, Any]]]) -> None:
    """Telemetry messages (device, time received, what differs from `report`), in one transaction."""
    with service.store.writing() as db:
        for name, at, changed in reports:
            text = json.dumps(report(**changed))
            db.table("telemetry").insert({"device": name, "received": at, "model": "wrist", "report": text})
            db.execute("UPDATE devices SET telemetry = ?, last_seen = ? WHERE name = ?", [text, at, name])
    service.told("telemetry", "")


def add_delta(service: Service, name: str, sequence: int, *, base: int = 1, merged_into: int | None = None,
              status: str = "accepted") -> None:  # fmt: skip
    """The record of a delta."""
    with service.store.writing() as db:
        db.table("deltas").insert(
            {"device": name, "model": "wrist", "base_version": base, "sequence": sequence, "received": time.time(),
             "samples": 100, "histogram": "[50,50]", "bytes": 3000 + 7 * sequence, "float32_bytes": 44_000,
             "status": status, "reason": "", "job": 1 if merged_into else None, "merged_into": merged_into},
        )  # fmt: skip


def add_event(service: Service, name: str, sequence: int, kind: str, reason: str = "", **changed: Any) -> None:
    """An event of a device."""
    with service.store.writing() as db:
        row = {"device": name, "sequence": sequence, "received": time.time(), "time": time.time(), "kind": kind,
               "model": "wrist", "version": 1, "reason": reason}  # fmt: skip
        db.table("events").insert({**row, **changed})
    service.told("event", name)


def tell_story(service: Service, devices: int = 5, seconds: float = 170.0) -> None:
    """A fleet that has learned for a while: four releases, telemetry every few seconds, deltas, events, audit."""
    end = time.time()
    begin = end - seconds
    names = [f"wrist-{n + 5}" for n in range(devices)]
    for n, name in enumerate(names):
        add_device(service, name, online=n != devices - 1 or devices < 3, seen=begin + n)
    released = [begin - 2, begin + 0.3 * seconds, begin + 0.55 * seconds, begin + 0.8 * seconds]
    for version, at in enumerate(released, 1):
        metrics: dict[str, Any] = {"proxy_accuracy": 0.934, "trainable": True}
        lineage: dict[str, Any] = {}
        if version > 1:
            metrics = {"candidate": "between_0.5", "validation_accuracy": 0.921 + version / 300, "agreement": 0.88,
                       "previous_validation_accuracy": 0.93, "validation_samples": 180}  # fmt: skip
            lineage = {
                "from_version": version - 1, "devices": names[:4], "deltas": 6, "ensemble": "histogram",
                "ensemble_accuracy": {"histogram": 0.941, "plain": 0.902}, "choice": "best score of 5: between_0.5",
                "contributions": [{"device": name, "base_version": version - 1, "samples": 90 + 12 * n, "staleness": 0,
                                   "share": 0.25} for n, name in enumerate(names[:4])],
                "candidates": {
                    name: {"accuracy": a, "agreement": g, "score": (a + g) / 2}
                    for name, a, g in (("aggregate", 0.905, 0.861), ("cautious", 0.93, 0.79),
                                       ("between_0.5", 0.927, 0.88),
                                       ("distilled", 0.919, 0.884), ("present", 0.931, 0.74))
                },
                "seconds": {"aggregate": 0.2, "ask": 1.1, "distill": 4.3, "measure": 0.6}, "peak_bytes": 180 * MIB,
            }  # fmt: skip
        add_release(service, source="push" if version == 1 else "merge", metrics=metrics, lineage=lineage, created=at,
                    labels=["raise", "fold", "turn", "press", "swing", "reach", "slide"])  # fmt: skip
    steps = 60
    told: list[tuple[str, float, dict[str, Any]]] = []
    for step in range(steps):
        at = begin + seconds * (step + 1) / steps
        version = sum(at > r for r in released)
        grown = 1 - 0.985 ** (2.2 * step)
        for n, name in enumerate(names):
            if n == devices - 1 and step > 45:
                continue
            base = 0.66 + 0.035 * n
            own = min(0.98, base + (0.27 - 0.02 * n) * grown + 0.012 * ((step * 7 + n * 3) % 5 - 2))
            fleet = min(0.95, base + 0.03 * (version - 1))
            personal = step > 6 + 2 * n
            trainer = {"trainer": 91 * MIB} if (step + n) % 7 < 2 else {}
            changed: dict[str, Any] = {
                "version": version,
                "serving": "personal" if personal else "fleet",
                "held_out_fleet": {"value": fleet, "count": 41},
                "held_out_personal": {"value": own, "count": 41} if personal else None,
                "prequential": {"value": min(0.99, own - 0.02), "count": 64},
                "training_peak": int((92 + 1.7 * n + min(step, 30) / 12) * MIB) if personal else 0,
                "resident": {"supervisor": 27 * MIB + n * 100_000, "worker": (56 + n) * MIB, **trainer},
                "training_runs": step // 10,
                "outbox": int(n == 1),
            }
            told.append((name, at, changed))
    add_reports(service, told)
    for n, name in enumerate(names):
        for sequence in range(1, 5 + n):
            add_delta(service, name, sequence, base=1 + sequence // 3, merged_into=2 if sequence < 3 else None)
        add_event(service, name, 1, "installed", version=4, received=released[3] + 2 + n)
    add_event(service, names[0], 2, "personal_adopted", "0.927 against 0.756 on 41 held-out samples", version=4)
    add_event(
        service,
        names[1 % devices],
        2,
        "rejected",
        "chunk 3 of model.onnx does not have its digest; asked again",
        version=4,
    )
    with service.store.writing() as db:
        note(db, "api from 127.0.0.1", "stage", "wrist model.onnx", {"length": 52_311})
    service.broker.update(connected=True, reason="connected", protocol=5)
