"""Which rows and columns to negate, so that more values have one sign.

A gradient of a layer is close to a product of a column and a row, and then so are its signs: after the right lines
are negated, positive values are more frequent than negative ones, and a sign costs less than a bit. The signs are those
of the best product found by alternating (power iteration on signs).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import fixed

Integers = npt.NDArray[np.signedinteger]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

#: Alternations; more values than this are judged by as many lines as have about this many.
_ROUNDS, _SAMPLE = 4, 1 << 19


def find(matrix: Integers) -> tuple[Flags | None, Flags | None]:
    """(rows to negate, columns to negate); None where negating none is cheaper."""
    rows, columns = matrix.shape
    if rows * columns < 16:
        return None, None
    row_step, column_step = _step(rows, columns), _step(columns, rows)
    # Sums of ones are exact in float32 below 2**24.
    tall = np.sign(matrix[:, ::column_step]).astype(np.float32)
    wide = np.sign(matrix[::row_step]).astype(np.float32)
    if max(rows, columns) >= 1 << 24:
        return None, None
    total = int(np.count_nonzero(matrix))
    counted = max(int(np.count_nonzero(tall)), 1)
    row = _flags(tall.sum(axis=1))
    column = _flags(wide.sum(axis=0))
    one_row, one_column = np.ones(rows, np.float32), np.ones(columns, np.float32)
    candidates: list[tuple[F32, F32]] = [(one_row, one_column), (row, one_column), (one_row, column)]
    if rows > 1 and columns > 1:
        v = column
        for _ in range(_ROUNDS):
            u = _flags(tall @ v[::column_step])
            v = _flags(u[::row_step] @ wide)
        candidates.append((u, v))
    best: tuple[int, Flags | None, Flags | None] = (0, None, None)
    for u, v in candidates:
        negated = (None if u is one_row else u < 0, None if v is one_column else v < 0)
        agreement = int(u @ (tall @ v[::column_step]))
        more = abs(agreement) + counted
        counts = np.array([more // 2, counted - more // 2], np.int64)
        bits = int(fixed.entropy(counts)) * total // counted + (sum(len(n) for n in negated if n is not None) << 16)
        if not best[0] or bits < best[0]:
            best = (bits, *negated)
    return best[1], best[2]


def negate(matrix: Integers, rows: Flags | None, columns: Flags | None) -> Integers:
    """The matrix with these lines negated (both ends do this; values wrap as their type does)."""
    if rows is not None:
        matrix = matrix * np.where(rows, -1, 1).astype(matrix.dtype)[:, np.newaxis]
    if columns is not None:
        matrix = matrix * np.where(columns, -1, 1).astype(matrix.dtype)
    return matrix


def _step(lines: int, length: int) -> int:
    return max(1, lines * length // _SAMPLE)


def _flags(sums: F32) -> F32:
    return np.where(sums < 0, np.float32(-1), np.float32(1))
