"""Labelled samples in SQLite, bounded in bytes: what the device learns from, and a slice that it is judged on.

Class-balanced reservoir (Chrysakis and Moens, "Online Continual Learning from Imbalanced Data", ICML 2020): when the
store is full, a sample of a class that is not the largest replaces a random one of the largest; a sample of the largest
class replaces a random one of its own with probability stored/seen. So a rare class is never crowded out, and within a
class every sample seen has the same chance to be kept.

Whether a sample is held out is decided by a hash of the sample itself: the same sample never gets to both sides, and
no state is needed to decide. Both sides have their own share of the bytes. The worker writes, the trainer and the
supervisor read; samples are opaque bytes here (see `tensors.py`), so that the supervisor needs no numpy.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .database import Database
from .limits import LIMITS

_MIGRATIONS = (
    """
CREATE TABLE samples (
    id INTEGER PRIMARY KEY,
    held_out INTEGER NOT NULL,
    label INTEGER NOT NULL,
    size INTEGER NOT NULL,
    created REAL NOT NULL,
    inputs BLOB NOT NULL);
CREATE INDEX samples_by_class ON samples (held_out, label, id);
CREATE TABLE classes (
    held_out INTEGER NOT NULL,
    label INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (held_out, label)) WITHOUT ROWID;
CREATE TABLE outcomes (id INTEGER PRIMARY KEY AUTOINCREMENT, correct INTEGER NOT NULL)
""",
)
#: Bytes that a row takes beside its inputs (headers, index), measured on SQLite 3.40.
_ROW_OVERHEAD = 64


@dataclass(frozen=True, slots=True)
class Counts:
    """Labelled samples: all that came, those stored to train on, those stored to judge by."""

    seen: int
    stored: int
    held_out: int


class Store:
    """The sample store. `held_out` is the fraction of samples (and of the bytes) that is never trained on."""

    def __init__(
        self, path: Path, *, capacity: int, held_out: float, random_source: random.Random | None = None
    ) -> None:
        self._db = Database(path, _MIGRATIONS, durable=False)
        self._capacity = (round(capacity * (1 - held_out)), round(capacity * held_out))
        self._held_out = held_out
        self._random = random_source or random.Random()

    def add(self, samples: Sequence[tuple[bytes, int]], correct: Sequence[bool] = ()) -> int:
        """Offer labelled samples, and whether each had been predicted right; returns how many are held out.

        All or none are taken in. Raises `StorageFullError` when the disk is full.
        """
        now = time.time()
        judged = 0
        with self._db.transaction("storing labelled samples"):
            for inputs, label in samples:
                side = is_held_out(inputs, self._held_out)
                judged += side
                self._offer(int(side), label, inputs, now)
            for right in correct:
                self._db.run("INSERT INTO outcomes (correct) VALUES (?)", int(right))
            if correct:
                self._db.run(
                    "DELETE FROM outcomes WHERE id <= (SELECT max(id) FROM outcomes) - ?", LIMITS.prequential_window
                )
        return judged

    def _offer(self, side: int, label: int, inputs: bytes, now: float) -> None:
        size = len(inputs) + _ROW_OVERHEAD
        self._db.run(
            "INSERT INTO classes VALUES (?, ?, 1, 0, 0) ON CONFLICT (held_out, label) DO UPDATE SET seen = seen + 1",
            side, label,
        )  # fmt: skip
        if size > self._capacity[side]:
            return
        while self._used(side) + size > self._capacity[side]:
            largest, most = self._db.row(
                "SELECT label, stored FROM classes WHERE held_out = ? ORDER BY stored DESC, label LIMIT 1", side
            )
            seen, stored = self._db.row(
                "SELECT seen, stored FROM classes WHERE held_out = ? AND label = ?", side, label
            )
            if stored == most:  # its own class is (one of) the largest: it may only replace one of its own
                if self._random.random() >= stored / seen:
                    return
                largest = label
            self._evict(side, largest, most)
        self._db.run(
            "INSERT INTO samples (held_out, label, size, created, inputs) VALUES (?, ?, ?, ?, ?)",
            side, label, size, now, inputs,
        )  # fmt: skip
        self._db.run(
            "UPDATE classes SET stored = stored + 1, bytes = bytes + ? WHERE held_out = ? AND label = ?",
            size, side, label,
        )  # fmt: skip

    def _used(self, side: int) -> int:
        row = self._db.row("SELECT coalesce(sum(bytes), 0) FROM classes WHERE held_out = ?", side)
        return int(row[0])

    def _evict(self, side: int, label: int, stored: int) -> None:
        victim, size = self._db.row(
            "SELECT id, size FROM samples WHERE held_out = ? AND label = ? LIMIT 1 OFFSET ?",
            side, label, self._random.randrange(stored),
        )  # fmt: skip
        self._db.run("DELETE FROM samples WHERE id = ?", victim)
        self._db.run(
            "UPDATE classes SET stored = stored - 1, bytes = bytes - ? WHERE held_out = ? AND label = ?",
            size, side, label,
        )  # fmt: skip

    def identifiers(self, *, held_out: bool) -> list[int]:
        """The ids of what is stored on one side, oldest first."""
        return [row[0] for row in self._db.rows("SELECT id FROM samples WHERE held_out = ? ORDER BY id", int(held_out))]

    def fetch(self, identifiers: Sequence[int]) -> list[tuple[bytes, int]]:
        """The samples with these ids, in this order; those evicted meanwhile are left out."""
        marks = ",".join("?" * len(identifiers))
        rows = self._db.rows(f"SELECT id, inputs, label FROM samples WHERE id IN ({marks})", *identifiers)
        found = {row[0]: (row[1], row[2]) for row in rows}
        return [found[i] for i in identifiers if i in found]

    def histogram(self, classes: int) -> list[int]:
        """How many samples of each label are stored to train on; at least `classes` entries."""
        rows = self._db.rows("SELECT label, stored FROM classes WHERE held_out = 0 AND stored > 0")
        counts = [0] * max(classes, max((row[0] + 1 for row in rows), default=0))
        for label, stored in rows:
            counts[label] = stored
        return counts

    def counts(self) -> Counts:
        """Figures for telemetry and for deciding when to train."""
        seen, stored, judged = self._db.row(
            "SELECT coalesce(sum(seen), 0), coalesce(sum(iif(held_out, 0, stored)), 0),"
            " coalesce(sum(iif(held_out, stored, 0)), 0) FROM classes"
        )
        return Counts(seen, stored, judged)

    def prequential(self) -> tuple[int, int]:
        """(right, all) of the most recent predictions whose label came later."""
        right, count = self._db.row("SELECT coalesce(sum(correct), 0), count(*) FROM outcomes")
        return int(right), int(count)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def is_held_out(inputs: bytes, fraction: float) -> bool:
    """Whether this sample is one to judge by, for ever: its hash, read as a number in [0, 1), is below `fraction`."""
    number = int.from_bytes(hashlib.sha256(inputs).digest()[:7], "big") / 2**56
    return number < fraction
