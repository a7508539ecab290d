"""One array as the planner sees it: tokens, labels of lines, and how often each token occurs in each context.

Planning never codes anything on trial. Values become tokens of a byte (sign and magnitude, large magnitudes by parts
of octaves), and a few histograms over them say what every division would cost.

Two things tell lines apart: how large their values are, and (after lines were negated) how many of them are positive.
Both go into one label: the first counts in ones, the second in steps of more than all that magnitudes can add up to.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from . import fixed, tokens
from .division import CHANNEL, CHANNEL_AND_TAP, EACH, LARGEST_LABEL, UNLABELLED, Labels, Shape

Integers = npt.NDArray[np.signedinteger]
Bytes = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

#: Magnitudes below 2**4 are tokens by themselves, from there on eighths of octaves, from 2**10 on half octaves.
_SINGLE, _EIGHTHS, _LARGEST = 4, 10, (1 << 32) - 1
_COARSE = (1 << _SINGLE) + 8 * (_EIGHTHS - _SINGLE)
_MAGNITUDES = _COARSE + 2 * (32 - _EIGHTHS)
#: How many tokens there are: 0, and each magnitude with each sign.
TOKENS = 2 * _MAGNITUDES - 1


def _by_token(single: I64, eighths: I64, halves: I64) -> I64:
    """A number for each token, from those for its kinds of magnitude."""
    result: I64 = np.concatenate([single, eighths, halves])[(np.arange(TOKENS) + 1) // 2]
    return result


#: How large the values of each token are (about their logarithm), and how many of their bits it does not tell.
WEIGHTS = _by_token(
    fixed.log2(np.arange(1, (1 << _SINGLE) + 1)) >> 8,
    (np.arange(8 * (_EIGHTHS - _SINGLE)) + 8 * _SINGLE) << 5,
    (np.arange(2 * (32 - _EIGHTHS)) + 2 * _EIGHTHS) << 7,
)
UNTOLD = _by_token(
    np.zeros(1 << _SINGLE, np.int64),
    np.arange(8 * (_EIGHTHS - _SINGLE)) // 8 + _SINGLE - 3,
    np.arange(2 * (32 - _EIGHTHS)) // 2 + _EIGHTHS - 1,
)


def _halves() -> Bytes:
    """For each token, its number when eighths of octaves are joined to halves."""
    numbers = np.arange(TOKENS)
    first, last = 2 * (1 << _SINGLE) - 1, 2 * _COARSE - 1
    eighth = numbers[first:last] - first
    numbers[first:last] = first + 8 * (eighth // 8) + eighth % 2
    return np.unique(numbers, return_inverse=True)[1].reshape(-1).astype(np.uint8)


HALVES = _halves()
#: Cells of the histograms by line, beyond which tokens are coarse.
_MUCH = 1 << 18
#: Then also only so many labels of crossing lines are looked at.
_KINDS = 24
#: Values in a range of at most this size become tokens by a table.
_TABLE = 1 << 16
#: Elements of an array that histograms are made of, about.
_SAMPLE = 1 << 20
#: Elements that tell where a line belongs, and cells of one histogram by line.
_LINE_SAMPLE, _CELLS = 1 << 18, 1 << 20
#: Lines are never judged by fewer elements than this.
_SHORT = 256
#: With this many values that are not zero in a line, labels are by half octaves, with the second by quarters too.
_FINE, _FINEST = 24, 64
#: Labels of so many an octave are told apart by tokens of half octaves.
_HALVES = 2
#: Labels of magnitude at most, and of signs.
_LARGEST_MAGNITUDE, _SIGNS = 63, 4
#: More positive values than negative ones, in 64ths of both together, from which on signs have label 1, 2, 3.
_ONE_SIGNED = np.array([16, 38, 58])


def to_tokens(values: Integers) -> Bytes:
    """The token of each value."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if high - low >= min(_TABLE, values.size):
        return _tokens(values.reshape(-1)).reshape(values.shape)
    return _tokens(np.arange(low, high + 1)).take(values - values.dtype.type(low))


def _tokens(values: Integers) -> Bytes:
    wide = np.clip(values.astype(np.int64, copy=False), -_LARGEST, _LARGEST)
    magnitude = np.abs(wide)
    octave = np.maximum(tokens.bit_length(magnitude.view(np.uint64)) - 1, _SINGLE)
    eighths = (1 << _SINGLE) + 8 * (octave - _SINGLE) + ((magnitude >> (octave - 3)) & 7)
    halves = _COARSE + 2 * (octave - _EIGHTHS) + ((magnitude >> (octave - 1)) & 1)
    found = np.where(magnitude < 1 << _SINGLE, magnitude, np.where(octave < _EIGHTHS, eighths, halves))
    return (2 * found - (wide < 0)).astype(np.uint8)


@dataclass(frozen=True)
class Words:
    """What each token costs, in each of some codes or contexts: of all tokens, and of those joined by `HALVES`."""

    exact: F64
    halves: F64

    def of(self, numbers: I64) -> Words:
        """Those with these numbers."""
        return Words(self.exact[numbers], self.halves[numbers])


@dataclass(frozen=True)
class Choice:
    """One way to divide an array.

    `rows` are the labels of its rows if they have any, `sets` those of its columns, labelled in the way `by_column`;
    `columns` is the label of each column in all. `histograms` are by context, `side` is the bits (times 2**16) that
    labels take.
    """

    rows: Labels | None
    by_column: int
    sets: Sequence[Labels]
    columns: I64
    histograms: I64
    side: int
    #: Whether labels are so fine that all tokens are needed to tell them apart.
    fine: bool = False

    @property
    def divided(self) -> bool:
        """Whether it is a division at all."""
        return self.rows is not None or bool(self.sets)

    def row_labels(self, shape: Shape) -> I64:
        """The label of each row, 1 if they have none."""
        return np.ones(shape.rows, np.int64) if self.rows is None else self.rows.astype(np.int64)


def column_labels(way: int, sets: Sequence[Labels], shape: Shape) -> I64:
    """The label of each column, 1 if they have none."""
    if way == UNLABELLED:
        return np.ones(shape.columns, np.int64)
    if way == CHANNEL_AND_TAP:
        channel, tap = (labels.astype(np.int64) for labels in sets)
        both = (channel[:, np.newaxis] + tap - 1) * ((channel > 0)[:, np.newaxis] & (tap > 0))
        return both.reshape(-1)
    return np.repeat(sets[0].astype(np.int64), shape.taps if way == CHANNEL else 1)


class Seen:
    """An array less its base, with negated lines, and what is known of it."""

    def __init__(self, shape: Shape, values: Integers) -> None:
        self.shape = shape
        self.tokens = to_tokens(values)
        self.top = int(self.tokens.max(initial=0)) + 1
        self._size = values.size
        magnitudes = np.abs(np.clip(values, -(2**31) + 1, 2**31 - 1)) if values.itemsize > 4 else np.abs(values)
        self._sums = tuple(magnitudes.sum(axis=axis, dtype=np.int64) for axis in (1, 0))
        nonzero = int(np.count_nonzero(self.tokens))
        in_line = nonzero // (shape.rows + shape.columns)
        self._per_octave = [1] if in_line < _FINE else [2, 8] if in_line >= _FINEST else [2]
        self._signs = tuple(_one_signed(values, axis) for axis in (1, 0))

    def choices(self) -> list[Choice]:
        """All ways to divide this array that may pay, the undivided one first."""
        shape = self.shape
        ones = np.ones(shape.columns, np.int64)
        counts = np.bincount(self.tokens.reshape(-1), minlength=TOKENS).astype(np.int64)
        found = [Choice(None, UNLABELLED, [], ones, counts[np.newaxis], 0)]
        for per_octave in self._per_octave:
            rows, columns = (
                _by_magnitude(sums, count, per_octave)
                for sums, count in zip(self._sums, (shape.columns, shape.rows), strict=True)
            )
            fine = per_octave > _HALVES
            found += self._by_lines(rows, columns, fine, min(found[1:], key=_bits, default=None) if fine else None)
            if shape.taps > 1 and shape.channels > 1:
                found += self._by_channel(rows, per_octave)
        return found

    def _by_lines(self, rows: Labels, columns: Labels, fine: bool, like: Choice | None) -> list[Choice]:
        """Choices with these labels of magnitude, with and without labels of signs, of the same lines as `like`."""
        shape = self.shape
        row_signs, column_signs = self._signs
        row_kinds, row_of = np.unique(rows.astype(np.int64) * _SIGNS + row_signs, return_inverse=True)
        column_kinds, column_of = np.unique(columns.astype(np.int64) * _SIGNS + column_signs, return_inverse=True)
        joint = self._joint(row_of.reshape(-1), column_of.reshape(-1))
        row_kind, column_kind = row_kinds // _SIGNS, column_kinds // _SIGNS
        found: list[Choice] = []
        for by_row, by_column in ((True, False), (False, True), (True, True)):
            if (by_row and shape.rows == 1) or (by_column and shape.columns == 1):
                continue
            if like is not None and (by_row, by_column) != (like.rows is not None, like.by_column != UNLABELLED):
                continue
            reach = (int(row_kind.max()) if by_row else 1) + (int(column_kind.max()) if by_column else 1)
            for signs in (0, reach - 1):
                if signs and not ((by_row and row_signs.any()) or (by_column and column_signs.any())):
                    continue
                if signs and reach - 1 + 2 * (_SIGNS - 1) * signs > 2 * LARGEST_LABEL:
                    continue
                row, column = (
                    (kind + signs * (kinds % _SIGNS)) * (kind > 0) if used else np.ones_like(kind)
                    for used, kind, kinds in (
                        (by_row, row_kind, row_kinds),
                        (by_column, column_kind, column_kinds),
                    )
                )
                if signs and max(row.max(), column.max()) > LARGEST_LABEL:
                    continue
                row_labels = row[row_of.reshape(-1)].astype(np.uint8)
                labels = column[column_of.reshape(-1)]
                sets = [labels.astype(np.uint8)] if by_column else []
                found.append(
                    Choice(
                        row_labels if by_row else None,
                        EACH if by_column else UNLABELLED,
                        sets,
                        labels,
                        _by_context(joint, row, column),
                        sum(label_bits(each) for each in [*([row_labels] if by_row else []), *sets]),
                        fine,
                    )
                )
        return found

    def _by_channel(self, rows: Labels, per_octave: int) -> list[Choice]:
        """Choices with labels of channels, and of channels and taps."""
        shape = self.shape
        by_tap = self._sums[1].reshape(shape.channels, shape.taps)
        channel = _by_magnitude(by_tap.sum(axis=1), shape.rows * shape.taps, per_octave)
        tap = _by_magnitude(by_tap.sum(axis=0), shape.rows * shape.channels, per_octave)
        found = []
        for way, sets in ((CHANNEL, [channel]), (CHANNEL_AND_TAP, [channel, tap])):
            for labels in (None, rows) if shape.rows > 1 else (None,):
                empty = np.zeros((0, TOKENS), np.int64)
                choice = Choice(labels, way, sets, column_labels(way, sets, shape), empty, 0)
                found.append(self.counted(choice))
        return found

    def counted(self, choice: Choice) -> Choice:
        """The same with histograms of its labels."""
        rows, columns = choice.row_labels(self.shape), choice.columns
        row_kinds, row_of = np.unique(rows, return_inverse=True)
        column_kinds, column_of = np.unique(columns, return_inverse=True)
        joint = self._joint(row_of.reshape(-1), column_of.reshape(-1))
        histograms = _by_context(joint, row_kinds, column_kinds)
        side = sum(label_bits(each) for each in [*([] if choice.rows is None else [choice.rows]), *choice.sets])
        return replace(choice, histograms=histograms, side=side)

    def _joint(self, rows: I64, columns: I64) -> I64:
        """How often each token occurs by number of row and column: (row numbers, column numbers, tokens)."""
        step = max(1, self._size // _SAMPLE)
        height, width = int(rows.max()) + 1, int(columns.max()) + 1
        index = self.tokens[::step] + (rows[::step] * (width * self.top)).astype(np.int32)[:, np.newaxis]
        index += (columns * self.top).astype(np.int32)
        counts = np.bincount(index.reshape(-1), minlength=height * width * self.top).reshape(height, width, self.top)
        return counts if step == 1 else step * counts

    def line_costs(
        self, axis: int, lines: I64, others: I64, crossing: I64, labels: I64, words: Words, *, fine: bool
    ) -> F64:
        """What each line would cost with each of `labels`: (lines, labels), in the unit of `words`.

        `lines` says which line of the set each row (`axis` 0) or column (1) belongs to, `others` its label in another
        set of the same axis (1 if there is none); `crossing` are the labels of the other axis. `words` are the costs
        of tokens by context. Long lines are judged by a part of them, and by coarse tokens if there is much to do.
        """
        combinations = len(np.unique(others)) * len(np.unique(crossing)) * self.top
        coarse = not fine and (int(lines.max()) + 1) * combinations > _MUCH
        found = HALVES.take(self.tokens) if coarse else self.tokens
        costs_of, top = (words.halves, int(HALVES[: self.top].max()) + 1) if coarse else (words.exact, self.top)
        # Words may be known of a sample only, in which the rarest tokens are not.
        costs_of = np.pad(costs_of, ((0, 0), (0, max(0, top - costs_of.shape[1]))), mode="edge")
        view = found if axis == 0 else found.T
        width = int(crossing.max()) + int(others.max()) - 1
        live = np.flatnonzero(np.isin(crossing, _frequent(crossing)) if coarse else crossing)
        step = max(1, min(len(view) * len(live) // _LINE_SAMPLE, len(live) // _SHORT))
        live = live[::step]
        used = np.flatnonzero(others)
        if len(used) < len(others):
            view, lines, others = view[used], lines[used], others[used]
        # Only combinations of labels that there are: `places` are the contexts of label 1.
        kinds = np.unique(np.add.outer(np.unique(others), np.unique(crossing[live])) - 2)
        place = np.zeros(width, np.int64)
        place[kinds] = np.arange(len(kinds))
        view, crossing = view[:, live], crossing[live]
        total = int(lines.max(initial=-1)) + 1
        cells = len(kinds) * top
        table = np.stack([costs_of[kinds + label - 1, :top].reshape(-1) for label in labels.tolist()], axis=1)
        costs = np.zeros((total, len(labels)))
        # Sixteenths of bits are enough for much data, and 32-bit floats hold the sums of short lines.
        unit = fixed.FRACTION - 4 if coarse and int(np.bincount(lines).max()) * view.shape[1] < 1 << 13 else 0
        if unit:
            table = (table.astype(np.int64) >> unit).astype(np.float32)
        piece = max(1, _CELLS // cells)
        order = np.argsort(lines, kind="stable")
        bounds = np.searchsorted(lines[order], np.arange(0, total + piece, piece))
        single = len(np.unique(others)) == 1
        column = (place[crossing + int(others[0] if len(others) else 1) - 2] * top).astype(np.int32)
        for number, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
            chosen = order[first:last]
            base, end = number * piece, min((number + 1) * piece, total)
            row = ((lines[chosen] - base) * cells).astype(np.int32)[:, np.newaxis]
            index = view[chosen] + row
            if single:
                index += column
            else:
                index += (place[np.add.outer(others[chosen], crossing) - 2] * top).astype(np.int32)
            counts = np.bincount(index.reshape(-1), minlength=(end - base) * cells)
            costs[base:end] = fixed.product(counts.reshape(end - base, -1), table)
        return (step << unit) * costs


def _bits(choice: Choice) -> int:
    """What elements and labels take with a code for each context."""
    return int(fixed.entropy(choice.histograms).sum()) + choice.side


def _frequent(labels: I64) -> I64:
    """The most frequent labels (without 0)."""
    counts = np.bincount(labels)
    counts[0] = 0
    return np.argsort(-counts, kind="stable")[: min(_KINDS, int(np.count_nonzero(counts)))]


def _by_context(joint: I64, rows: I64, columns: I64) -> I64:
    """Histograms by context from those of (rows, columns, tokens), which have these labels; 0 is left out."""
    row_labels, joint = _merged(joint, rows, 0)
    column_labels, joint = _merged(joint, columns, 1)
    result = np.zeros((int(rows.max() + columns.max()) - 1, TOKENS), np.int64)
    for label, histograms in zip(row_labels.tolist(), joint, strict=True):
        result[column_labels + (label - 2), : joint.shape[2]] += histograms
    return result


def _merged(joint: I64, labels: I64, axis: int) -> tuple[I64, I64]:
    """(the labels that there are, ascending and without 0, sums of what has the same label) along an axis."""
    kinds, place = np.unique(labels, return_inverse=True)
    if len(kinds) == 1:
        return kinds, joint.sum(axis=axis, keepdims=True)
    dead = int(kinds[0] == 0)
    if len(kinds) == len(labels):
        order = np.argsort(labels, kind="stable")[dead:]
        return kinds[dead:], joint.take(order, axis=axis)
    shape = [*joint.shape]
    shape[axis] = len(kinds)
    merged = np.zeros(shape, np.int64)
    for line, number in enumerate(place.reshape(-1).tolist()):
        if axis:
            merged[:, number] += joint[:, line]
        else:
            merged[number] += joint[line]
    return kinds[dead:], merged[:, dead:] if axis else merged[dead:]


def _by_magnitude(sums: I64, count: int, per_octave: int) -> Labels:
    """Labels by the mean magnitudes of lines: logarithms, the smallest 1, and 0 for zeros."""
    live = np.flatnonzero(sums)
    labels = np.zeros(len(sums), np.uint8)
    if len(live):
        logarithms = fixed.rounded_log2(sums[live], count, per_octave)
        lowest = max(int(logarithms.min()), int(logarithms.max()) - _LARGEST_MAGNITUDE + 1)
        labels[live] = np.maximum(logarithms - lowest, 0) + 1
    return labels


def _one_signed(values: Integers, axis: int) -> Labels:
    """Labels by how many more values are positive than negative."""
    positive = np.count_nonzero(values > 0, axis=axis)
    negative = np.count_nonzero(values < 0, axis=axis)
    share = 64 * (positive - negative) // (positive + negative + 2)
    found: Labels = np.searchsorted(_ONE_SIGNED, share, side="right").astype(np.uint8)
    return found


def label_bits(labels: Labels) -> int:
    """Bits (times 2**16) that a set of labels takes, about."""
    counts = np.bincount(labels).astype(np.int64)
    return int(fixed.entropy(counts)) + ((6 + 3 * int(np.count_nonzero(counts))) << fixed.FRACTION)
