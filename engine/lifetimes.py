"""Lifetimes: how many bytes are alive at once, and where they lie. Pure arithmetic on names and sizes.

Strategy. Two memories, computed as they will be used. Inside a session the runtime allocates a tensor when its node
runs and frees it after its last use, in an arena that gives out the smallest free piece that fits; `arena_bytes`
repeats that and returns how far it reached. Between sessions the executor keeps tensors in one buffer of its own;
`place` finds their offsets before anything runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

#: What the arena rounds every request up to, and how the executor's buffer aligns tensors, in bytes.
ARENA_ROUNDING, ALIGNMENT = 256, 64
#: An arena that is too small is made larger by this share of it.
_STEPS = 64


@dataclass(frozen=True, slots=True)
class Work:
    """One node as far as memory is concerned."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    #: Bytes that its kernel allocates while it runs.
    temporary: int = 0
    #: The input whose memory its first result is (as of a Reshape), or "".
    alias: str = ""
    #: The input that its first result may overwrite when nothing else needs it any more, or "".
    overwrites: str = ""


def last_uses(steps: Sequence[Iterable[str]]) -> dict[str, int]:
    """{name: index of the last step that reads it}."""
    last: dict[str, int] = {}
    for index, names in enumerate(steps):
        for name in names:
            last[name] = index
    return last


class _FullError(Exception):
    """Nothing in the arena is large enough."""


class _Arena:
    """An arena that gives out the smallest free piece that fits, the lowest of equal ones, and merges neighbours.

    Without a size it goes on for ever, and what lies beyond all that was given out is taken only when no free piece
    before it fits. With one, the rest at its end is a free piece like any other: then it may be the smallest.
    """

    def __init__(self, size: int | None = None) -> None:
        self.reached = 0
        self.live = 0
        self._endless = size is None
        self._free: dict[int, int] = {}  # offset: size
        self._ends: dict[int, int] = {}  # end: offset
        self._taken: dict[int, int] = {}
        if size:
            self._insert(0, size)

    def take(self, size: int) -> int:
        size = -(-max(size, 1) // ARENA_ROUNDING) * ARENA_ROUNDING
        self.live += size
        fitting = [(length, offset) for offset, length in self._free.items() if length >= size]
        if fitting:
            length, offset = min(fitting)
            self._remove(offset)
            if length > size:
                self._insert(offset + size, length - size)
        elif self._endless:  # a free piece at the end is part of what lies beyond
            offset = self._ends.get(self.reached, self.reached)
            if offset != self.reached:
                self._remove(offset)
        else:
            raise _FullError
        self.reached = max(self.reached, offset + size)
        self._taken[offset] = size
        return offset

    def give(self, offset: int) -> None:
        size = self._taken.pop(offset)
        self.live -= size
        if offset + size in self._free:
            size += self._remove(offset + size)
        if offset in self._ends:
            before = self._ends[offset]
            size += self._remove(before)
            offset = before
        self._insert(offset, size)

    def _insert(self, offset: int, size: int) -> None:
        self._free[offset] = size
        self._ends[offset + size] = offset

    def _remove(self, offset: int) -> int:
        size = self._free.pop(offset)
        del self._ends[offset + size]
        return size


def fits(works: Sequence[Work], sizes: Mapping[str, int], external: Collection[str], arena: int) -> bool:
    """Whether a session that runs `works` in this order needs no more than an arena of so many bytes."""
    try:
        trace(works, sizes, external, arena)
    except _FullError:
        return False
    return True


def arena_bytes(works: Sequence[Work], sizes: Mapping[str, int], external: Collection[str]) -> int:
    """An arena that is large enough for a session that runs `works` in this order, in bytes.

    `external` names (inputs, outputs, constants) lie elsewhere. Sizes are in bytes.
    """
    size = trace(works, sizes, external)[0]
    while not fits(works, sizes, external, size):
        size += max(size // _STEPS, ARENA_ROUNDING)
        size = -(-size // ARENA_ROUNDING) * ARENA_ROUNDING
    return size


def trace(
    works: Sequence[Work], sizes: Mapping[str, int], external: Collection[str], size: int | None = None
) -> tuple[int, list[int]]:
    """How far a session reaches into an arena of a size (or an endless one), and the bytes alive while each work runs.

    Raises a private error when the arena is too small.
    """
    arena = _Arena(size)
    outside = set(external)
    owner: dict[str, str] = {}  # name: whose memory it is
    uses: dict[str, int] = {}
    for work in works:
        for name in work.reads:
            uses[name] = uses.get(name, 0) + 1
    left: dict[str, int] = {}  # owner: reads still to come of all names in its memory
    place: dict[str, int] = {}
    alive: list[int] = []
    for work in works:
        for index, name in enumerate(work.writes):
            if not name or name in outside:
                continue
            host = ""
            if index == 0 and work.alias:
                host = owner.get(work.alias, "")
                if not host:  # the memory of something external
                    continue
            elif index == 0 and work.overwrites and work.overwrites in owner:
                candidate = owner[work.overwrites]
                if left[candidate] == 1 and sizes.get(work.overwrites) == sizes.get(name):
                    host = candidate
            if host:
                owner[name] = host
                left[host] += uses.get(name, 0)
            else:
                owner[name] = name
                left[name] = uses.get(name, 0)
                place[name] = arena.take(sizes.get(name, 0))
        if work.temporary:
            arena.give(arena.take(work.temporary))
        alive.append(arena.live + work.temporary)
        for name in work.reads:
            host = owner.get(name, "")
            if host:
                left[host] -= 1
        for host in {owner[n] for n in (*work.reads, *work.writes) if n in owner}:
            if left[host] == 0 and host in place:
                arena.give(place.pop(host))
    return arena.reached, alive


@dataclass(frozen=True, slots=True)
class Span:
    """A tensor of `size` bytes that is needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


def place(spans: Mapping[str, Span]) -> tuple[dict[str, int], int]:
    """Offsets for tensors in one buffer such that none overlap while both are needed, and the buffer's size in bytes.

    The largest first, each at the lowest place that is free over its whole span (Pisarchyk and Lee, "Efficient
    Memory Management for Deep Neural Net Inference", 2020: greedy by size).
    """
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, Span]] = []  # offset, end, span
    total = 0
    for name, span in sorted(spans.items(), key=lambda item: (-item[1].size, item[1].first, item[0])):
        size = -(-span.size // ALIGNMENT) * ALIGNMENT
        offset = 0
        for begin, end, other in placed:
            if other.last < span.first or other.first > span.last:
                continue
            if begin - offset >= size:
                break
            offset = max(offset, end)
        offsets[name] = offset
        placed.append((offset, offset + size, span))
        placed.sort(key=lambda entry: entry[:2])
        total = max(total, offset + size)
    return offsets, total
