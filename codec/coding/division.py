"""One array divided by its lines: which class each element is of, and in which order the elements of a class stand.

An array is seen as a matrix: its first dimensions are rows, the others columns, cut where that makes the fewest lines
(so a convolution's filters are lines, whichever way its tensor is laid out). Lines carry **labels**, small numbers that
say how large their values are; label 0 is a line of nothing but the base, whose elements are not coded.
The labels of a row and a column add up to the **context** of the element where they cross, and a table maps contexts
to classes. So the class of every element is known before any of them is decoded, unlike in a context-adaptive coder:
that is what lets all of them be decoded at once.

Columns of a convolution may be labelled by their channel alone, or by channel and tap, whose labels then add up.

With rows and columns sorted by label, elements of one context form a rectangle. Where an element stands is where its
rectangle begins, plus its place there: a sum of a number for its row (and the rectangle's column) and one for its
column, so dividing and joining take two additions and one copy for each element, whatever the labels are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CodecError

Labels = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.signedinteger]
I64 = npt.NDArray[np.int64]

#: How columns are labelled: not at all, each by itself, by channel, by channel and by tap.
UNLABELLED, EACH, CHANNEL, CHANNEL_AND_TAP = range(4)
#: The largest label, also of a column with two.
LARGEST_LABEL = 255
#: Elements of the rows that are copied at a time: what is made for them stays in the cache.
_PIECE = 1 << 15


@dataclass(frozen=True)
class Shape:
    """A shape as rows, and columns that are channels (outer) times taps (inner)."""

    rows: int
    channels: int
    taps: int

    @staticmethod
    def of(shape: Sequence[int]) -> Shape:
        """Rows are the first dimensions, columns the others, cut where their numbers add up to the least.

        Of the columns' dimensions, the first are channels and the rest taps. Vectors and scalars are one row.
        """
        if len(shape) < 2:
            return Shape(1, math.prod(shape), 1)
        cuts = range(1, len(shape))
        cut = min(cuts, key=lambda cut: math.prod(shape[:cut]) + math.prod(shape[cut:]))
        return Shape(math.prod(shape[:cut]), shape[cut], math.prod(shape[cut + 1 :]))

    @property
    def columns(self) -> int:
        return self.channels * self.taps

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.rows * self.columns

    def lines(self, by_row: bool, by_column: int) -> list[int]:
        """How many lines each set of labels has: rows first, then columns."""
        sizes = [self.rows] if by_row else []
        sizes += [[], [self.columns], [self.channels], [self.channels, self.taps]][by_column]
        return sizes


@dataclass(frozen=True)
class Division:
    """The labels of an array, and the class of each context.

    `labels` are one set for the rows if `by_row`, and one or two for the columns as `by_column` says. The context of
    an element is the sum of its labels less the number of sets, so the smallest is 0.
    """

    shape: Shape
    by_row: bool
    by_column: int
    labels: Sequence[Labels]
    classes: npt.NDArray[np.uint8]

    @property
    def contexts(self) -> int:
        """How many contexts there can be."""
        return contexts(self.labels)

    def row_labels(self) -> I64:
        """The label of each row; 1 where rows have none."""
        return self.labels[0].astype(np.int64) if self.by_row else np.ones(self.shape.rows, np.int64)

    def column_labels(self) -> I64:
        """The label of each column; with two sets, their sum less one (0 if either is 0); 1 where there are none."""
        columns = self.labels[1 if self.by_row else 0 :]
        if self.by_column == CHANNEL_AND_TAP:
            channel, tap = (labels.astype(np.int64) for labels in columns)
            both = (channel[:, np.newaxis] + tap - 1) * ((channel > 0)[:, np.newaxis] & (tap > 0))
            return both.reshape(-1)
        if self.by_column == CHANNEL:
            return np.repeat(columns[0].astype(np.int64), self.shape.taps)
        return columns[0].astype(np.int64) if columns else np.ones(self.shape.columns, np.int64)

    def order(self) -> Order:
        """Where elements stand."""
        return Order(self.row_labels(), self.column_labels(), self.classes)


def contexts(labels: Sequence[Labels]) -> int:
    """How many contexts there can be: from all labels 1 to all labels at their largest."""
    return max(sum(int(line.max(initial=0)) for line in labels) - len(labels) + 1, 1)


class Order:
    """The rectangles of a divided array, and copies from and to them.

    Rectangles are ordered by row label, then by column label; inside a rectangle elements stand row by row.
    """

    def __init__(self, rows: I64, columns: I64, classes: npt.NDArray[np.uint8]) -> None:
        self._rows, heights = _Lines.of(rows)
        self._columns, widths = _Lines.of(columns)
        self._areas = np.multiply.outer(heights, widths).reshape(-1)
        contexts = np.add.outer(self._rows.labels - 1, self._columns.labels - 1).reshape(-1)
        self._classes: I64 = classes[contexts].astype(np.int64)
        self._widths = widths

    def sizes(self, total: int) -> I64:
        """How many elements each of `total` classes has."""
        sizes = np.zeros(total, np.int64)
        np.add.at(sizes, self._classes, self._areas)
        return sizes

    def _by_class(self) -> list[tuple[int, int]]:
        """(class, elements) of each class that has any."""
        sizes = self.sizes(int(self._classes.max(initial=-1)) + 1)
        return [(number, size) for number, size in enumerate(sizes.tolist()) if size]

    def _places(self) -> Iterator[tuple[slice, I64]]:
        """(rows, the place of each of their elements among all, sorted by class); the last place is for the others."""
        rows, columns = self._rows, self._columns
        by_class = np.argsort(self._classes, kind="stable")
        areas = self._areas[by_class]
        begins: I64 = np.empty((len(rows.labels), len(columns.labels)), np.int64)
        begins.reshape(-1)[by_class] = np.cumsum(areas) - areas
        # By row and rectangle: where the element would stand whose column is the first of all.
        first = begins[rows.kind] + rows.rank[:, np.newaxis] * self._widths
        nobody, step = int(areas.sum()), max(1, _PIECE // len(columns.kind))
        for begin in range(0, len(rows.kind), step):
            piece = slice(begin, begin + step)
            places = first[piece].take(columns.kind, axis=1)
            places += columns.rank
            if len(columns.dead):
                places[:, columns.dead] = nobody
            if len(rows.dead):
                places[rows.dead[(rows.dead >= begin) & (rows.dead < begin + step)] - begin] = nobody
            yield piece, places

    def divide(self, matrix: Integers, parts: Sequence[list[Integers]]) -> None:
        """Append the elements of `matrix` to the parts of their classes."""
        sizes = self._by_class()
        values = np.empty(sum(size for _, size in sizes) + 1, matrix.dtype)
        if sizes:
            for rows, places in self._places():
                values[places] = matrix[rows]
        at = 0
        for number, size in sizes:
            parts[number].append(values[at : at + size])
            at += size

    def join(self, sequences: Sequence[Integers], used: list[int], dtype: np.dtype[np.signedinteger]) -> Integers:
        """The matrix whose elements are next in `sequences`, of which `used` are taken: those are counted on."""
        matrix = np.zeros((len(self._rows.kind), len(self._columns.kind)), dtype)
        pieces = []
        for number, size in self._by_class():
            pieces.append(sequences[number][used[number] : used[number] + size])
            used[number] += size
        if pieces:
            values = np.concatenate([*pieces, np.zeros(1, dtype)]).astype(dtype, copy=False)
            for rows, places in self._places():
                values.take(places, out=matrix[rows], mode="clip")
        return matrix


@dataclass(frozen=True)
class _Lines:
    """Lines by their labels: the labels that occur, each line's among these, its rank with that label, lines of 0."""

    labels: I64
    kind: I64
    rank: I64
    dead: I64

    @staticmethod
    def of(labels: I64) -> tuple[_Lines, I64]:
        """The lines, and how many have each of the labels that occur."""
        counts = np.bincount(labels, minlength=1)
        occurring = np.flatnonzero(counts[1:]) + 1
        kinds = np.zeros(len(counts), np.int64)
        kinds[occurring] = np.arange(len(occurring))
        order = np.argsort(labels, kind="stable")
        rank = np.empty(len(labels), np.int64)
        rank[order] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
        return _Lines(occurring, kinds[labels], rank, np.flatnonzero(labels == 0)), counts[occurring]


def check(labels: Sequence[Labels], by_row: bool) -> None:
    """Refuse labels beyond the largest."""
    columns = labels[1 if by_row else 0 :]
    largest = [sum(int(line.max(initial=0)) for line in columns) - max(len(columns) - 1, 0)]
    largest += [int(labels[0].max(initial=0))] if by_row else []
    if max(largest) > LARGEST_LABEL:
        raise CodecError(f"a line has label {max(largest)}, and {LARGEST_LABEL} is the largest: the blob is damaged")
