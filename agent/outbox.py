"""Deltas and events that the server has not yet confirmed, in SQLite; confirmed ones stay as a log without payload.

A PUBACK says that a broker has a message, not that the server stored it. So a row is offered again, at every reconnect
and with jittered backoff, until an application receipt names it. Sequence numbers come from AUTOINCREMENT: never
reused, whatever was deleted. No I/O beyond SQLite here; `sync.py` does the sending.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from sanderling.codec.messages import Delta, Event, Receipt, encode

from .ledger import Ledger
from .limits import LIMITS

#: As in `messages.Event.kind`.
EventKind = Literal[
    "installed", "rejected", "rolled_back", "training_failed", "worker_crashed", "personal_adopted",
    "chunk_refused", "storage_full",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Totals:
    """Traffic so far: deltas queued, their bytes, what they would take as plain float32, rows without a receipt."""

    deltas: int
    delta_bytes: int
    float32_bytes: int
    pending: int


class Outbox:
    """The queue. Its writes join the caller's transaction, so a delta can be queued together with what it reflects."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def queue_delta(
        self, model: str, base_version: int, samples: int, histogram: list[int], blob: bytes, float32_bytes: int
    ) -> int:
        """Queue one coded change; returns its sequence number."""
        with self._ledger.transaction("queueing a delta"):
            sequence = self._insert("delta", model, base_version, len(blob), float32_bytes)
            delta = Delta(
                time=time.time(),
                model=model,
                base_version=base_version,
                sequence=sequence,
                samples=samples,
                label_histogram=histogram,
                blob=blob,
            )
            self._ledger.run("UPDATE outbox SET payload = ? WHERE sequence = ?", encode(delta), sequence)
        return sequence

    def queue_event(self, kind: EventKind, model: str, version: int, reason: str) -> int:
        """Queue one event; returns its sequence number, or 0 when too many wait already (it is then only logged)."""
        with self._ledger.transaction("queueing an event"):
            waiting = self._ledger.row("SELECT count(*) FROM outbox WHERE status = 'pending' AND kind = 'event'")[0]
            if waiting >= LIMITS.outbox_events:
                return 0
            sequence = self._insert("event", model, version, 0, 0)
            event = Event(
                time=time.time(), sequence=sequence, kind=kind, model=model, version=version, reason=reason[:2000]
            )
            self._ledger.run("UPDATE outbox SET payload = ? WHERE sequence = ?", encode(event), sequence)
        return sequence

    def has_room(self) -> bool:
        """Whether one more delta may wait. If not, the change stays in the model and goes with a later delta."""
        row = self._ledger.row("SELECT sum(bytes) FROM outbox WHERE status = 'pending' AND kind = 'delta'")
        return (row[0] or 0) < LIMITS.outbox_delta_bytes

    def pending(self) -> list[tuple[int, str]]:
        """(sequence, kind) of every row without a receipt, oldest first."""
        return self._ledger.rows("SELECT sequence, kind FROM outbox WHERE status = 'pending' ORDER BY sequence")

    def payload(self, sequence: int) -> bytes | None:
        """The message of a row that still waits, else None."""
        row = self._ledger.row("SELECT payload FROM outbox WHERE sequence = ? AND status = 'pending'", sequence)
        return row[0] if row else None

    def settle(self, receipt: Receipt) -> bool:
        """Note a receipt; whether a row was waiting for it. A receipt that names no waiting row changes nothing.

        A refused delta keeps its payload: the next training run takes it back into what is still to be sent.
        """
        refused = receipt.status == "rejected"
        cursor = self._ledger.run(
            "UPDATE outbox SET status = ?, reason = ?, acknowledged = ?,"
            " payload = iif(? AND kind = 'delta', payload, NULL)"
            " WHERE sequence = ? AND kind = ? AND status = 'pending' AND (kind = 'event' OR base_version = ?)",
            receipt.status, receipt.reason, time.time(), refused, receipt.sequence, receipt.of, receipt.base_version,
        )  # fmt: skip
        return cursor.rowcount == 1

    def refused_deltas(self, base_version: int) -> list[tuple[int, bytes]]:
        """(sequence, message) of deltas on this base that the server refused and that were not taken back yet."""
        return self._ledger.rows(
            "SELECT sequence, payload FROM outbox"
            " WHERE status = 'rejected' AND kind = 'delta' AND base_version = ? AND payload IS NOT NULL",
            base_version,
        )

    def taken_back(self, sequence: int) -> None:
        """A refused delta has been taken back into what is still to be sent."""
        self._ledger.run("UPDATE outbox SET payload = NULL WHERE sequence = ?", sequence)

    def totals(self) -> Totals:
        """Figures for telemetry."""
        deltas, size, plain = self._ledger.row(
            "SELECT count(*), coalesce(sum(bytes), 0), coalesce(sum(float32_bytes), 0) FROM outbox WHERE kind = 'delta'"
        )
        pending = self._ledger.row("SELECT count(*) FROM outbox WHERE status = 'pending'")[0]
        return Totals(deltas, size, plain, pending)

    def _insert(self, kind: str, model: str, version: int, size: int, plain: int) -> int:
        cursor = self._ledger.run(
            "INSERT INTO outbox (kind, model, base_version, created, bytes, float32_bytes) VALUES (?, ?, ?, ?, ?, ?)",
            kind, model, version, time.time(), size, plain,
        )  # fmt: skip
        assert cursor.lastrowid is not None
        return cursor.lastrowid
