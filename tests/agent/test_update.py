"""The update protocol: every path through the machine, without a network or a disk."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanderling.agent import update
from sanderling.agent.limits import LIMITS
from sanderling.agent.update import IllegalEventError, State, Update
from sanderling.codec.release import CHUNK_SIZE, Release, cut

FILE = random.Random(1).randbytes(CHUNK_SIZE * 3 + 17)


def release(version: int, *, fleet: str = "birds", name: str = "model.onnx", data: bytes = FILE) -> Release:
    return Release(fleet=fleet, model="gait", version=version, created=0.0, targets={name: cut(data)[0]})


def verified(version: int, **other: str) -> update.Verified:
    made = release(version, **other)  # type: ignore[arg-type]  # only names vary here
    return update.Verified(b"signed", made, f"{version:064x}")


def chunks(data: bytes = FILE) -> dict[str, bytes]:
    return cut(data)[1]


def fetching(machine: Update, version: int = 2) -> list[str]:
    machine.handle(verified(version))
    missing = list(chunks())
    actions = machine.handle(update.Staged(tuple(missing)))
    assert actions == [update.Ask(tuple(missing))]
    return missing


def fresh() -> Update:
    return Update("birds", "gait", 1, "f" * 64, [])


def test_the_whole_way() -> None:
    machine = fresh()
    assert machine.handle(update.Announced(b"signed")) == [update.Verify(b"signed")]
    found = verified(2)
    assert machine.handle(found) == [update.Stage(found.release, found.digest, b"signed")]
    pieces = chunks()
    machine.handle(update.Staged(tuple(pieces)))
    for digest, data in pieces.items():
        assert machine.handle(update.Chunk(digest, data)) == [update.Store(digest, data)]
        last = machine.handle(update.Stored(digest, True))
        assert last[0] == update.Leave((digest,))
    assert last[1:] == [update.Check()]
    assert machine.handle(update.Checked(True, "")) == [update.Switch(found.release, found.digest)]
    assert (machine.state, machine.version, machine.digest) == (State.IDLE, 2, found.digest)
    assert machine.handle(found) == []  # retained: it comes again with every reconnect


def test_only_what_is_missing_is_asked_for() -> None:
    machine = fresh()
    machine.handle(verified(2))
    some = tuple(chunks())[2:]
    assert machine.handle(update.Staged(some)) == [update.Ask(some)]
    assert machine.progress() == (2, len(some))


def test_nothing_missing_goes_straight_to_the_check() -> None:
    machine = fresh()
    machine.handle(verified(2))
    assert machine.handle(update.Staged(())) == [update.Check()]


def test_chunks_are_asked_for_a_few_at_a_time() -> None:
    machine = fresh()
    machine.handle(verified(2))
    data = {hashlib.sha256(bytes([i])).hexdigest(): bytes([i]) for i in range(100)}
    [ask] = machine.handle(update.Staged(tuple(data)))
    assert isinstance(ask, update.Ask)
    assert len(ask.digests) == LIMITS.chunks_in_flight
    asked, got = set(ask.digests), 0
    while asked:
        digest = asked.pop()
        assert machine.handle(update.Chunk(digest, data[digest])) == [update.Store(digest, data[digest])]
        got += 1
        for action in machine.handle(update.Stored(digest, True)):
            if isinstance(action, update.Ask):
                asked |= set(action.digests)
        assert len(asked) <= LIMITS.chunks_in_flight
    assert got == 100
    assert machine.state is State.CHECKING


def test_damaged_chunk_is_refused_reported_once_and_asked_again() -> None:
    machine = fresh()
    first, *_ = fetching(machine)
    leave, report = machine.handle(update.Chunk(first, b"damaged"))
    assert leave == update.Leave((first,))
    assert isinstance(report, update.Report)
    assert report.kind == "chunk_refused"
    assert machine.handle(update.Chunk(first, chunks()[first])) == []  # not asked for at this moment
    again = machine.handle(update.Tick())
    assert isinstance(again[-1], update.Ask)
    assert first in again[-1].digests
    assert machine.handle(update.Chunk(first, b"damaged")) == [update.Leave((first,))]
    machine.handle(update.Tick())
    assert machine.handle(update.Chunk(first, chunks()[first])) == [update.Store(first, chunks()[first])]


def test_chunk_that_could_not_be_written_stays_missing() -> None:
    machine = fresh()
    first, *rest = fetching(machine)
    machine.handle(update.Chunk(first, chunks()[first]))
    assert machine.handle(update.Stored(first, False)) == [update.Leave((first,))]
    assert machine.progress()[1] == len(rest) + 1
    assert first in machine.handle(update.Tick())[-1].digests  # type: ignore[union-attr]  # an Ask


def test_unhealthy_release_is_never_fetched_again() -> None:
    machine = fresh()
    machine.handle(verified(2))
    machine.handle(update.Staged(()))
    refuse, report = machine.handle(update.Checked(False, "it answers nonsense"))
    assert isinstance(refuse, update.Refuse)
    assert report == update.Report("rejected", 2, "it answers nonsense")
    assert machine.handle(verified(2)) == []
    assert machine.version == 1
    assert Update("birds", "gait", 1, "f" * 64, machine.refused).handle(verified(2)) == []


def test_check_that_could_not_be_made_is_made_again() -> None:
    machine = fresh()
    machine.handle(verified(2))
    machine.handle(update.Staged(()))
    machine.handle(update.Checked(False, "the disk is full", transient=True))
    assert machine.handle(update.Tick()) == [update.Check()]
    assert machine.handle(update.Checked(True, ""))[0] == update.Switch(release(2), f"{2:064x}")


@pytest.mark.parametrize(
    "event", [verified(1), verified(0 + 1), verified(3, fleet="fish"), verified(3, name="other.onnx")]
)
def test_what_is_not_newer_or_not_ours_is_not_fetched(event: update.Verified) -> None:
    actions = fresh().handle(event)
    assert not any(isinstance(action, update.Stage | update.Ask) for action in actions)


def test_wrong_signature_is_reported_once() -> None:
    machine = fresh()
    assert machine.handle(update.Unverified(b"e", "nobody we trust")) == [
        update.Report("rejected", 0, "nobody we trust")
    ]
    assert machine.handle(update.Unverified(b"e", "nobody we trust")) == []


def test_newer_release_replaces_the_one_being_fetched() -> None:
    machine = fresh()
    missing = fetching(machine, 2)
    leave, stage = machine.handle(verified(3))
    assert leave == update.Leave(tuple(missing))
    assert isinstance(stage, update.Stage)
    assert machine.handle(verified(2)) == []


def test_newer_release_waits_for_the_check() -> None:
    machine = fresh()
    machine.handle(verified(2))
    machine.handle(update.Staged(()))
    assert machine.handle(verified(3)) == []
    switch, stage = machine.handle(update.Checked(True, ""))
    assert isinstance(switch, update.Switch)
    assert isinstance(stage, update.Stage)
    assert stage.release.version == 3


def test_republished_release_asks_again_while_fetching() -> None:
    machine = fresh()
    missing = fetching(machine)
    assert machine.handle(update.Announced(b"signed")) == [
        update.Verify(b"signed"), update.Leave(tuple(missing)), update.Ask(tuple(missing)),
    ]  # fmt: skip


def test_illegal_event_changes_nothing() -> None:
    machine = fresh()
    with pytest.raises(IllegalEventError, match="Staged in state IDLE"):
        machine.handle(update.Staged(()))
    assert machine.state is State.IDLE
    with pytest.raises(IllegalEventError):
        machine.handle(update.Checked(True, ""))


EVENTS = st.one_of(
    st.just(update.Announced(b"signed")),
    st.integers(1, 5).map(verified),
    st.just(update.Unverified(b"e", "no")),
    st.lists(st.sampled_from(sorted(chunks())), unique=True).map(lambda d: update.Staged(tuple(d))),
    st.builds(update.Chunk, st.sampled_from(sorted(chunks())), st.sampled_from([*chunks().values(), b"damaged"])),
    st.builds(update.Stored, st.sampled_from(sorted(chunks())), st.booleans()),
    st.just(update.Tick()),
    st.builds(update.Checked, st.booleans(), st.just("reason"), st.booleans()),
)


@given(st.lists(EVENTS, max_size=60))
def test_any_order_of_events_keeps_the_promises(events: list[update.Event]) -> None:
    machine = fresh()
    versions, refused = [1], set[str]()
    for event in events:
        before = (machine.state, machine.version)
        try:
            actions = machine.handle(event)
        except IllegalEventError:
            assert (machine.state, machine.version) == before
            continue
        for action in actions:
            if isinstance(action, update.Switch):
                assert action.release.version > versions[-1]  # never back, never twice
                assert action.digest not in refused
                versions.append(action.release.version)
            elif isinstance(action, update.Refuse):
                refused.add(action.digest)
            elif isinstance(action, update.Store):  # nothing damaged ever reaches the disk
                assert hashlib.sha256(action.data).hexdigest() == action.digest
            elif isinstance(action, update.Stage):
                assert action.digest not in refused
        assert machine.version == versions[-1]
