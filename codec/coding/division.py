"""One array divided by its lines: which class each element is of, and in which order the elements of a class stand.

An array is seen as a matrix: its first dimensions are rows, the others columns, cut where that makes the fewest lines
(so a convolution's filters are lines, whichever way its tensor is laid out). Lines carry **labels**, small numbers that
say how large their values are; label 0 is a line of nothing but the base, whose elements are not coded.
The labels of a row and a column add up to the **context** of the element where they cross, and a table maps contexts
to classes. So the class of every element is known before any of them is decoded, unlike in a context-adaptive coder:
that is what lets all of them be decoded at once.

Columns of a convolution may be labelled by their channel alone, or by channel and tap, whose labels then add up.

With rows and columns sorted by label, elements of one context form a rectangle, so dividing and joining are copies of
rectangles and two takes, and no element is handled by itself.
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
#: Rectangles smaller than this on average are not copied one by one: elements are sorted instead.
_SMALL = 16


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
        self._all = (len(rows), len(columns))
        self.rows, self._heights = _sorted(rows)
        self.columns, self._widths = _sorted(columns)
        self._contexts = np.add.outer(np.flatnonzero(self._heights), np.flatnonzero(self._widths)).reshape(-1)
        self._heights, self._widths = self._heights[self._heights > 0], self._widths[self._widths > 0]
        self._classes = classes

    def sizes(self, total: int) -> I64:
        """How many elements each of `total` classes has."""
        areas = np.multiply.outer(self._heights, self._widths).reshape(-1)
        sizes = np.zeros(total, np.int64)
        np.add.at(sizes, self._classes[self._contexts], areas)
        return sizes

    def _rectangles(self) -> Iterator[tuple[int, slice, slice, int]]:
        """(class, rows, columns, elements) of each rectangle."""
        classes: list[int] = self._classes[self._contexts].tolist()
        widths: list[int] = self._widths.tolist()
        index = top = 0
        for height in self._heights.tolist():
            left = 0
            for width in widths:
                yield classes[index], slice(top, top + height), slice(left, left + width), height * width
                left += width
                index += 1
            top += height

    @property
    def _small(self) -> bool:
        rectangles = len(self._heights) * len(self._widths)
        return rectangles > 1 and rectangles * _SMALL > len(self.rows) * len(self.columns)

    def _by_class(self) -> tuple[I64, list[tuple[int, int]]]:
        """The elements (of rows and columns sorted by label) by class and rectangle; (class, elements) of each."""
        row = np.repeat(np.arange(len(self._heights)), self._heights)
        column = np.repeat(np.arange(len(self._widths)), self._widths)
        rectangle = (row[:, np.newaxis] * len(self._widths) + column).reshape(-1)
        number = self._classes[self._contexts].astype(np.int64)[rectangle]
        sizes = np.bincount(number)
        return np.argsort(number * len(self._contexts) + rectangle, kind="stable"), [
            (k, size) for k, size in enumerate(sizes.tolist()) if size
        ]

    def divide(self, matrix: Integers, parts: Sequence[list[Integers]]) -> None:
        """Append the elements of `matrix` to the parts of their classes."""
        live = matrix.take(self.rows, axis=0) if len(self.rows) < len(matrix) or len(self._heights) > 1 else matrix
        if len(self.columns) < matrix.shape[1] or len(self._widths) > 1:
            live = live.take(self.columns, axis=1)
        if self._small:
            order, sizes = self._by_class()
            values = live.reshape(-1)[order]
            at = 0
            for number, size in sizes:
                parts[number].append(values[at : at + size])
                at += size
            return
        for number, rows, columns, _ in self._rectangles():
            parts[number].append(live[rows, columns].reshape(-1))

    def join(self, sequences: Sequence[Integers], used: list[int], dtype: np.dtype[np.signedinteger]) -> Integers:
        """The matrix whose elements are next in `sequences`, of which `used` are taken: those are counted on."""
        live = np.empty((len(self.rows), len(self.columns)), dtype)
        if self._small:
            order, sizes = self._by_class()
            pieces = []
            for number, size in sizes:
                pieces.append(sequences[number][used[number] : used[number] + size])
                used[number] += size
            live.reshape(-1)[order] = np.concatenate(pieces)
            return self._spread(live)
        for number, rows, columns, size in self._rectangles():
            at = used[number]
            used[number] = at + size
            rectangle = live[rows, columns]
            rectangle[...] = sequences[number][at : at + size].reshape(rectangle.shape)
        return self._spread(live)

    def _spread(self, live: Integers) -> Integers:
        height, width = self._all
        if len(self.columns) < width or len(self._widths) > 1:
            if len(self.columns) < width:
                live = np.concatenate([live, np.zeros((len(live), 1), live.dtype)], axis=1)
            place = np.full(width, len(self.columns))
            place[self.columns] = np.arange(len(self.columns))
            live = live.take(place, axis=1)
        if len(self.rows) < height or len(self._heights) > 1:
            matrix = np.zeros((height, width), live.dtype) if len(self.rows) < height else np.empty_like(live)
            matrix[self.rows] = live
            return matrix
        return live


def _sorted(labels: I64) -> tuple[I64, I64]:
    """The lines that have a label, by label, and how many have label 1, 2, ..."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=2)
    return order[counts[0] :], counts[1:]


def check(labels: Sequence[Labels], by_row: bool) -> None:
    """Refuse labels beyond the largest."""
    columns = labels[1 if by_row else 0 :]
    largest = [sum(int(line.max(initial=0)) for line in columns) - max(len(columns) - 1, 0)]
    largest += [int(labels[0].max(initial=0))] if by_row else []
    if max(largest) > LARGEST_LABEL:
        raise CodecError(f"a line has label {max(largest)}, and {LARGEST_LABEL} is the largest: the blob is damaged")
