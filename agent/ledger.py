"""`agent.db`: what must stay consistent across a kill at any moment lies in this one file, under one transaction.

The tables are used by `outbox.py` (deltas and events that wait for receipts), `versions.py` (personal models) and here
(counters and facts by name).
"""

from __future__ import annotations

import time
from pathlib import Path

from .database import Database

MIGRATIONS = (
    """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    base_version INTEGER NOT NULL,
    created REAL NOT NULL,
    bytes INTEGER NOT NULL DEFAULT 0,
    float32_bytes INTEGER NOT NULL DEFAULT 0,
    payload BLOB,
    status TEXT NOT NULL DEFAULT 'pending',
    reason TEXT NOT NULL DEFAULT '',
    acknowledged REAL);
CREATE INDEX outbox_pending ON outbox (sequence) WHERE status = 'pending';
CREATE TABLE personal (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    base_version INTEGER NOT NULL,
    base_digest TEXT NOT NULL,
    file TEXT NOT NULL,
    adopted INTEGER NOT NULL,
    withdrawn INTEGER NOT NULL DEFAULT 0,
    report TEXT NOT NULL,
    created REAL NOT NULL);
CREATE TABLE sent (base_digest TEXT PRIMARY KEY, weights BLOB NOT NULL);
CREATE TABLE refused (digest TEXT PRIMARY KEY, version INTEGER NOT NULL, reason TEXT NOT NULL, time REAL NOT NULL)
""",
)


class Ledger(Database):
    """The agent's main database: facts by name, and the tables of its neighbours."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, MIGRATIONS, durable=True)
        with self.transaction("starting the outbox"):
            # A device whose disk was replaced must not repeat numbers that the server has already seen from it.
            if self.row("SELECT 1 FROM sqlite_sequence WHERE name = 'outbox'") is None:
                self.run("INSERT INTO sqlite_sequence (name, seq) VALUES ('outbox', ?)", int(time.time()) * 1000)

    def number(self, name: str) -> int:
        """A counter, 0 when it was never set."""
        row = self.row("SELECT value FROM facts WHERE name = ?", name)
        return int(row[0]) if row else 0

    def text(self, name: str) -> str:
        """A fact, "" when it was never set."""
        row = self.row("SELECT value FROM facts WHERE name = ?", name)
        return str(row[0]) if row else ""

    def put(self, name: str, value: int | str) -> None:
        """Write a counter or fact."""
        self.run("INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)

    def add(self, name: str, amount: int = 1) -> int:
        """Raise a counter; returns its new value."""
        with self.transaction(f"counting {name}"):
            total = self.number(name) + amount
            self.put(name, total)
        return total

    def refuse(self, digest: str, version: int, reason: str) -> None:
        """Never fetch the release with this manifest digest again."""
        self.run("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?)", digest, version, reason, time.time())

    def refused(self) -> set[str]:
        """Digests of manifests that are never fetched again."""
        return {row[0] for row in self.rows("SELECT digest FROM refused")}
