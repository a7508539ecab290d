"""Where to cut: the least recomputation within a number of bytes, by dynamic programming over a chain of cut points.

Strategy. A cut stores the tensors that cross it. With cuts c1 < ... < ck, every segment but the last runs its forward
pass twice, so what counts in time is where the last cut lies; what counts in memory is, for every segment, what was
stored before it, the gradients at both its ends and those of its weights (the exchange), and what its backward pass
holds inside (the arena, as large as the largest segment needs). For a given arena, the least that can be stored up to
a cut is found from the least up to each earlier one: a smaller sum is never worse afterwards, so this is exact. The
arena is then searched over a range. Any directed acyclic graph is cut this way: its nodes lie in one order, and what
crosses a position is whatever is made before it and read after it, however many branches that are (after Chen et
al., "Training Deep Nets with Sublinear Memory Cost", 2016; Checkmate (2020) treats the general problem).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from .costs import SESSION, seconds
from .differentiate import dependents, differentiate
from .graph import Builder, Graph
from .kernels import ALIASES
from .loss import LOSS

#: Cut points that are considered at most, and sizes of the arena that are tried.
_POINTS, _ARENAS = 64, 16
#: Of the largest tensor of a segment, what its backward pass holds besides the tensors that it keeps.
_WORKING = 3.0


@dataclass(frozen=True, slots=True)
class Cutting:
    """Cuts, with what the model of cost says of them."""

    cuts: tuple[int, ...]
    #: Bytes between sessions and inside the largest one.
    exchange: int
    arena: int
    #: Time of what runs twice, and of running more sessions.
    extra_seconds: float


class Chain:
    """The cut points of one graph (which ends in a loss), and what segments between them take.

    `shrunk` is the share of its bytes that a stored tensor takes (below 1 for checkpoints of fewer bits).
    """

    def __init__(self, graph: Graph, trainable: Collection[str], weights: frozenset[str], shrunk: float = 1.0) -> None:
        nodes = graph.nodes
        size = len(nodes)
        made = {o: i for i, n in enumerate(nodes) for o in n.outputs if o}
        read: dict[str, int] = {}
        for index, node in enumerate(nodes):
            read |= {name: index for name in node.inputs if name in made}
        moving = dependents(graph, nodes, trainable)
        builder = Builder("s.b")
        differentiate(graph, nodes, {LOSS: builder.scalar(1.0)}, list(trainable), builder)
        used = {name for node in builder.nodes for name in node.inputs}
        kept = [0] * size
        widest = [0] * size
        for index, node in enumerate(nodes):
            sizes = [graph.types[o].nbytes for o in node.outputs if o]
            widest[index] = max(sizes, default=0)
            if node.op not in ALIASES:
                kept[index] = sum(graph.types[o].nbytes for o in node.outputs if o in used)
        crossing_bytes = [0] * (size + 1)
        gradient_bytes = [0] * (size + 1)
        for name, begin in made.items():
            for position in range(begin + 1, read.get(name, begin) + 1):
                crossing_bytes[position] += graph.types[name].nbytes
                gradient_bytes[position] += graph.types[name].gradient.nbytes if name in moving else 0
        self._graph, self._made, self._read, self._shrunk = graph, made, read, shrunk
        self._widest = widest
        self._gradients = gradient_bytes
        self._kept = [0, *accumulate(kept)]
        self._time = [0.0, *accumulate(seconds(n, graph.types) for n in nodes)]
        first = {w: min(i for i, n in enumerate(nodes) if w in n.inputs) for w in trainable}
        weight_bytes = [0] * size
        for name, index in first.items():
            weight_bytes[index] += graph.types[name].gradient.nbytes
        self._weights = [0, *accumulate(weight_bytes)]
        self._begin = min(first.values(), default=0)  # nothing before is differentiated
        self.points = _points(crossing_bytes, size)
        self._stored = self._new_bytes()
        self._inside = self._inside_bytes()

    def _new_bytes(self) -> dict[tuple[int, int], int]:
        """{(p, c): bytes of tensors that are made between two points and cross the second}."""
        points = self.points
        result: dict[tuple[int, int], int] = {}
        births: dict[int, list[tuple[int, int]]] = {p: [] for p in points}
        for name, begin in self._made.items():
            end = self._read.get(name, begin)
            for position in points:
                if begin < position <= end:
                    births[position].append((begin, round(self._graph.types[name].nbytes * self._shrunk)))
        for position in points:
            tensors = sorted(births[position], reverse=True)
            total = index = 0
            for before in reversed([0, *(p for p in points if p < position)]):
                while index < len(tensors) and tensors[index][0] >= before:
                    total += tensors[index][1]
                    index += 1
                result[before, position] = total
        return result

    def _inside_bytes(self) -> dict[tuple[int, int], int]:
        """{(p, c): bytes that the backward pass of the segment between two points holds inside, roughly}."""
        ends = [*self.points, len(self._graph.nodes)]
        result: dict[tuple[int, int], int] = {}
        for index, end in enumerate(ends):
            widest, after = 0, end
            for begin in reversed([0, *ends[:index]]):
                widest = max(widest, max(self._widest[begin:after], default=0))
                after = begin
                result[begin, end] = self._kept[end] - self._kept[begin] + round(_WORKING * widest)
        return result

    def inside(self, begin: int, end: int) -> int:
        """Bytes that the backward pass of a segment between two points holds inside, roughly."""
        return self._inside[begin, end]

    def _around(self, begin: int, end: int) -> int:
        return self._gradients[begin] + self._gradients[end] + self._weights[end] - self._weights[begin]

    @property
    def whole(self) -> Cutting:
        """No cut at all."""
        end = len(self._graph.nodes)
        return Cutting((), self._weights[end], self.inside(0, end), 0.0)

    def cuttings(self) -> list[Cutting]:
        """For a range of arenas, the cutting that stores least, and those that recompute less for more bytes.

        Every entry is the best of its kind: no other cutting of the chain has both a smaller arena and exchange at
        the same recomputation.
        """
        points = [0, *self.points]
        end = len(self._graph.nodes)
        largest = self.inside(0, end)
        smallest = max(self.inside(a, b) for a, b in zip(points, [*self.points, end], strict=True))
        found: list[Cutting] = [self.whole]
        for step in range(_ARENAS):
            arena = round(smallest * (largest / max(smallest, 1)) ** (step / _ARENAS))
            found += self._within(points, end, arena)
        return _undominated(found)

    def evenly(self, segments: int) -> list[Cutting]:
        """The cutting into so many segments that takes least memory; none where there are not so many nodes."""
        if segments == 1:
            return [self.whole]
        points = [0, *self.points]
        end = len(self._graph.nodes)
        arenas = sorted({self.inside(a, b) for a in points for b in (*self.points, end) if a < b})
        found: list[Cutting] = []
        for arena in arenas[:: max(1, len(arenas) // _ARENAS)] + arenas[-1:]:
            found += self._exactly(segments, points, end, arena)
        return [min(found, key=lambda c: (c.exchange + c.arena, c.extra_seconds))] if found else []

    def _exactly(self, segments: int, points: Sequence[int], end: int, arena: int) -> list[Cutting]:
        """The cutting into so many segments within an arena that stores least, if there is one."""
        # rows[k]: {c: (stored, exchange, place of the cut before)} after k cuts
        rows: list[dict[int, tuple[int, int, int]]] = [{0: (0, 0, 0)}]
        for _ in range(segments - 1):
            row: dict[int, tuple[int, int, int]] = {}
            for index, position in enumerate(points[1:], 1):
                options = [
                    (rows[-1][p][0] + self._stored[p, position],
                     max(rows[-1][p][1], rows[-1][p][0] + self._around(p, position)), p)
                    for p in points[:index] if p in rows[-1] and self.inside(p, position) <= arena
                ]  # fmt: skip
                if options:
                    row[position] = min(options)
            rows.append(row)
        last = [
            (max(exchange, stored + self._around(position, end)), position)
            for position, (stored, exchange, _) in rows[-1].items() if self.inside(position, end) <= arena
        ]  # fmt: skip
        if not last:
            return []
        exchange, position = min(last)
        cuts = [position]
        for k in range(segments - 1, 1, -1):
            cuts.insert(0, rows[k][cuts[0]][2])
        again = self._time[position] - self._time[min(self._begin, position)]
        return [Cutting(tuple(cuts), exchange, arena, again + 2 * len(cuts) * SESSION)]

    def _within(self, points: Sequence[int], end: int, arena: int) -> list[Cutting]:
        """The cuttings whose segments fit the arena, one for every place of the last cut."""
        stored = {0: 0}
        around = {0: 0}
        before: dict[int, int] = {}
        for index, position in enumerate(points[1:], 1):
            best: tuple[int, int, int] | None = None
            for earlier in reversed(points[:index]):
                if self.inside(earlier, position) > arena:
                    break
                if earlier in stored:
                    exchange = max(around[earlier], stored[earlier] + self._around(earlier, position))
                    entry = (stored[earlier] + self._stored[earlier, position], exchange, earlier)
                    best = entry if best is None else min(best, entry)
            if best is not None:
                stored[position], around[position], before[position] = best
        found = []
        for position in points[1:]:
            if position not in stored or self.inside(position, end) > arena:
                continue
            cuts = [position]
            while before[cuts[0]] != 0:
                cuts.insert(0, before[cuts[0]])
            exchange = max(around[position], stored[position] + self._around(position, end))
            again = self._time[position] - self._time[min(self._begin, position)]
            found.append(Cutting(tuple(cuts), exchange, arena, again + 2 * len(cuts) * SESSION))
        return found


def _points(crossing_bytes: Sequence[int], size: int) -> list[int]:
    """The positions to consider: all, or the narrowest of each stretch."""
    if size - 1 <= _POINTS:
        return [*range(1, size)]
    bounds = [1 + (size - 1) * i // _POINTS for i in range(_POINTS + 1)]
    return [
        min(range(a, b), key=lambda p: (crossing_bytes[p], -p)) for a, b in pairwise(bounds)
    ]  # fmt: skip


def _undominated(cuttings: Sequence[Cutting]) -> list[Cutting]:
    """Without those that take more memory and more time than another, the fastest first."""
    result: list[Cutting] = []
    least = None
    for entry in sorted(cuttings, key=lambda c: (c.extra_seconds, c.exchange + c.arena, c.cuts)):
        total = entry.exchange + entry.arena
        if least is None or total < least:
            result.append(entry)
            least = total
    return result
