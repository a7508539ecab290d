"""Lifetimes: how many bytes are alive at once. Pure arithmetic on names and sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence


def last_uses(steps: Sequence[Iterable[str]]) -> dict[str, int]:
    """{name: index of the last step that reads it}."""
    last: dict[str, int] = {}
    for index, names in enumerate(steps):
        for name in names:
            last[name] = index
    return last


def peak(
    steps: Sequence[tuple[Sequence[str], Sequence[str]]],
    sizes: Mapping[str, int],
    external: Collection[str],
    workspace: Callable[[int], int] = lambda step: 0,
    in_place: Callable[[int], bool] = lambda step: False,
) -> int:
    """The most bytes alive while running `steps` of (names read, names written).

    A name is alive from the step that writes it to the last that reads it; `external` names (of the caller) count
    nothing. `workspace` is what a step needs for itself. A step that may run `in_place` writes its first result over
    a dying input of the same size.
    """
    last = last_uses([reads for reads, _ in steps])
    alive: dict[str, int] = {}
    total = most = 0
    for index, (reads, writes) in enumerate(steps):
        dying = [n for n in dict.fromkeys(reads) if n in alive and last[n] == index]
        reused = 0
        for position, name in enumerate(writes):
            if not name or name in external:
                continue
            size = sizes.get(name, 0)
            if position == 0 and in_place(index):
                reused = next((alive[n] for n in dying if alive[n] == size), 0)
            alive[name] = size
            total += size
        most = max(most, total - reused + workspace(index))
        for name in dying + [n for n in writes if n in alive and n not in last]:
            total -= alive.pop(name, 0)
    return most
