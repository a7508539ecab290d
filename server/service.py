"""What a person or program may ask of the server: the one door for the web, the command line and tests.

Questions are ordinary methods (a few milliseconds, one thread at a time); `put_file` writes to the disk and should be
called in a thread; `release` and `rollback` are coroutines, because a pushed model is looked at in a child process: a
malformed one can abort the native runtime. Every input is checked here; what is wrong with it is a `RequestError`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from sanderling.codec.errors import CodecError
from sanderling.codec.topics import check_name

from . import ledger, overview
from .changes import Change, Changes
from .config import Settings
from .errors import ConfigurationError, NotFoundError, RequestError
from .files import Files
from .inspection import Findings, inspect
from .signing import Signer
from .store import DATABASE as DATABASE
from .store import Row, Store, note

#: What may be pushed for a model, and whether a release needs it.
FILES = {"model.onnx": True, "anchor.npz": False, "proxy.npz": False}
KEY, TOKEN = "release.key", "api.token"

Notes = dict[str, str | int | float]


class Service:
    """The server's questions and actions on the data directory of `settings`; needs no broker.

    Raises `ConfigurationError` if the directory has not been made by `sanderling server init`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        data = settings.data
        if not (data / DATABASE).is_file():
            raise ConfigurationError(
                f"{data} holds no server ({DATABASE} is missing)", "run `sanderling server init` first"
            )
        self.store = Store(data / DATABASE)
        self.files = Files(data / "files")
        self.signer = Signer(settings.server.fleet, data / KEY)
        self.token = _token(data / TOKEN)
        self.changes = Changes(settings.limits.subscriber_changes)
        self.started = time.time()
        #: Called after a release, to have it published; the app puts the publisher here.
        self.announce: Callable[[], None] = lambda: None
        self.broker: Row = {
            "address": str(settings.broker_address),
            "connected": False,
            "reason": "not started",
            "protocol": 0,
        }
        #: Held while a version is being made: one release at a time, pushed or merged.
        self.releasing = asyncio.Lock()

    def close(self) -> None:
        """End live subscriptions and close the database."""
        self.changes.close()
        self.store.close()

    # ---- questions

    def status(self) -> Row:
        """The fleet at a glance: see `overview.status`."""
        return {**overview.status(self.store, self.settings), "broker": dict(self.broker), "started": self.started}

    def devices(self) -> list[Row]:
        """All devices: see `Store.devices`."""
        return self.store.devices()

    def device(self, name: str) -> Row:
        """One device, with its newest `events` and `deltas`. Raises `NotFoundError`."""
        row = self.store.device(name)
        return {**row, "events": self.store.events(50, name), "deltas": self.store.deltas(50, name)}

    def history(self, device: str | None = None, since: float = 0.0, limit: int = 2000) -> list[Row]:
        """Telemetry over time, oldest first, of one device or of all: rows with device, received, model, report."""
        limit = max(1, min(limit, 20_000))
        if device is None:
            return self.store.history(since, limit)
        self.store.device(device)
        return [{"device": device, **row} for row in self.store.device_history(device, since, limit)]

    def models(self) -> list[Row]:
        """All models: see `Store.models`; with `pending`, what waits for a merge."""
        return [{**row, "pending": self.store.pending(row["name"])} for row in self.store.models()]

    def releases(self, model: str) -> list[Row]:
        """A model's releases, newest first: see `Store.releases`."""
        return self.store.releases(model)

    def jobs(self, limit: int = 100) -> list[Row]:
        """The newest merges first: see `Store.jobs`."""
        return self.store.jobs(limit)

    def audit(self, limit: int = 100) -> list[Row]:
        """The newest entries of the audit log first."""
        return self.store.audit(limit)

    def events(self, limit: int = 100) -> list[Row]:
        """The newest events of all devices first."""
        return self.store.events(limit)

    def metrics(self) -> dict[str, float]:
        """Counters (names end in `_total`) and gauges of the whole fleet, no device named."""
        return overview.metrics(self.store, self.settings, connected=bool(self.broker["connected"]))

    def file(self, model: str, version: int, name: str) -> bytes:
        """A file of a release. Raises `NotFoundError`."""
        files = self.store.release(model, version)["files"]
        if name not in files:
            raise NotFoundError(f"version {version} of {model} has no {name[:80]!r}", f"it has {', '.join(files)}")
        return self.files.read(files[name]["sha256"])

    def subscribe(self) -> AsyncIterator[Change]:
        """Changes from now on, as they happen."""
        return self.changes.subscribe()

    # ---- actions

    def put_file(self, model: str, name: str, data: bytes, *, actor: str = "operator") -> Row:
        """Keep a file for the next `release` of `model`; returns its name, sha256 and length."""
        _named("model", model)
        if name not in FILES:
            raise RequestError(f"{name[:80]!r} is not a file of a model", f"push {', '.join(FILES)}")
        if not data:
            raise RequestError(f"{name} is empty", "push the file's content")
        if len(data) > self.settings.limits.largest_file:
            raise RequestError(
                f"{name} has {len(data)} bytes, at most {self.settings.limits.largest_file} are taken",
                "raise limits.largest_file in server.toml",
            )
        row: Row = {"name": name, "sha256": self.files.add(data), "length": len(data)}
        with self.store.writing() as db:
            db.table("staged").insert({"model": model, "received": time.time(), **row}, replace=True)
            note(db, actor, "stage", f"{model} {name}", {"sha256": row["sha256"], "length": row["length"]})
        return row

    async def release(
        self, model: str, labels: Sequence[str] = (), notes: Notes | None = None, *, actor: str = "operator"
    ) -> int:
        """Sign and publish the staged files as the next version; returns that. The first one creates the model.

        What was not staged anew (anchor, proxy, labels) is taken from the current release. Raises `RequestError` with
        the reason if the model does not load, cannot be trained or does not fit anchor or proxy.
        """
        _named("model", model)
        async with self.releasing:
            current = self.store.current(model)
            staged = {name: row["sha256"] for name, row in self.store.staged(model).items()}
            if "model.onnx" not in staged:
                raise RequestError(f"no model.onnx was pushed for {model}", "push it before the release")
            kept = {name: row["sha256"] for name, row in current["files"].items()} if current else {}
            chosen = {**kept, **staged}
            findings = await inspect({name: self.files.path(sha) for name, sha in chosen.items()}, self.settings.limits)
            names = list(labels) or (current["labels"] if current else [])
            _check_labels(names, findings)
            return await asyncio.to_thread(
                self._record, model, chosen, findings, names, dict(notes or {}), "push", {}, actor
            )

    async def rollback(self, model: str, to_version: int, *, actor: str = "operator") -> int:
        """Publish the files of an older version again, as a new and higher version; returns that."""
        async with self.releasing:
            old = self.store.release(model, to_version)
            current = self.store.current(model)
            if current is not None and current["version"] == to_version:
                raise RequestError(f"{model} is at version {to_version} already", "name an older version")
            findings = Findings(weights=old["weights"], metrics=old["metrics"])
            chosen = {name: row["sha256"] for name, row in old["files"].items()}
            notes: Notes = {**old["notes"], "rolled_back_to": to_version}
            lineage = {"rolled_back_to": to_version, "from_version": current["version"] if current else None}
            return await asyncio.to_thread(
                self._record, model, chosen, findings, old["labels"], notes, "rollback", lineage, actor
            )

    def _record(
        self,
        model: str,
        chosen: dict[str, str],
        findings: Findings,
        labels: list[str],
        notes: Notes,
        source: str,
        lineage: Row,
        actor: str,
    ) -> int:
        files = {name: self.files.read(sha) for name, sha in chosen.items()}
        try:
            with self.store.writing() as db:
                version = ledger.next_version(db, model)
                row = self.signer.release(
                    model=model, version=version, files=files, weights=findings.weights, labels=labels, notes=notes,
                    source=source, metrics=findings.metrics, lineage=lineage,
                )  # fmt: skip
                ledger.add_release(db, row, actor=actor)
                if source == "push":
                    for name, sha in chosen.items():  # a file that was pushed meanwhile waits for the next release
                        db.execute("DELETE FROM staged WHERE model = ? AND name = ? AND sha256 = ?", [model, name, sha])
        except CodecError as error:
            raise RequestError(f"{model} cannot be released: {error}") from error
        self.told("release", model)
        return version

    def told(self, kind: Any, subject: str) -> None:
        """Pass a change to viewers and, for a release, to the publisher; from any thread."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        loop.call_soon_threadsafe(self.changes.tell, kind, subject)
        if kind == "release":
            loop.call_soon_threadsafe(self.announce)

    _loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell viewers and publisher on this loop; without one, nobody is told."""
        self._loop = loop


def _named(what: str, name: str) -> None:
    try:
        check_name(what, name)
    except CodecError as error:
        raise RequestError(str(error)) from error


def _check_labels(labels: list[str], findings: Findings) -> None:
    if len(set(labels)) != len(labels) or any(not isinstance(n, str) or not 0 < len(n) <= 200 for n in labels):
        raise RequestError("labels must be different texts of 1 to 200 characters", "name each class once")
    if labels and findings.classes and len(labels) != findings.classes:
        raise RequestError(
            f"{len(labels)} labels for a model with {findings.classes} classes", "name every class, in order"
        )


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the API token {path} cannot be read: {error}", "restore it, or write a new one"
        ) from error
    if len(token) < 16:
        raise ConfigurationError(f"the API token in {path} is shorter than 16 characters", "write a longer one")
    return token
