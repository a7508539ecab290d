"""A row that many rows are alike to: its values are subtracted from theirs.

Optimizers that divide by the size of a gradient move many weights by the same amounts: the rows of words or features
that did not occur are copies of one another. Filters that are fixed repeat as well. The template is the median of the
rows that are alike; it is coded like any other array, and a bit for each row says whether that row has it subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.signedinteger]
Flags = npt.NDArray[np.bool_]

#: Matrices of fewer rows or columns have none.
_FEWEST_ROWS, _FEWEST_COLUMNS = 6, 4
#: Rows that the median is taken of, about.
_SAMPLE = 128
#: One value in so many must be that of the template, and not zero.
_ALIKE = 8


@dataclass(frozen=True)
class Template:
    """A row of values, and which rows have it subtracted."""

    row: Integers
    uses: Flags

    def subtract(self, matrix: Integers) -> Integers:
        """The matrix without it."""
        return matrix - self._values(matrix.dtype)

    def add(self, matrix: Integers) -> Integers:
        """The inverse of `subtract`."""
        return matrix + self._values(self.row.dtype)

    def _values(self, dtype: np.dtype[np.signedinteger]) -> Integers:
        return np.multiply.outer(self.uses.astype(dtype), self.row.astype(dtype))


def find(matrix: Integers) -> Template | None:
    """The template of a matrix of 32-bit integers, if its rows seem to have one."""
    rows, columns = matrix.shape
    if rows < _FEWEST_ROWS or columns < _FEWEST_COLUMNS or matrix.itemsize > 4:
        return None
    sample = matrix[:: max(1, rows // _SAMPLE)]
    filled = np.count_nonzero(sample, axis=1)
    chosen = sample[2 * filled >= filled.max()]
    row = _median(chosen)
    if _ALIKE * int(np.count_nonzero((chosen == row) & (row != 0))) < chosen.size:
        return None
    uses = _closer(matrix, row)
    if np.count_nonzero(uses) < 2:
        return None
    some = matrix[uses]
    row = _median(some[:: max(1, len(some) // _SAMPLE)])
    return Template(row, _closer(matrix, row))


def _median(matrix: Integers) -> Integers:
    middle: Integers = np.partition(matrix, len(matrix) // 2, axis=0)[len(matrix) // 2]
    return middle


def _closer(matrix: Integers, row: Integers) -> Flags:
    """Which rows are closer to `row` than to nothing."""
    apart = np.abs(matrix - row).sum(axis=1, dtype=np.int64)
    result: Flags = apart < np.abs(matrix).sum(axis=1, dtype=np.int64)
    return result
