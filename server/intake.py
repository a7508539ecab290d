"""Messages of devices to rows and receipts: many messages, one transaction, and only then the receipts.

No network here: a batch of payloads goes in, receipts to publish and changes to tell come out, and between the two lies
one commit. If the commit fails nothing is returned and nothing is receipted: devices keep what they sent and send it
again. A message that cannot be understood costs a counter, never the batch it came in.

A Last Will counts only against the boot it carries: the will of an earlier life, delivered late, changes nothing. Every
birth counts, because a device that was installed anew starts its boots from the beginning.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import msgspec
from sqlite_utils import Database

from sanderling.codec import messages
from sanderling.codec.errors import CodecError
from sanderling.codec.messages import Delta, DeviceState, Event, Receipt, Telemetry

from .acceptance import Bases, check
from .changes import Kind
from .errors import DeltaError
from .limits import Limits
from .store import Store, count

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Received:
    """A payload as it came: `kind` is the last part of the topic."""

    device: str
    kind: str
    payload: bytes


@dataclass(slots=True)
class Outcome:
    """What to do now that a batch is committed: receipts by device, and what viewers should look at again."""

    receipts: list[tuple[str, Receipt]] = field(default_factory=list)
    changes: set[tuple[Kind, str]] = field(default_factory=set)


#: Writes one understood message inside the batch's transaction.
_Write = Callable[[Database, Outcome], None]


class Intake:
    """Commits batches to `store`. One thread at a time."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._bases = Bases(store)
        self._known: set[str] = {row["name"] for row in store.rows("SELECT name FROM devices")}
        self._complained: set[str] = set()

    def commit(self, batch: Sequence[Received]) -> Outcome:
        """Commit what can be understood of `batch`. Raises `StorageError`, and then nothing of it is committed."""
        writes: list[_Write] = []
        malformed = 0
        for received in batch:
            try:
                writes.append(self._understand(received))
            except CodecError as error:
                malformed += 1
                self._complain(received, error)
            except Exception:  # a bug of ours: it must not let one device stop the intake of all others
                malformed += 1
                log.exception("a %s from %s could not be read; please report this", received.kind, received.device)
        outcome = Outcome()
        if malformed or writes:
            with self._store.writing() as db:
                if malformed:
                    count(db, "messages_malformed", malformed)
                for write in writes:
                    write(db, outcome)
        return outcome

    def _understand(self, received: Received) -> _Write:
        """Decode and check outside the transaction, so that it is short. Raises `CodecError`."""
        device, payload = received.device, received.payload
        if device not in self._known:
            if len(self._known) >= self._limits.most_devices:
                raise CodecError(f"over {self._limits.most_devices} devices: raise limits.most_devices in server.toml")
            self._known.add(device)
        if received.kind == "state":
            return partial(_write_state, device, messages.decode(DeviceState, payload))
        if received.kind == "telemetry":
            return partial(_write_telemetry, device, messages.decode(Telemetry, payload))
        if received.kind == "event":
            return partial(_write_event, device, messages.decode(Event, payload))
        if received.kind == "delta":
            delta = messages.decode(Delta, payload)
            return partial(_write_delta, device, delta, *self._judge(device, delta))
        raise CodecError(f"devices send no {received.kind!r}")

    def _judge(self, device: str, delta: Delta) -> tuple[str, int]:
        """The reason to reject a delta ("" for none), and what it would take as float32."""
        if _known_delta(self._store, device, delta):
            return "", 0  # a duplicate: not worth decoding again
        try:
            return "", check(delta, self._bases, self._limits)
        except DeltaError as error:
            return str(error)[:1000], 0

    def _complain(self, received: Received, error: CodecError) -> None:
        """Say it once per device and kind: a broken device must not fill the log."""
        key = f"{received.device}/{received.kind}"
        if key not in self._complained and len(self._complained) < 1000:
            self._complained.add(key)
            log.warning("from %s: %s (further ones of this kind are only counted)", key, error)


def _seen(db: Database, device: str) -> None:
    now = time.time()
    db.execute(
        "INSERT INTO devices (name, online, boot, agent_version, first_seen, last_seen, models) VALUES"
        " (?, 0, 0, '', ?, ?, '{}') ON CONFLICT (name) DO UPDATE SET last_seen = excluded.last_seen",
        [device, now, now],
    )


def _write_state(device: str, state: DeviceState, db: Database, outcome: Outcome) -> None:
    outcome.changes.add(("device", device))
    if state.online:
        _seen(db, device)
        db.execute(
            "UPDATE devices SET online = 1, boot = ?, agent_version = ?, models = ? WHERE name = ?",
            [state.boot, state.agent_version, json.dumps(state.models), device],
        )
    elif db.execute("SELECT 1 FROM devices WHERE name = ?", [device]).fetchone() is None:
        _seen(db, device)
        db.execute("UPDATE devices SET boot = ?, agent_version = ? WHERE name = ?",
                   [state.boot, state.agent_version, device])  # fmt: skip
    else:  # `last_seen` stays: a will is the broker's word, not the device's
        db.execute("UPDATE devices SET online = 0 WHERE name = ? AND boot = ?", [device, state.boot])


def _write_telemetry(device: str, telemetry: Telemetry, db: Database, outcome: Outcome) -> None:
    report = msgspec.json.encode(telemetry).decode()
    _seen(db, device)
    db.execute("UPDATE devices SET telemetry = ? WHERE name = ?", [report, device])
    db.execute(
        "INSERT INTO telemetry (device, received, model, report) VALUES (?, ?, ?, ?)",
        [device, time.time(), telemetry.model, report],
    )
    outcome.changes.add(("telemetry", device))


def _write_event(device: str, event: Event, db: Database, outcome: Outcome) -> None:
    _seen(db, device)
    new = db.execute(
        "INSERT INTO events (device, sequence, received, time, kind, model, version, reason)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [device, event.sequence, time.time(), event.time, event.kind, event.model, event.version, event.reason],
    ).rowcount
    count(db, "events" if new else "events_duplicate")
    outcome.receipts.append((device, Receipt(time=time.time(), of="event", sequence=event.sequence,
                                             status="accepted" if new else "duplicate")))  # fmt: skip
    if new:
        outcome.changes.add(("event", device))


def _known_delta(store: Store, device: str, delta: Delta) -> bool:
    return bool(
        store.rows(
            "SELECT 1 FROM deltas WHERE device = ? AND base_version = ? AND sequence = ?",
            [device, delta.base_version, delta.sequence],
        )
    )


def _write_delta(device: str, delta: Delta, refused: str, float32_bytes: int, db: Database, outcome: Outcome) -> None:
    _seen(db, device)
    key = [device, delta.base_version, delta.sequence]
    known = db.execute(
        "SELECT status, reason FROM deltas WHERE device = ? AND base_version = ? AND sequence = ?", key
    ).fetchone()
    status: Literal["accepted", "duplicate", "rejected"]
    if known is None:
        accepted = not refused
        row = db.execute(
            "INSERT INTO deltas (device, model, base_version, sequence, received, samples, histogram, bytes,"
            " float32_bytes, status, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [device, delta.model, delta.base_version, delta.sequence, time.time(), delta.samples,
             json.dumps(delta.label_histogram if accepted else []), len(delta.blob), float32_bytes,
             "accepted" if accepted else "rejected", refused],
        )  # fmt: skip
        if accepted:
            db.execute("INSERT INTO delta_blobs (delta, blob) VALUES (?, ?)", [row.lastrowid, delta.blob])
        count(db, "deltas_accepted" if accepted else "deltas_rejected")
        outcome.changes.add(("delta", device))
        status = "accepted" if accepted else "rejected"
        reason = refused
    elif known[0] == "rejected":
        status, reason = "rejected", known[1]
    else:
        count(db, "deltas_duplicate")
        status, reason = "duplicate", ""
    receipt = Receipt(
        time=time.time(), of="delta", base_version=delta.base_version, sequence=delta.sequence,
        status=status, reason=reason,
    )  # fmt: skip
    outcome.receipts.append((device, receipt))
