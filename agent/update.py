"""How a device takes a release: protocol logic without I/O. Events in, actions out; `updating.py` carries them out.

::

    announced -> verified -> staged -> chunk, chunk, ... -> checked -> switched
                    |                    |  (damaged: refused, asked again)
                    └ unsigned, old,     └ checked and unhealthy: refused for ever
                      refused before:
                      nothing is fetched

The machine is the table at the end: an event that a state does not list raises and changes nothing. Only missing chunks
are asked for, a few at a time; a kill at any moment resumes, because what is stored is found again when staging.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from sanderling.codec.release import Release

from .limits import LIMITS

MODEL_FILE, ANCHOR_FILE = "model.onnx", "anchor.npz"


class State(Enum):
    """Where the update is."""

    IDLE = "waiting for a release"
    STAGING = "preparing a slot"
    FETCHING = "fetching chunks"
    CHECKING = "checking health"


# Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announced:
    """A signed release arrived (again)."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """A trusted key has signed it. `digest` is the SHA-256 of the release's canonical JSON."""

    envelope: bytes
    release: Release
    digest: str


@dataclass(frozen=True, slots=True)
class Unverified:
    """No trusted key has signed it, or it is no release."""

    envelope: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Staged:
    """The inactive slot is ready; these chunks are not in it yet."""

    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A payload arrived on a chunk's topic."""

    digest: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A chunk is on the disk (or, if not `done`, could not be written)."""

    digest: str
    done: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """No wanted chunk came for a while, or a failed step may be tried again."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The health check's verdict; `transient` when it could not be made (a full disk)."""

    healthy: bool
    reason: str
    transient: bool = False


Event = Announced | Verified | Unverified | Staged | Chunk | Stored | Tick | Checked

# Actions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verify:
    """Check the signature; answer with `Verified` or `Unverified`."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """Prepare the inactive slot; answer with `Staged`."""

    release: Release
    digest: str
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Subscribe to these chunks."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Unsubscribe from these chunks."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """Write a verified chunk; answer with `Stored`."""

    digest: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Check:
    """Verify the files and try the model; answer with `Checked`."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Make the staged release the current one."""

    release: Release
    digest: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Never fetch this release again; clear the slot."""

    release: Release
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the operator."""

    kind: Literal["rejected", "chunk_refused"]
    version: int
    reason: str


Action = Verify | Stage | Ask | Leave | Store | Check | Switch | Refuse | Report


class IllegalEventError(RuntimeError):
    """An event that the present state does not know: a bug of ours. Nothing was changed."""


class Update:
    """The state of one model's update on one device."""

    def __init__(self, fleet: str, model: str, version: int, digest: str, refused: Iterable[str]) -> None:
        self.state = State.IDLE
        self.version, self.digest = version, digest  # what is installed
        self.refused = set(refused)
        self.wanted: Verified | None = None  # what is being staged, fetched or checked
        self._fleet, self._model = fleet, model
        self._missing: dict[str, None] = {}  # in the order in which they are asked for
        self._asked: dict[str, None] = {}
        self._damaged: set[str] = set()
        self._next: Verified | None = None
        self._decided = ""  # the SHA-256 of an envelope that asks nothing of us: it comes again with every reconnect

    def handle(self, event: Event) -> list[Action]:
        """What is to be done about an event; raises `IllegalEventError`, and then nothing has changed."""
        rule = TABLE.get((self.state, type(event)))
        if rule is None:
            raise IllegalEventError(f"{type(event).__name__} in state {self.state.name}")
        return rule(self, event)

    def progress(self) -> tuple[int, int]:
        """(version that is being taken, chunks still missing); (0, 0) when none is."""
        return (self.wanted.release.version, len(self._missing)) if self.wanted else (0, 0)

    def moved(self, version: int, digest: str) -> None:
        """The installed release was changed from outside (an operator's rollback)."""
        self.version, self.digest = version, digest

    def _announced(self, event: Announced) -> list[Action]:
        actions: list[Action] = [] if _mark(event.envelope) == self._decided else [Verify(event.envelope)]
        if self.state is State.FETCHING:  # the server may have published the chunks again
            return actions + self._ask_again()
        return actions

    def _unverified(self, event: Unverified) -> list[Action]:
        if _mark(event.envelope) == self._decided:
            return []
        self._decided = _mark(event.envelope)
        return [Report("rejected", 0, event.reason)]

    def _verified(self, event: Verified) -> list[Action]:
        release, ahead = event.release, max(self.version, self.wanted.release.version if self.wanted else 0)
        if event.digest in self.refused or release.version <= self.version:
            self._decided = _mark(event.envelope)
            return []
        if release.version <= ahead:
            return []
        if reason := self._unusable(release):
            self.refused.add(event.digest)
            return [Refuse(release, event.digest, reason), Report("rejected", release.version, reason)]
        if self.state in (State.STAGING, State.CHECKING):  # one at a time; the newest of those that wait
            if self._next is None or self._next.release.version < release.version:
                self._next = event
            return []
        return self._leave_all() + self._begin(event)

    def _unusable(self, release: Release) -> str:
        if (release.fleet, release.model) != (self._fleet, self._model):
            return f"is for {release.fleet}/{release.model}, this device runs {self._fleet}/{self._model}"
        if MODEL_FILE not in release.targets:
            return f"has no {MODEL_FILE}; the server released something else"
        return ""

    def _begin(self, event: Verified) -> list[Action]:
        self.state, self.wanted = State.STAGING, event
        return [Stage(event.release, event.digest, event.envelope)]

    def _staged(self, event: Staged) -> list[Action]:
        self._missing, self._asked, self._damaged = dict.fromkeys(event.missing), {}, set()
        self.state = State.FETCHING
        if self._next is not None:
            return self._finish([])
        return self._ask() if self._missing else self._check()

    def _check(self) -> list[Action]:
        self.state = State.CHECKING
        return [Check()]

    def _chunk(self, event: Chunk) -> list[Action]:
        if event.digest not in self._asked:
            return []
        if hashlib.sha256(event.data).hexdigest() != event.digest:
            # It stays missing and is asked for again after a pause, not at once: the broker would send the same again.
            del self._asked[event.digest]
            actions: list[Action] = [Leave((event.digest,))]
            if event.digest not in self._damaged and self.wanted is not None:
                self._damaged.add(event.digest)
                reason = f"chunk {event.digest[:12]} is damaged ({len(event.data)} bytes); it is asked for again"
                actions.append(Report("chunk_refused", self.wanted.release.version, reason))
            return actions
        return [Store(event.digest, event.data)]

    def _stored(self, event: Stored) -> list[Action]:
        if event.digest not in self._asked:
            return []
        del self._asked[event.digest]
        actions: list[Action] = [Leave((event.digest,))]
        if not event.done:
            return actions
        del self._missing[event.digest]
        return actions + (self._ask() if self._missing else self._check())

    def _ask(self) -> list[Action]:
        room = LIMITS.chunks_in_flight - len(self._asked)
        more = tuple(digest for digest in self._missing if digest not in self._asked and digest not in self._damaged)
        more = more[: max(room, 0)]
        self._asked.update(dict.fromkeys(more))
        return [Ask(more)] if more else []

    def _ask_again(self) -> list[Action]:
        leave = self._leave_all()
        again = tuple(self._missing)[: LIMITS.chunks_in_flight]
        self._asked = dict.fromkeys(again)
        return [*leave, Ask(again)] if again else leave

    def _leave_all(self) -> list[Action]:
        asked, self._asked = tuple(self._asked), {}
        return [Leave(asked)] if asked else []

    def _tick(self, _event: Tick) -> list[Action]:
        return self._ask_again() if self._missing else self._check()

    def _checked(self, event: Checked) -> list[Action]:
        assert self.wanted is not None
        release, digest = self.wanted.release, self.wanted.digest
        if event.transient:
            self.state = State.FETCHING  # with nothing missing: the next tick checks again
            return self._finish([]) if self._next is not None else []
        if event.healthy:
            self.version, self.digest = release.version, digest
            return self._finish([Switch(release, digest)])
        self.refused.add(digest)
        refusal = Refuse(release, digest, event.reason)
        return self._finish([refusal, Report("rejected", release.version, event.reason)])

    def _finish(self, actions: list[Action]) -> list[Action]:
        self.state, self.wanted, self._missing = State.IDLE, None, {}
        waiting, self._next = self._next, None
        return actions + (self._verified(waiting) if waiting is not None else [])

    def _ignore(self, _event: Any) -> list[Action]:
        return []


def _mark(envelope: bytes) -> str:
    return hashlib.sha256(envelope).hexdigest()


_Rule = Callable[[Update, Any], list[Action]]
#: The machine. A pair that is not listed is illegal.
TABLE: dict[tuple[State, type], _Rule] = {
    **{(state, Announced): Update._announced for state in State},
    **{(state, Verified): Update._verified for state in State},
    **{(state, Unverified): Update._unverified for state in State},
    (State.IDLE, Chunk): Update._ignore,  # what was asked for before the last switch
    (State.IDLE, Stored): Update._ignore,
    (State.IDLE, Tick): Update._ignore,
    (State.STAGING, Staged): Update._staged,
    (State.STAGING, Chunk): Update._ignore,
    (State.STAGING, Stored): Update._ignore,
    (State.STAGING, Tick): Update._ignore,
    (State.FETCHING, Chunk): Update._chunk,
    (State.FETCHING, Stored): Update._stored,
    (State.FETCHING, Tick): Update._tick,
    (State.CHECKING, Chunk): Update._ignore,
    (State.CHECKING, Stored): Update._ignore,
    (State.CHECKING, Tick): Update._ignore,
    (State.CHECKING, Checked): Update._checked,
}
