"""The outbox: what is in it stays until a receipt names it, and numbers are never used twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from sanderling.agent.errors import StorageFullError
from sanderling.agent.ledger import Ledger
from sanderling.agent.outbox import Outbox
from sanderling.codec.messages import Delta, Event, Receipt, decode


def receipt(of: Any, sequence: int, base: int = 0, status: Any = "accepted") -> Receipt:
    return Receipt(time=time.time(), of=of, base_version=base, sequence=sequence, status=status)


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    ledger = Ledger(tmp_path / "agent.db")
    yield ledger
    ledger.close()


def test_rows_wait_for_their_receipt(ledger: Ledger) -> None:
    outbox = Outbox(ledger)
    delta = outbox.queue_delta("gait", 3, 10, [4, 6], b"coded", 400)
    event = outbox.queue_event("installed", "gait", 3, "")
    assert outbox.pending() == [(delta, "delta"), (event, "event")]
    payload = outbox.payload(delta)
    assert payload is not None
    message = decode(Delta, payload)
    assert (message.sequence, message.base_version, message.blob) == (delta, 3, b"coded")
    assert decode(Event, outbox.payload(event) or b"").sequence == event

    assert not outbox.settle(receipt("delta", delta, base=2))  # another base: not this delta
    assert not outbox.settle(receipt("event", delta))
    assert outbox.settle(receipt("delta", delta, base=3))
    assert not outbox.settle(receipt("delta", delta, base=3, status="duplicate"))  # the second receipt of a resent row
    assert outbox.settle(receipt("event", event))
    assert outbox.pending() == []
    assert outbox.payload(delta) is None
    totals = outbox.totals()
    assert (totals.deltas, totals.delta_bytes, totals.float32_bytes, totals.pending) == (1, 5, 400, 0)


def test_numbers_are_never_used_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "agent.db")
    outbox = Outbox(ledger)
    first = outbox.queue_event("installed", "gait", 1, "")
    ledger.run("DELETE FROM outbox")
    ledger.close()
    again = Ledger(tmp_path / "agent.db")
    assert Outbox(again).queue_event("installed", "gait", 1, "") == first + 1
    again.close()


def test_a_new_disk_begins_above_the_old_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []
    for name, now in (("old", 1.7e9), ("new", 1.7e9 + 60)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        ledger = Ledger(tmp_path / name)
        numbers.append([Outbox(ledger).queue_event("installed", "gait", 1, "") for _ in range(50)])
        ledger.close()
    assert max(numbers[0]) < min(numbers[1])


def test_refused_delta_is_kept_until_taken_back(ledger: Ledger) -> None:
    outbox = Outbox(ledger)
    sequence = outbox.queue_delta("gait", 3, 10, [10], b"coded", 400)
    outbox.settle(receipt("delta", sequence, base=3, status="rejected"))
    assert outbox.pending() == []
    [(found, message)] = outbox.refused_deltas(3)
    assert (found, decode(Delta, message).blob) == (sequence, b"coded")
    outbox.taken_back(sequence)
    assert outbox.refused_deltas(3) == []


def test_transaction_is_all_or_nothing(ledger: Ledger) -> None:
    outbox = Outbox(ledger)
    with pytest.raises(RuntimeError), ledger.transaction("a test"):
        outbox.queue_delta("gait", 1, 1, [1], b"x", 4)
        ledger.put("training_runs", 7)
        raise RuntimeError
    assert outbox.pending() == []
    assert ledger.number("training_runs") == 0


def test_full_disk_is_named_and_changes_nothing(ledger: Ledger) -> None:
    outbox = Outbox(ledger)
    pages = ledger.row("PRAGMA page_count")[0]
    ledger.run(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StorageFullError, match="disk is full"):
        outbox.queue_delta("gait", 1, 1, [1], bytes(100_000), 4)
    assert outbox.pending() == []
    ledger.run(f"PRAGMA max_page_count = {pages + 1000}")
    assert outbox.queue_delta("gait", 1, 1, [1], bytes(100_000), 4) > 0


def test_too_many_waiting_events_are_not_queued(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from sanderling.agent import outbox as module
    from sanderling.agent.limits import Limits

    monkeypatch.setattr(module, "LIMITS", Limits(outbox_events=3, outbox_delta_bytes=10))
    outbox = Outbox(ledger)
    numbers = [outbox.queue_event("worker_crashed", "gait", 1, "") for _ in range(5)]
    assert [number > 0 for number in numbers] == [True, True, True, False, False]
    assert outbox.has_room()
    outbox.queue_delta("gait", 1, 1, [1], bytes(11), 4)
    assert not outbox.has_room()
