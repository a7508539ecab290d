"""Lines that are mirrored: what stands right of their middle is coded as its difference from what stands left of it.

Windows, filter banks and the kernels of short-time transforms are even or odd about their middle, whichever way
they were learned or computed. The lines are the taps of a convolution's channels, or else whole rows. They are
mirrored about the middle of the line (the last value is that of the first), or, as one period of a periodic function
is, about the value at half of its length (the last is that of the second, the first has no other).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.signedinteger]

#: How lines are mirrored: not; even or odd about their middle; even or odd as a period is.
NOT, EVEN, ODD, PERIOD_EVEN, PERIOD_ODD = range(5)
#: Shorter lines are not, nor matrices with fewer elements; larger ones are judged by rows with about so many.
_SHORTEST, _LEAST, _SAMPLE = 8, 64, 1 << 14


def find(matrix: Integers, taps: int) -> int:
    """How the lines of a matrix of 32-bit integers are mirrored, if that halves their right sides at least.

    And if it is the order of values that does it: lines of like values are alike in any order, and are no images.
    """
    if matrix.size < _LEAST or matrix.itemsize > 4 or _length(matrix, taps) < _SHORTEST:
        return NOT
    some = matrix[:: max(1, matrix.size // _SAMPLE)].astype(np.int64)
    best, found = 0, NOT
    for how in (EVEN, ODD, PERIOD_EVEN, PERIOD_ODD):
        left, right = _sides(some, taps, how)
        apart, shifted = (int(np.abs(right - _sign(how) * side).sum()) for side in (left, left[:, :, ::-1]))
        saved = int(np.abs(right).sum()) - 2 * apart
        if saved > best and 2 * apart <= shifted:
            best, found = saved, how
    return found


def subtract(matrix: Integers, taps: int, how: int) -> Integers:
    """The matrix as it is coded."""
    result = matrix.copy()
    left, right = _sides(result, taps, how)
    right -= matrix.dtype.type(_sign(how)) * left
    return result


def add(matrix: Integers, taps: int, how: int) -> Integers:
    """The inverse of `subtract`."""
    result = matrix.copy()
    left, right = _sides(result, taps, how)
    right += matrix.dtype.type(_sign(how)) * left
    return result


def _length(matrix: Integers, taps: int) -> int:
    return taps if taps > 1 else matrix.shape[1]


def _sides(matrix: Integers, taps: int, how: int) -> tuple[Integers, Integers]:
    """Views of what has a mirror image on the left, in the order of its image, and of the images."""
    length = _length(matrix, taps)
    lines = matrix.reshape(len(matrix), -1, length)
    first = 1 if how in (PERIOD_EVEN, PERIOD_ODD) else 0
    count = (length - first) // 2
    return lines[:, :, first : first + count][:, :, ::-1], lines[:, :, length - count :]


def _sign(how: int) -> int:
    return 1 if how in (EVEN, PERIOD_EVEN) else -1
