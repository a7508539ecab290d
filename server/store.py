"""The server's database: one connection that writes, one that reads, and the questions that people ask.

SQLite through sqlite-utils, write-ahead log, `synchronous=FULL`: what `writing()` has left is on the disk. Writers take
turns (a lock, not SQLITE_BUSY), readers see the last commit and wait for nobody. Every method may be called from any
thread. What changes deltas, jobs and releases is in `ledger.py`; here is what looks.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from .errors import NotFoundError, StorageError
from .schema import migrate

Row = dict[str, Any]
#: The file's name in the data directory.
DATABASE = "sanderling.db"

#: Columns that hold JSON, by whatever table; queries give them back as values.
_JSON = frozenset({
    "models", "telemetry", "report", "histogram", "files", "weights", "labels", "notes", "metrics", "lineage",
    "settings", "result", "detail",
})  # fmt: skip


class Store:
    """The database in `path`, created if absent; `readonly`: another process keeps it, this one looks.

    Raises `StorageError` when it cannot be opened.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        with translated(path):
            if readonly:
                self._writer = self._reader = _open(path)
                self._reader.execute("PRAGMA query_only = ON")
                return
            self._writer = _open(path)
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            migrate(self._writer)
            self._reader = _open(path)
            self._reader.execute("PRAGMA query_only = ON")

    def close(self) -> None:
        """Close both connections; further calls fail."""
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    @contextmanager
    def writing(self) -> Iterator[Database]:
        """One transaction: all of it is on the disk afterwards, or (with the exception that is raised) none."""
        with self._write_lock, translated(self.path), self._writer.atomic():
            yield self._writer

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """The rows of a SELECT as dictionaries, JSON columns decoded."""
        with self._read_lock, translated(self.path):
            return decoded(self._reader.execute(sql, parameters))

    # ---- devices

    def devices(self) -> list[Row]:
        """All devices by name: name, online, boot, agent_version, first_seen, last_seen, models, telemetry (the last
        report or None), and from the deltas: deltas_accepted, deltas_rejected, deltas_merged, delta_bytes,
        float32_bytes.
        """
        return [_device(row) for row in self.rows(_DEVICES + " GROUP BY v.name ORDER BY v.name")]

    def device(self, name: str) -> Row:
        """One device, as in `devices`. Raises `NotFoundError`."""
        rows = self.rows(_DEVICES + " WHERE v.name = ? GROUP BY v.name", [name])
        if not rows:
            raise NotFoundError(f"no device called {name[:80]!r} has reported", "see `sanderling fleet devices`")
        return _device(rows[0])

    def device_history(self, name: str, since: float = 0.0, limit: int = 2000) -> list[Row]:
        """Reports of one device since a time, oldest first: received, model and `report` (the telemetry message)."""
        return self.rows(
            "SELECT * FROM (SELECT id, received, model, report FROM telemetry WHERE device = ? AND received >= ?"
            " ORDER BY id DESC LIMIT ?) ORDER BY id",
            [name, since, limit],
        )

    def history(self, since: float = 0.0, limit: int = 20_000) -> list[Row]:
        """Reports of all devices since a time, oldest first: device, received, model, report."""
        return self.rows(
            "SELECT * FROM (SELECT id, device, received, model, report FROM telemetry WHERE received >= ?"
            " ORDER BY id DESC LIMIT ?) ORDER BY id",
            [since, limit],
        )

    def events(self, limit: int = 100, device: str | None = None) -> list[Row]:
        """The newest events first: device, sequence, received, time, kind, model, version, reason."""
        where, parameters = ("", []) if device is None else ("WHERE device = ?", [device])
        return self.rows(f"SELECT * FROM events {where} ORDER BY id DESC LIMIT ?", [*parameters, limit])

    # ---- deltas

    def deltas(self, limit: int = 100, device: str | None = None, model: str | None = None) -> list[Row]:
        """The newest deltas first, without their bytes: see the table in `schema.py`."""
        named = {"device": device, "model": model}
        chosen = {key: value for key, value in named.items() if value is not None}
        where = "WHERE " + " AND ".join(f"{key} = ?" for key in chosen) if chosen else ""
        return self.rows(f"SELECT * FROM deltas {where} ORDER BY id DESC LIMIT ?", [*chosen.values(), limit])

    def pending(self, model: str) -> Row:
        """What waits for a merge of `model`: devices, deltas, oldest (time received, or None)."""
        return self.rows(
            "SELECT count(DISTINCT device) AS devices, count(*) AS deltas, min(received) AS oldest FROM deltas"
            " WHERE model = ? AND status = 'accepted' AND job IS NULL",
            [model],
        )[0]

    # ---- models and releases

    def models(self) -> list[Row]:
        """All models by name: name, created, current_version, and `labels` of the current release."""
        return self.rows(
            "SELECT m.*, r.labels FROM models m LEFT JOIN releases r ON r.model = m.name AND r.version ="
            " m.current_version ORDER BY m.name"
        )

    def releases(self, model: str) -> list[Row]:
        """A model's releases, newest first: version, created, source ("push", "merge", "rollback"), digest, files
        ({name: {sha256, length}}), labels, notes, metrics, lineage. Raises `NotFoundError`."""
        rows = self.rows(f"SELECT {_RELEASE} FROM releases WHERE model = ? ORDER BY version DESC", [model])
        if not rows:
            raise NotFoundError(f"no model called {model[:80]!r} was released", "see `sanderling model list`")
        return rows

    def release(self, model: str, version: int) -> Row:
        """One release, with `weights` ({name: shape}) and `manifest` (signed bytes). Raises `NotFoundError`."""
        rows = self.rows("SELECT * FROM releases WHERE model = ? AND version = ?", [model, version])
        if not rows:
            raise NotFoundError(f"there is no version {version} of {model[:80]!r}", "see `sanderling model show`")
        return rows[0]

    def current(self, model: str) -> Row | None:
        """The release that the fleet should run, as `release` gives it, or None before the first."""
        rows = self.rows(
            "SELECT r.* FROM releases r JOIN models m ON m.name = r.model AND m.current_version = r.version"
            " WHERE m.name = ?",
            [model],
        )
        return rows[0] if rows else None

    def staged(self, model: str) -> dict[str, Row]:
        """Files that wait for a release of `model`, by name: sha256, length, received."""
        return {row["name"]: row for row in self.rows("SELECT * FROM staged WHERE model = ?", [model])}

    # ---- jobs, audit, counters

    def jobs(self, limit: int = 100) -> list[Row]:
        """The newest jobs first; state is "running", "done", "refused" or "failed"."""
        return self.rows("SELECT * FROM jobs ORDER BY id DESC LIMIT ?", [limit])

    def audit(self, limit: int = 100) -> list[Row]:
        """The newest entries of the audit log first: time, actor, action, subject, detail."""
        return self.rows("SELECT * FROM audit ORDER BY id DESC LIMIT ?", [limit])

    def counters(self) -> dict[str, int]:
        """Totals since the database was made."""
        return {row["name"]: row["value"] for row in self.rows("SELECT * FROM counters ORDER BY name")}


def count(db: Database, name: str, by: int = 1) -> None:
    """Add to a counter, inside the caller's transaction."""
    db.execute(
        "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + ?",
        [name, by, by],
    )


def note(db: Database, actor: str, action: str, subject: str, detail: Row) -> None:
    """Write a line of the audit log, inside the caller's transaction."""
    db.table("audit").insert(
        {"time": time.time(), "actor": actor, "action": action, "subject": subject, "detail": json.dumps(detail)}
    )


def decoded(cursor: sqlite3.Cursor) -> list[Row]:
    """A cursor's rows as dictionaries, JSON columns decoded."""
    names = [column[0] for column in cursor.description]
    return [
        {n: json.loads(v) if n in _JSON and isinstance(v, str) else v for n, v in zip(names, row, strict=True)}
        for row in cursor
    ]


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's and the file system's failures as `StorageError`, with the remedy."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
            raise  # ours, not the disk's
        text = str(error)
        remedy = "free space on that disk; devices keep what was not acknowledged and send it again"
        if "full" not in text and "disk" not in text:
            remedy = "check permissions and the disk; restore a backup if the file is damaged"
        raise StorageError(f"database {path}: {text}", remedy) from error


def _open(path: Path) -> Database:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=10.0)
    db = Database(connection, execute_plugins=False)
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _device(row: Row) -> Row:
    return {**row, "online": bool(row["online"])}


_RELEASE = "model, version, created, source, digest, files, labels, notes, metrics, lineage"
_DEVICES = """
SELECT v.*, coalesce(sum(d.status = 'accepted'), 0) AS deltas_accepted,
       coalesce(sum(d.status = 'rejected'), 0) AS deltas_rejected,
       coalesce(sum(d.merged_into IS NOT NULL), 0) AS deltas_merged,
       coalesce(sum(d.bytes) FILTER (WHERE d.status = 'accepted'), 0) AS delta_bytes,
       coalesce(sum(d.float32_bytes) FILTER (WHERE d.status = 'accepted'), 0) AS float32_bytes
FROM devices v LEFT JOIN deltas d ON d.device = v.name
"""
