"""What the encoder decides about the arrays of a group: bases, negated lines, divisions, contexts that share a code.

All of it by counting. Each array offers a few divisions (`histograms.py`); their histograms by context are units that
`classes.py` clusters into codes; then each array takes the division that is cheapest under these codes, each line the
label that is cheapest for it, and the codes are made anew (as k-means does, with coded size for distance).

Costs are whole numbers throughout, so that every platform decides alike. The decoder needs none of this: whatever is
decided here stands in the blob.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from . import classes, describe, fixed, mirror, signs, template
from .describe import Described
from .division import CHANNEL, CHANNEL_AND_TAP, UNLABELLED, Division, Labels, Shape, contexts
from .histograms import HALVES, TOKENS, UNTOLD, WEIGHTS, Choice, Seen, Words, column_labels, to_tokens
from .signs import NO_SIGNS, Signs

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
    """What is decided about one array: `values` are less base and mirror image, with signs changed, as a matrix."""

    shape: Shape
    base: int
    values: Integers
    constant: bool
    division: Division | None
    code: int
    signs: Signs
    #: Which rows have a template subtracted: that is planned next after this.
    uses: Flags | None = None
    #: How lines are mirrored (`mirror.py`).
    mirrored: int = mirror.NOT

    @property
    def labels(self) -> Sequence[Labels]:
        """All sets of labels."""
        return () if self.division is None else self.division.labels

    def described(self, sets: Sequence[tuple[bool, int]]) -> Described:
        """What the header says of it; `sets` tells how each set of labels is written."""
        if self.constant:
            return Described(self.shape, self.base, describe.CONSTANT)
        if self.division is None:
            kinds = describe.WHOLE, describe.WHOLE_SIGNS, describe.WHOLE_TEMPLATE
            kind = kinds[self._treatment]
            return Described(self.shape, self.base, kind, self.code)
        kinds = describe.DIVIDED, describe.DIVIDED_SIGNS, describe.DIVIDED_TEMPLATE
        kind = kinds[self._treatment]
        by_row, by_column = self.division.by_row, self.division.by_column
        return Described(self.shape, self.base, kind, 0, by_row, by_column, sets)

    @property
    def _treatment(self) -> int:
        return 2 if self.uses is not None else 1 if self.signs.changed or self.mirrored else 0


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
    found: list[Planned] = []
    members: list[_Member] = []
    for shape, values in arrays:
        planned = _prepare(shape, values.reshape(shape.rows, shape.columns))
        taking_part = [] if planned.constant else _with_template(_Member(planned))
        found += [member.planned for member in taking_part] or [planned]
        members += taking_part
    if not members:
        return found, 0
    elements = sum(member.planned.values.size for member in members)
    codes, words = _codes(members, provisional=True)
    for number in range(2 if elements <= _SMALL_GROUP else 1):
        changed = [member.choose(words) for member in members]
        if not any(changed):
            if not number:  # those were provisional
                codes, words = _codes(members)
            break
        codes, words = _codes(members)
    for member, of in zip(members, codes, strict=True):
        member.finish(of)
    return found, len(words.exact)


def _prepare(shape: Shape, values: Integers) -> Planned:
    base = base_of(values)
    if base:
        with np.errstate(over="ignore"):
            values = values - values.dtype.type(base)
    if not values.any():
        return Planned(shape, base, values, True, None, 0, NO_SIGNS)
    if how := mirror.find(values, shape.taps):
        values = mirror.subtract(values, shape.taps, how)
    found = signs.find(values) if values.size >= _LEAST else NO_SIGNS
    return Planned(shape, base, found.apply(values), False, None, 0, found, mirrored=how)


def _with_template(member: _Member) -> list[_Member]:
    """The array, or what is left of it without its template and that, if these are cheaper."""
    planned = member.planned
    # differences of differences need not fit
    found = None if planned.mirrored else template.find(planned.values)
    if found is None:
        return [member]
    left = replace(planned, values=found.subtract(planned.values), uses=found.uses)
    shape = Shape.of(found.row.shape)
    parts = [_Member(left), _Member(Planned(shape, 0, found.row[np.newaxis], False, None, 0, NO_SIGNS))]
    bits = sum(_whole_cost(part.choice) for part in parts) + (planned.shape.rows << fixed.FRACTION)
    return parts if bits < _whole_cost(member.choice) else [member]


class _Member:
    """An array that takes part in planning."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        shape, values = planned.shape, planned.values
        self.seen = Seen(shape, values) if values.size >= _LEAST and values.any() else None
        if self.seen is not None:
            self.choices = self.seen.choices()
        else:
            counts = np.bincount(to_tokens(values).reshape(-1), minlength=TOKENS).astype(np.int64)
            self.choices = [Choice(None, UNLABELLED, [], np.ones(shape.columns, np.int64), counts[np.newaxis], 0)]
        self.choice = min(self.choices, key=_own_cost)

    def choose(self, words: Words) -> bool:
        """Take the choice that is cheapest under codes of these costs of words, and give each line the label that is
        cheapest for it. Whether anything is new.
        """
        before = self.choice
        by_token = words.exact.T.copy()
        by_context = [fixed.product(choice.histograms[:, : len(by_token)], by_token) for choice in self.choices]
        costs = [
            int(found.min(axis=1).sum()) + _choice_bits(choice, _CONTEXT_BITS)
            for choice, found in zip(self.choices, by_context, strict=True)
        ]
        best = costs.index(min(costs))
        self.choice = self.choices[best]
        if self.seen is not None and self.choice.divided:
            used: Flags = np.asarray(self.choice.histograms.any(axis=1))
            codes = _spread(by_context[best].argmin(axis=1), used)
            self.choice = _refined(self.seen, self.choice, words.of(codes))
            self.choices = [self.choices[0], self.choice]
        return self.choice is not before

    def finish(self, codes: I64) -> None:
        """Put the decision into the plan; `codes` are those of the contexts."""
        choice = self.choice
        if not choice.divided:
            self.planned.code = int(codes[0])
            return
        sets = [*([] if choice.rows is None else [choice.rows]), *choice.sets]
        table = np.full(contexts(sets), codes[-1], np.uint8)
        table[: len(codes)] = codes[: len(table)]
        by_row = choice.rows is not None
        self.planned.division = Division(self.planned.shape, by_row, choice.by_column, sets, table)


def _codes(members: Sequence[_Member], *, provisional: bool = False) -> tuple[list[I64], Words]:
    """The code of each context of each member as it has chosen, and the costs of each code's words."""
    every = np.concatenate([member.choice.histograms for member in members])
    used = every.any(axis=1)
    top = int(np.flatnonzero(every.any(axis=0)).max()) + 1
    units = every[used, :top]
    found = classes.cluster(units, _keys(units), MOST_CODES, provisional=provisional)
    sums = np.zeros((int(found.max()) + 1, top), np.int64)
    np.add.at(sums, found, units)
    numbers = np.zeros(len(every), np.int64)
    numbers[used] = found
    ends = np.cumsum([len(member.choice.histograms) for member in members])[:-1]
    codes = [_spread(*each) for each in zip(np.split(numbers, ends), np.split(used, ends), strict=True)]
    halves = np.zeros((len(sums), int(HALVES[:top].max()) + 1), np.int64)
    np.add.at(halves.T, HALVES[:top], sums.T)
    return codes, Words(classes.word_costs(sums), classes.word_costs(halves))


def _keys(units: I64) -> I64:
    """What histograms are sorted by: first how one-signed they are, then how large their values."""
    positive, negative = units[:, 2::2].sum(axis=1), units[:, 1::2].sum(axis=1)
    signs = 8 * (positive - negative) // np.maximum(positive + negative, 1)
    result: I64 = (signs << 40) + ((units @ WEIGHTS[: units.shape[1]]) << 8) // np.maximum(units.sum(axis=1), 1)
    return result


def _spread(codes: I64, used: Flags) -> I64:
    """The codes; where no element is, that of the context before, or of the first that has any."""
    at = np.flatnonzero(used)
    result: I64 = codes[at[np.maximum(np.cumsum(used) - 1, 0)]]
    return result


def _refined(seen: Seen, choice: Choice, words: Words) -> Choice:
    """The choice with the cheapest label for each line, where `words` are the costs of words by context."""
    shape = seen.shape
    rows = choice.row_labels(shape)
    if choice.rows is not None:
        ones = np.ones(shape.rows, np.int64)
        rows = _cheapest(seen, 0, np.arange(shape.rows), ones, choice.columns, rows, words, choice.fine)
    sets = list(choice.sets)
    for number, labels in enumerate(sets):
        lines, others = _columns_of_set(shape, choice.by_column, sets, number)
        sets[number] = _cheapest(seen, 1, lines, others, rows, labels.astype(np.int64), words, choice.fine).astype(
            np.uint8
        )
    columns = column_labels(choice.by_column, sets, shape)
    row_labels = None if choice.rows is None else rows.astype(np.uint8)
    return seen.counted(replace(choice, rows=row_labels, sets=sets, columns=columns))


def _choice_bits(choice: Choice, context: int) -> int:
    if not choice.divided:
        return context << fixed.FRACTION
    used = int(np.count_nonzero(choice.histograms.any(axis=1)))
    return choice.side + ((_DIVIDED_BITS + len(choice.histograms) + context * used) << fixed.FRACTION)


def _own_cost(choice: Choice) -> int:
    return int(fixed.entropy(choice.histograms).sum()) + _choice_bits(choice, _OWN_CONTEXT_BITS)


def _whole_cost(choice: Choice) -> int:
    """The same with what tokens do not tell."""
    return _own_cost(choice) + (int((choice.histograms @ UNTOLD).sum()) << fixed.FRACTION)


def _columns_of_set(shape: Shape, way: int, sets: Sequence[Labels], number: int) -> tuple[I64, I64]:
    """(line of the set, label in the other set) of each column."""
    channel = np.repeat(np.arange(shape.channels), shape.taps)
    tap = np.tile(np.arange(shape.taps), shape.channels)
    if way == CHANNEL_AND_TAP:
        lines, other = (channel, sets[1][tap]) if number == 0 else (tap, sets[0][channel])
        return lines, other.astype(np.int64)
    return channel if way == CHANNEL else np.arange(shape.columns), np.ones(shape.columns, np.int64)


def _cheapest(
    seen: Seen, axis: int, lines: I64, others: I64, crossing: I64, labels: I64, words: Words, fine: bool
) -> I64:
    """For each line of a set that has a label, the cheapest of all that the set has, rare labels being dearer."""
    live = labels > 0
    kinds, counts = np.unique(labels[live], return_counts=True)
    if len(kinds) < 2:
        return labels
    costs = seen.line_costs(axis, lines, others, crossing, kinds, words, fine=fine)
    costs += int(fixed.log2(counts.sum(keepdims=True))[0]) - fixed.log2(counts.astype(np.int64))
    result = labels.copy()
    result[: len(costs)] = np.where(live[: len(costs)], kinds[costs.argmin(axis=1)], 0)
    return result
