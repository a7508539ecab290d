"""What the encoder decides about the arrays of a group: bases, negated lines, divisions, contexts that share a code.

All of it by counting. Each array offers a few divisions (`histograms.py`); their histograms by context are units that
`classes.py` clusters into codes; then each array takes the division that is cheapest under these codes, each line the
label that is cheapest for it, and the codes are made anew (as k-means does, with coded size for distance).

Costs are whole numbers throughout, so that every platform decides alike. The decoder needs none of this: whatever is
decided here stands in the blob.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import classes, describe, fixed, signs
from .describe import Described
from .division import UNLABELLED, Division, Labels, Shape, contexts
from .histograms import TOKENS, WEIGHTS, Choice, Columns, Seen, label_bits, to_tokens

Integers = npt.NDArray[np.signedinteger]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

#: Codes of a group at most.
MOST_CODES = 96
#: Smaller arrays are not divided; larger ones are judged by a sample of about this many elements where that will do.
_LEAST, _SAMPLE = 64, 1 << 12
#: A value is common if it is one in this many.
_COMMON = 8
#: Bits that a divided array costs besides its labels, and each of its contexts.
_DIVIDED_BITS, _CONTEXT_BITS = 14, 2
#: The same for the first choice, before there are codes to share.
_OWN_CONTEXT_BITS = 24
#: Groups of at most this many elements have their labels refined twice.
_SMALL_GROUP = 1 << 18


@dataclass
class Planned:
    """What is decided about one array: `values` are less their base and with negated lines, as a matrix."""

    shape: Shape
    base: int
    values: Integers
    constant: bool
    division: Division | None
    code: int
    negated: tuple[Flags | None, Flags | None]

    @property
    def labels(self) -> Sequence[Labels]:
        """All sets of labels."""
        return () if self.division is None else self.division.labels

    def described(self, sets: Sequence[tuple[bool, int]]) -> Described:
        """What the header says of it; `sets` tells how each set of labels is written."""
        negated = any(flags is not None for flags in self.negated)
        if self.constant:
            return Described(self.shape, self.base, describe.CONSTANT)
        if self.division is None:
            kind = describe.WHOLE_NEGATED if negated else describe.WHOLE
            return Described(self.shape, self.base, kind, self.code)
        kind = describe.DIVIDED_NEGATED if negated else describe.DIVIDED
        by_row, by_column = self.division.by_row, self.division.by_column
        return Described(self.shape, self.base, kind, 0, by_row, by_column, sets)


def base_of(values: Integers) -> int:
    """What to subtract: 0 if it is common or amid the values; else a common value; else the middle of narrow ones."""
    sample = values.reshape(-1)[:: max(1, values.size // _SAMPLE)]
    low, high = int(values.min()), int(values.max())
    zeros = sample.size - int(np.count_nonzero(sample))
    if low < 0 < high or zeros * _COMMON >= sample.size:
        return 0
    found, counts = np.unique(sample, return_counts=True)
    if counts.max() * _COMMON < sample.size and high - low < 1 << 12:
        return (low + high + 1) // 2
    return int(found[np.argmax(counts)])


def plan(arrays: Sequence[tuple[Shape, Integers]]) -> tuple[list[Planned], int]:
    """What is decided about each array (a flat or shaped one that has elements), and how many codes there are."""
    found = [_prepare(shape, values.reshape(shape.rows, shape.columns)) for shape, values in arrays]
    members = [_Member(array, shape) for array, (shape, _) in zip(found, arrays, strict=True) if not array.constant]
    if not members:
        return found, 0
    elements = sum(member.planned.values.size for member in members)
    codes, words = _codes(members)
    for _ in range(2 if elements <= _SMALL_GROUP else 1):
        for member in members:
            member.choose(words)
        codes, words = _codes(members)
        refined = [member.refine(words[of]) for member, of in zip(members, codes, strict=True)]
        if not any(refined):
            break
        codes, words = _codes(members)
    for member, of in zip(members, codes, strict=True):
        member.finish(of)
    return found, len(words)


def _prepare(shape: Shape, values: Integers) -> Planned:
    base = base_of(values)
    if base:
        with np.errstate(over="ignore"):
            values = values - values.dtype.type(base)
    if not values.any():
        return Planned(shape, base, values, True, None, 0, (None, None))
    negated = signs.find(values) if values.size >= _LEAST else (None, None)
    return Planned(shape, base, signs.negate(values, *negated), False, None, 0, negated)


class _Member:
    """An array that takes part in planning."""

    def __init__(self, planned: Planned, shape: Shape) -> None:
        self.planned = planned
        none = Columns.of(UNLABELLED, [], shape)
        if planned.values.size >= _LEAST:
            self.seen: Seen | None = Seen(shape, planned.values)
            self.choices = self.seen.choices()
        else:
            self.seen = None
            counts = np.bincount(to_tokens(planned.values).reshape(-1), minlength=TOKENS).astype(np.int64)
            self.choices = [Choice(False, none, counts[np.newaxis], 0)]
        self.choice = min(self.choices, key=_own_cost)

    def choose(self, words: F64) -> None:
        """Take the choice that is cheapest under codes of these costs of words."""
        costs = [
            int((choice.histograms @ words.T).min(axis=1).sum()) + _choice_bits(choice, _CONTEXT_BITS)
            for choice in self.choices
        ]
        self.choice = self.choices[costs.index(min(costs))]

    def refine(self, words: F64) -> bool:
        """Give each line the label that is cheapest for it, where `words` are the costs of words by context."""
        choice, seen = self.choice, self.seen
        if seen is None or not (choice.by_row or choice.columns.sets):
            return False
        shape, columns = seen.shape, choice.columns
        rows = seen.rows.astype(np.int64) if choice.by_row else np.ones(shape.rows, np.int64)
        if choice.by_row:
            ones = np.ones(shape.rows, np.int64)
            rows = _cheapest(rows, seen.line_costs(0, np.arange(shape.rows), ones, columns.total, words))
        sets = list(columns.sets)
        for number, labels in enumerate(sets):
            lines, others = _columns_of_set(shape, columns.way, sets, number)
            costs = seen.line_costs(1, lines, others, rows, words)
            sets[number] = _cheapest(labels.astype(np.int64), costs).astype(np.uint8)
        if choice.by_row:
            seen.rows = rows.astype(np.uint8)
        columns = Columns.of(columns.way, sets, shape)
        side = sum(label_bits(labels) for labels in sets) + (label_bits(seen.rows) if choice.by_row else 0)
        self.choice = Choice(choice.by_row, columns, seen.histograms(choice.by_row, columns), side)
        self.choices = [self.choices[0], self.choice]
        return True

    def finish(self, codes: I64) -> None:
        """Put the decision into the plan; `codes` are those of the contexts."""
        choice = self.choice
        if not (choice.by_row or choice.columns.sets):
            self.planned.code = int(codes[0])
            return
        assert self.seen is not None, "only arrays that were looked at are divided"
        sets: list[Labels] = [self.seen.rows] if choice.by_row else []
        sets += choice.columns.sets
        table = np.zeros(contexts(sets), np.uint8)
        table[: len(codes)] = codes[: len(table)]
        table[len(codes) :] = codes[-1]
        self.planned.division = Division(self.seen.shape, choice.by_row, choice.columns.way, sets, table)


def _codes(members: Sequence[_Member]) -> tuple[list[I64], F64]:
    """The code of each context of each member as it has chosen, and the costs of each code's words."""
    every = np.concatenate([member.choice.histograms for member in members])
    used = np.flatnonzero(every.any(axis=1))
    top = int(np.flatnonzero(every.any(axis=0)).max()) + 1
    units = every[used, :top]
    found = classes.cluster(units, WEIGHTS[:top], MOST_CODES)
    sums = np.zeros((int(found.max()) + 1, TOKENS), np.int64)
    np.add.at(sums, (found[:, np.newaxis], np.arange(top)), units)
    # A context without elements has the code of the one before, or of the first that has any.
    place = np.maximum(np.cumsum(every.any(axis=1)) - 1, 0)
    codes: list[I64] = []
    end = 0
    for member in members:
        begin, end = end, end + len(member.choice.histograms)
        first = begin + int(np.argmax(every[begin:end].any(axis=1)))
        codes.append(found[np.maximum(place[begin:end], place[first])])
    return codes, classes.word_costs(sums)


def _choice_bits(choice: Choice, context: int) -> int:
    if not (choice.by_row or choice.columns.sets):
        return context << fixed.FRACTION
    return choice.side + ((_DIVIDED_BITS + context * len(choice.histograms)) << fixed.FRACTION)


def _own_cost(choice: Choice) -> int:
    return int(fixed.entropy(choice.histograms).sum()) + _choice_bits(choice, _OWN_CONTEXT_BITS)


def _columns_of_set(shape: Shape, way: int, sets: Sequence[Labels], number: int) -> tuple[I64, I64]:
    """(line of the set, label in the other set) of each column."""
    channel = np.repeat(np.arange(shape.channels), shape.taps)
    tap = np.tile(np.arange(shape.taps), shape.channels)
    if len(sets) == 2:
        lines, other = (channel, sets[1][tap]) if number == 0 else (tap, sets[0][channel])
        return lines, other.astype(np.int64)
    lines = channel if len(sets[0]) == shape.channels and len(sets[0]) < shape.columns else np.arange(shape.columns)
    return lines, np.ones(shape.columns, np.int64)


def _cheapest(labels: I64, costs: F64) -> I64:
    """The cheapest label of each line that has one, by `costs` and by how frequent labels are."""
    live = labels > 0
    counts = np.bincount(labels[live], minlength=costs.shape[1] + 1)[1 : costs.shape[1] + 1].astype(np.int64)
    rarity = fixed.log2(np.full(len(counts), 2 * int(counts.sum()) + len(counts))) - fixed.log2(2 * counts + 1)
    result: I64 = np.where(live[: len(costs)], (costs + rarity).argmin(axis=1) + 1, 0)
    return np.concatenate([result, labels[len(costs) :]])
