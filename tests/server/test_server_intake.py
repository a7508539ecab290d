"""From payloads to rows and receipts: accepted once, rejected with a reason, never half."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sanderling.codec import encode_delta
from sanderling.server.errors import StorageError
from sanderling.server.intake import Intake, Received
from sanderling.server.limits import Limits
from sanderling.server.service import Service
from tests.support.servers import delta_message, event_message, state_message
from tests.support.web import add_release, make_service

GOOD = encode_delta({"w": np.array([0.5, -0.25, 0.0], np.float32)})[0]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = make_service(tmp_path)
    add_release(service, weights={"w": [3]})
    yield service
    service.close()


@pytest.fixture
def intake(service: Service) -> Intake:
    return Intake(service.store, Limits(largest_delta=4096, largest_staleness=1))


def give(intake: Intake, kind: str, *payloads: bytes, device: str = "d1") -> list[tuple[str, str]]:
    outcome = intake.commit([Received(device, kind, payload) for payload in payloads])
    return [(receipt.status, receipt.reason) for _, receipt in outcome.receipts]


def test_delta_is_accepted_once_whether_in_one_batch_or_two(service: Service, intake: Intake) -> None:
    assert give(intake, "delta", delta_message(GOOD), delta_message(GOOD)) == [("accepted", ""), ("duplicate", "")]
    assert give(intake, "delta", delta_message(GOOD)) == [("duplicate", "")]
    (row,) = service.store.deltas()
    assert (row["status"], row["bytes"], row["float32_bytes"]) == ("accepted", len(GOOD), 12)
    assert service.store.counters()["deltas_duplicate"] == 2
    assert service.store.pending("wrist")["deltas"] == 1


def test_same_sequence_of_another_device_or_base_is_another_delta(service: Service, intake: Intake) -> None:
    add_release(service, weights={"w": [3]})
    give(intake, "delta", delta_message(GOOD), delta_message(GOOD, base=2))
    give(intake, "delta", delta_message(GOOD), device="d2")
    assert service.store.pending("wrist") | {"oldest": 0} == {"devices": 2, "deltas": 3, "oldest": 0}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (delta_message(GOOD, base=9), "no version 9"),
        (delta_message(GOOD, model="other"), "no model called 'other'"),
        (delta_message(GOOD, samples=0), "no samples"),
        (delta_message(b"garbage"), "does not decode"),
        (delta_message(GOOD[:-3]), "does not decode"),
        (delta_message(b"\0" * 5000), "at most 4096"),
        (delta_message(encode_delta({"w": np.zeros((1, 3), np.float32)})[0]), "has shape"),
        (delta_message(encode_delta({"v": np.zeros(3, np.float32)})[0]), "weight 'v'"),
        (delta_message(encode_delta({"w": np.zeros(100_000, np.float32)})[0]), "does not decode"),
        (delta_message(encode_delta({})[0]), "no weights"),
    ],
)
def test_unfit_delta_is_rejected_for_good_with_the_reason(
    service: Service, intake: Intake, payload: bytes, reason: str
) -> None:
    for _ in range(2):  # resent: the same answer, and it counts once
        ((status, said),) = give(intake, "delta", payload)
        assert status == "rejected"
        assert reason in said
    assert service.store.counters()["deltas_rejected"] == 1
    assert service.store.rows("SELECT * FROM delta_blobs") == []
    assert service.store.pending("wrist")["deltas"] == 0


def test_base_too_old_or_of_another_shape_is_rejected(service: Service, intake: Intake) -> None:
    add_release(service, weights={"w": [3]})
    add_release(service, weights={"w": [3]})
    assert "behind" in give(intake, "delta", delta_message(GOOD))[0][1]
    give(intake, "delta", delta_message(GOOD, base=2))
    add_release(service, weights={"w": [4]})
    assert "other weights" in give(intake, "delta", delta_message(GOOD, base=3))[0][1]
    assert service.store.pending("wrist")["deltas"] == 0, "what cannot be merged any more must not hold up merges"
    assert "other weights" in service.store.deltas()[1]["reason"]


def test_will_counts_only_against_its_own_boot(service: Service, intake: Intake) -> None:
    give(intake, "state", state_message(True, boot=1))
    give(intake, "state", state_message(True, boot=2))
    give(intake, "state", state_message(False, boot=1))
    assert service.device("d1")["online"], "the will of an earlier life"
    give(intake, "state", state_message(False, boot=2))
    assert not service.device("d1")["online"]
    give(intake, "state", state_message(True, boot=1))
    assert service.device("d1")["online"], "a device installed anew starts from the beginning"


def test_event_is_kept_once(service: Service, intake: Intake) -> None:
    assert [s for s, _ in give(intake, "event", event_message(), event_message())] == ["accepted", "duplicate"]
    assert len(service.store.events()) == 1


def test_malformed_message_does_not_cost_its_batch(service: Service, intake: Intake) -> None:
    batch = [
        Received("d1", "delta", b"\xff\xff"),
        Received("d1", "telemetry", b'{"v": 1}'),
        Received("d1", "state", b'{"v": 99, "time": 0}'),
        Received("d1", "delta", delta_message(GOOD)),
        Received("d1", "nonsense", b""),
    ]
    assert [r.status for _, r in intake.commit(batch).receipts] == ["accepted"]
    assert service.store.counters()["messages_malformed"] == 4


def test_devices_are_bounded(service: Service) -> None:
    intake = Intake(service.store, Limits(most_devices=2))
    for name in ("a", "b", "c"):
        give(intake, "state", state_message(True), device=name)
    assert [d["name"] for d in service.devices()] == ["a", "b"]


def test_full_disk_commits_and_receipts_nothing_then_recovers(service: Service, intake: Intake) -> None:
    with service.store.writing() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite reports SQLITE_FULL, as it does for a full disk
    blob = encode_delta({"w": np.array([0.5, -0.25, 0.125], np.float32)})[0]
    batch = [Received(f"d{i}", "delta", delta_message(blob)) for i in range(300)]
    with pytest.raises(StorageError, match="free space"):
        intake.commit(batch)
    assert service.store.deltas() == []
    assert service.store.devices() == []
    with service.store.writing() as db:
        db.execute("PRAGMA max_page_count = 1073741823")
    outcome = intake.commit(batch)
    assert {r.status for _, r in outcome.receipts} == {"accepted"}
    assert len(outcome.receipts) == 300


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["state", "telemetry", "delta", "event"]),
    payload=st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, 400), st.integers(0, 255)).map(lambda p: _changed(delta_message(GOOD), *p)),
        st.tuples(st.integers(0, 400), st.integers(0, 255)).map(lambda p: _changed(event_message(), *p)),
    ),
)
def test_any_payload_is_answered_or_counted(intake: Intake, kind: str, payload: bytes) -> None:
    outcome = intake.commit([Received("d1", kind, payload)])
    assert len(outcome.receipts) <= 1


def _changed(payload: bytes, position: int, value: int) -> bytes:
    changed = bytearray(payload)
    changed[position % len(changed)] = value
    return bytes(changed)
