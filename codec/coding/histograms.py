"""One array as the planner sees it: tokens, and how often each occurs in each context.

Planning never codes anything on trial. Values become tokens of a byte, and a few histograms over them (by label of
row and column, by line) say what every division would cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import fixed, tokens
from .division import CHANNEL, CHANNEL_AND_TAP, EACH, LARGEST_LABEL, UNLABELLED, Labels, Shape

Integers = npt.NDArray[np.signedinteger]
Bytes = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

#: Split of the tokens: 64 values by themselves, larger ones by half octaves.
_SPLIT = 6
#: How many tokens there are.
TOKENS = tokens.token_count(_SPLIT)
#: How large the values of each token are: about their logarithm.
WEIGHTS: I64 = np.concatenate(
    [
        (fixed.log2(np.arange(2, (1 << _SPLIT) + 2) // 2 + 1) >> 10),
        (np.arange(TOKENS - (1 << _SPLIT)) + 2 * (_SPLIT - 1) + 1) << 5,
    ]
)
#: Values in a range of at most this size become tokens by a table.
_TABLE = 1 << 16
#: Elements of an array that histograms are made of, about.
_SAMPLE = 1 << 20
#: Elements that tell where a line belongs, and cells of one histogram by line.
_LINE_SAMPLE, _CELLS = 1 << 19, 1 << 20
#: Lines are never judged by fewer elements than this.
_SHORT = 256
#: With this many values that are not zero in a line, labels are by half octaves.
_FINE = 24


def to_tokens(values: Integers) -> Bytes:
    """The token of each value."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if high - low >= min(_TABLE, values.size):
        return (
            tokens.split_tokens(tokens.zigzag(values.astype(np.int64).reshape(-1)), _SPLIT)[0]
            .astype(np.uint8)
            .reshape(values.shape)
        )
    every = tokens.split_tokens(tokens.zigzag(np.arange(low, high + 1)), _SPLIT)[0].astype(np.uint8)
    return every.take(values - values.dtype.type(low))


@dataclass
class Columns:
    """One way to label the columns: the sets of labels, and each column's label."""

    way: int
    sets: list[Labels]
    total: I64

    @staticmethod
    def of(way: int, sets: Sequence[Labels], shape: Shape) -> Columns:
        """From the sets of labels."""
        if way == UNLABELLED:
            total = np.ones(shape.columns, np.int64)
        elif way == CHANNEL_AND_TAP:
            channel, tap = (labels.astype(np.int64) for labels in sets)
            total = (channel[:, np.newaxis] + tap - 1) * ((channel > 0)[:, np.newaxis] & (tap > 0))
        else:
            total = np.repeat(sets[0].astype(np.int64), shape.taps if way == CHANNEL else 1)
        return Columns(way, list(sets), total.reshape(-1))


@dataclass
class Choice:
    """One way to divide an array: labels, histograms by context, bits for the labels."""

    by_row: bool
    columns: Columns
    histograms: I64
    side: int


@dataclass
class Seen:
    """An array less its base, with negated lines, and what is known of it."""

    shape: Shape
    values: Integers
    tokens: Bytes = field(init=False)
    rows: Labels = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = to_tokens(self.values)
        self.top = int(self.tokens.max(initial=0)) + 1
        shape = self.shape
        magnitudes = (
            np.abs(np.clip(self.values, -(2**31) + 1, 2**31 - 1)) if self.values.itemsize > 4 else np.abs(self.values)
        )
        self._in_rows: I64 = magnitudes.sum(axis=1, dtype=np.int64)
        self._in_columns: I64 = magnitudes.sum(axis=0, dtype=np.int64)
        lines = min(shape.rows, shape.columns)
        nonzero = int(np.count_nonzero(self.tokens))
        self._per_octave = 2 if nonzero >= _FINE * (shape.rows + shape.columns) and lines > 1 else 1
        self.rows = self._labels(self._in_rows, shape.columns)

    def _labels(self, sums: I64, count: int, largest: int = LARGEST_LABEL) -> Labels:
        """Labels by the mean magnitudes of lines: logarithms, the smallest 1."""
        live = np.flatnonzero(sums)
        labels = np.zeros(len(sums), np.uint8)
        if len(live):
            logarithms = fixed.rounded_log2(sums[live], count, self._per_octave)
            lowest = max(int(logarithms.min()), int(logarithms.max()) - largest + 1)
            labels[live] = np.maximum(logarithms - lowest, 0) + 1
        return labels

    def columns(self) -> list[Columns]:
        """All ways to label the columns that may pay."""
        shape = self.shape
        if shape.columns == 1:
            return []
        ways = [Columns.of(EACH, [self._labels(self._in_columns, shape.rows)], shape)]
        if shape.taps > 1 and shape.channels > 1:
            by_tap = self._in_columns.reshape(shape.channels, shape.taps)
            tap = self._labels(by_tap.sum(axis=0), shape.rows * shape.channels, LARGEST_LABEL // 2)
            left = LARGEST_LABEL - int(tap.max(initial=1)) + 1
            channel = self._labels(by_tap.sum(axis=1), shape.rows * shape.taps, left)
            ways.append(Columns.of(CHANNEL, [channel], shape))
            ways.append(Columns.of(CHANNEL_AND_TAP, [channel, tap], shape))
        return ways

    def choices(self) -> list[Choice]:
        """All ways to divide this array that may pay, the undivided one first."""
        none = Columns.of(UNLABELLED, [], self.shape)
        rows = self.rows.astype(np.int64)
        found: list[Choice] = []
        for columns in self.columns() or [none]:
            joint = self._joint(rows, columns.total)
            if not found:
                found.append(Choice(False, none, joint.sum(axis=(0, 1))[np.newaxis], 0))
                if self.shape.rows > 1:
                    found.append(Choice(True, none, joint[1:].sum(axis=1), label_bits(self.rows)))
            if columns is none:
                break
            side = sum(label_bits(labels) for labels in columns.sets)
            found.append(Choice(False, columns, joint.sum(axis=0)[1:], side))
            if self.shape.rows > 1:
                found.append(Choice(True, columns, _diagonals(joint[1:, 1:]), side + label_bits(self.rows)))
        return found

    def histograms(self, by_row: bool, columns: Columns) -> I64:
        """By context."""
        rows = self.rows.astype(np.int64) if by_row else np.ones(self.shape.rows, np.int64)
        return _diagonals(self._joint(rows, columns.total)[1:, 1:])

    def _joint(self, rows: I64, columns: I64) -> I64:
        """How often each token occurs by label of row and column: (row labels, column labels, tokens)."""
        step = max(1, self.values.size // _SAMPLE)
        row_labels, column_labels = int(rows.max()) + 1, int(columns.max()) + 1
        index = self.tokens[::step] + (rows[::step] * (column_labels * self.top)).astype(np.int32)[:, np.newaxis]
        index += (columns * self.top).astype(np.int32)
        counts = np.zeros((row_labels, column_labels, TOKENS), np.int64)
        found = np.bincount(index.reshape(-1), minlength=row_labels * column_labels * self.top)
        counts[:, :, : self.top] = step * found.reshape(row_labels, column_labels, self.top)
        return counts

    def line_costs(self, axis: int, lines: I64, others: I64, crossing: I64, words: F64) -> F64:
        """What each line would cost with each label from 1 on: (lines, labels), in the unit of `words`.

        `lines` says which line of the set each row (`axis` 0) or column (1) belongs to, `others` its label in another
        set of the same axis (1 if there is none); `crossing` are the labels of the other axis. `words` are the costs
        of tokens by context. Long lines are judged by a part of them.
        """
        view = self.tokens if axis == 0 else self.tokens.T
        width = int(crossing.max()) + int(others.max()) - 1
        labels = len(words) - width + 1
        live = np.flatnonzero(crossing)
        step = max(1, min(len(view) * len(live) // _LINE_SAMPLE, len(live) // _SHORT))
        live = live[::step]
        used = np.flatnonzero(others)
        if len(used) < len(others):
            view, lines, others = view[used], lines[used], others[used]
        view, crossing = view[:, live], crossing[live] - 1
        total = int(lines.max(initial=-1)) + 1
        column = (crossing * self.top).astype(np.int32)
        row = (lines * (width * self.top) + (others - 1) * self.top).astype(np.int32)
        # By label: the costs of all tokens in all crossing lines.
        table = np.stack([words[label : label + width, : self.top].reshape(-1) for label in range(labels)], axis=1)
        costs = np.zeros((total, labels))
        piece = max(1, _CELLS // (width * self.top))
        order = np.argsort(lines, kind="stable")
        bounds = np.searchsorted(lines[order], np.arange(0, total + piece, piece))
        for number, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
            chosen = order[first:last]
            base, end = number * piece, min((number + 1) * piece, total)
            index = view[chosen] + (row[chosen] - np.int32(base * width * self.top))[:, np.newaxis]
            index += column
            counts = np.bincount(index.reshape(-1), minlength=(end - base) * width * self.top)
            costs[base:end] = counts.reshape(end - base, -1).astype(np.float64) @ table
        return step * costs


def _diagonals(both: I64) -> I64:
    """Sums over all pairs of labels with the same sum."""
    result = np.zeros((both.shape[0] + both.shape[1] - 1, both.shape[2]), np.int64)
    for label in range(both.shape[0]):
        result[label : label + both.shape[1]] += both[label]
    return result


def label_bits(labels: Labels) -> int:
    """Bits (times 2**16) that a set of labels takes, about."""
    counts = np.bincount(labels).astype(np.int64)
    return int(fixed.entropy(counts)) + ((6 + 3 * int(np.count_nonzero(counts))) << fixed.FRACTION)
