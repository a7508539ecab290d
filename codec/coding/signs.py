"""What is done to signs, so that more values have one sign: a sign costs less than a bit then.

A gradient of a layer is close to a product of a column and a row, and then so are its signs: after the right lines
are negated, positive values are more frequent than negative ones. The lines are those of the best product found by
alternating (power iteration on signs). Where inputs are alike from one to the next, as pixels are, a value tends
to have the sign of the one before it in its row: signs are chained then, each relative to the last value that was not
zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import fixed

Integers = npt.NDArray[np.signedinteger]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

#: Alternations; more values than this are judged by as many lines as have about this many.
_ROUNDS, _SAMPLE = 4, 1 << 19
#: Fewer values are left alone.
_LEAST = 16


@dataclass(frozen=True)
class Signs:
    """What is done to the signs of a matrix: rows and columns that are negated (None: none), whether rows are chained.

    Negated lines come first, then chaining; restoring goes the other way.
    """

    rows: Flags | None = None
    columns: Flags | None = None
    chained: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything is done."""
        return self.chained or self.rows is not None or self.columns is not None

    def apply(self, matrix: Integers) -> Integers:
        """The matrix as it is coded. Chained ones must not have the least number of their type."""
        matrix = self._negated(matrix)
        return matrix * _relative(matrix).astype(matrix.dtype) if self.chained else matrix

    def restore(self, matrix: Integers) -> Integers:
        """The inverse of `apply`."""
        if self.chained:
            # A number whose bits are all turned, plus one, is its negative.
            minus = np.bitwise_xor.accumulate((matrix < 0).view(np.int8), axis=1).astype(matrix.dtype)
            matrix = np.abs(matrix)
            matrix ^= -minus
            matrix += minus
        return self._negated(matrix)

    def _negated(self, matrix: Integers) -> Integers:
        if self.rows is not None:
            matrix = matrix * np.where(self.rows, -1, 1).astype(matrix.dtype)[:, np.newaxis]
        if self.columns is not None:
            matrix = matrix * np.where(self.columns, -1, 1).astype(matrix.dtype)
        return matrix


NO_SIGNS = Signs()


def find(matrix: Integers) -> Signs:
    """The cheapest way to treat the signs of a matrix."""
    rows, columns = matrix.shape
    if rows * columns < _LEAST or max(rows, columns) >= 1 << 24:
        return NO_SIGNS
    row_step, column_step = max(1, rows * columns // _SAMPLE), max(1, columns * rows // _SAMPLE)
    # Sums of ones are exact in float32 below 2**24. (Not by matrix products: their threads cost more than they do.)
    tall = np.sign(matrix[:, ::column_step]).astype(np.float32)
    wide = np.sign(matrix[::row_step]).astype(np.float32)
    counted = max(int(np.count_nonzero(tall)), 1)
    row, column = _flags(tall.sum(axis=1)), _flags(wide.sum(axis=0))
    one_row, one_column = np.ones(rows, np.float32), np.ones(columns, np.float32)
    candidates: list[tuple[F32, F32]] = [(one_row, one_column), (row, one_column), (one_row, column)]
    if rows > 1 and columns > 1:
        v = column
        for _ in range(_ROUNDS):
            u = _flags(np.einsum("ij,j->i", tall, v[::column_step]))
            v = _flags(np.einsum("i,ij->j", u[::row_step], wide))
        candidates.append((u, v))
    total = int(np.count_nonzero(matrix))
    best: tuple[int, Signs] | None = None
    for u, v in candidates:
        signs = Signs(None if u is one_row else u < 0, None if v is one_column else v < 0)
        side = sum(len(flags) for flags in (signs.rows, signs.columns) if flags is not None)
        bits = _bits(int(np.einsum("ij,i,j->", tall, u, v[::column_step])), counted, total) + (side << 16)
        if best is None or bits < best[0]:
            best = bits, signs
    assert best is not None, "there are candidates"
    if columns > 1 and matrix.itemsize == 4:
        some = matrix[:: max(1, rows * columns // (_SAMPLE // 4))]
        relative = np.sign(some) * _relative(some)
        if _bits(int(relative.sum()), max(int(np.count_nonzero(some)), 1), total) < best[0]:
            return Signs(chained=True)
    return best[1]


def _relative(matrix: Integers) -> npt.NDArray[np.int8]:
    """The sign of the last value that is not zero to the left of each; 1 if there is none."""
    signs = np.sign(matrix).astype(np.int8)
    last = np.where(signs != 0, np.arange(signs.shape[1], dtype=np.int32), np.int32(-1))
    np.maximum.accumulate(last, axis=1, out=last)
    before = np.ones_like(signs)
    at = last[:, :-1]
    found = np.take_along_axis(signs, np.maximum(at, 0).astype(np.int64), axis=1)
    before[:, 1:] = np.where(at >= 0, found, np.int8(1))
    return before


def _bits(agreement: int, counted: int, total: int) -> int:
    """Bits (times 2**16) of `total` signs, when of `counted` ones so many more agree than do not."""
    agree = (abs(agreement) + counted) // 2
    return int(fixed.entropy(np.array([agree, counted - agree], np.int64))) * total // counted


def _flags(sums: F32) -> F32:
    return np.where(sums < 0, np.float32(-1), np.float32(1))
