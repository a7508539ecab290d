"""What a tensor's magnitudes are like, in a few kilobytes: the search for levels looks at this, never at the tensor.

A tensor is seen as a matrix (rows along its first dimension) and its elements are sorted into **classes** by how
large they are to be expected: the mean magnitude of their row times that of their column, in half octaves. (A layer's
delta is close to outer products of errors and inputs, so this says much; the entropy coder divides levels in the
same spirit.) For each class there is a histogram of magnitudes in 32 bins an octave, as running sums, from which
any quantizer's error and bits follow in a few look-ups.

Sums are sums of whole numbers, and everything else is single operations that IEEE 754 rounds in one way: every
platform sees the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from .coding import fixed

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

#: The largest magnitude of a tensor is scaled to below 2**SCALE.
SCALE = 20
#: Classes at most, in half octaves; the middle one is that of the tensor's mean.
CLASSES = 64
#: Bits of a float32 below its exponent that choose one of the bins of an octave; octaves below the largest magnitude.
_PER_OCTAVE_BITS, _OCTAVES = 5, 17
BINS = _OCTAVES << _PER_OCTAVE_BITS
#: Bits of a float32 below those that make a bin, and how many of these interpolate inside it.
_DROPPED = 23 - _PER_OCTAVE_BITS
FRACTION = 6
#: The bin of magnitude 0 on the scale of bins that `float32 bits >> _DROPPED` gives for scaled magnitudes.
_ORIGIN = ((127 + SCALE) << _PER_OCTAVE_BITS) - BINS
#: Bins' middles and their squares are summed on a coarser scale, so that 2**20 of them fit 64 bits.
SUM_SCALE = 16
#: More elements than this are judged by a sample.
_SAMPLE = 1 << 19
#: Lines shorter than this say nothing about the size of their elements.
_SHORTEST_LINE = 8
#: Elements of a group of classes at least, besides a share of all.
_ENOUGH = 48
#: Elements that are squared at once.
_PIECE = 1 << 15


@dataclass(frozen=True)
class Magnitudes:
    """`exponent`: magnitudes are below 2**exponent, and the largest is at least half that; None if all are zero.

    `energy`: the sum of squares of the scaled magnitudes (2**SCALE for 2**exponent), each rounded down to a whole.
    `rows`, `columns`: of each line, how its mean compares with the tensor's, in quarter octaves, CLASSES / 2 being
    alike; None if all elements are of one class.
    `groups`: of each class, the group of neighbours that counts as one, rare ones being joined [CLASSES].
    `scales`: log2 of the mean scaled magnitude in each group, in half octaves [groups].
    `sums`: counts, sums and sums of squares of the magnitudes below each bin, of one element in `every`
    [groups, 3, BINS + 1].
    """

    size: int
    exponent: int | None
    energy: int
    rows: U8 | None
    columns: U8 | None
    groups: I64
    scales: I64
    sums: I64
    every: int

    def absolute(self, squares: int) -> float:
        """A sum of squares, from one of scaled magnitudes."""
        return math.ldexp(squares, 2 * (self.exponent - SCALE)) if self.exponent is not None else 0.0

    def classes(self) -> U8 | None:
        """The class of each element, flat; None if all are of one."""
        if self.rows is None or self.columns is None:
            return None
        result = self.rows[:, None] + self.columns
        result >>= np.uint8(1)
        return result.reshape(-1)


def measure(tensor: F32) -> Magnitudes:
    """Measure a finite tensor."""
    largest = max(float(tensor.max(initial=0.0)), -float(tensor.min(initial=0.0)))
    if largest == 0.0:
        none = np.zeros(0, np.int64)
        return Magnitudes(tensor.size, None, 0, None, None, none, none, np.zeros((0, 3, BINS + 1), np.int64), 1)
    exponent = math.frexp(largest)[1]
    matrix = scaled(tensor, exponent).reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1)
    whole = matrix.astype(np.int32)
    labels = _labels(whole)
    every = _every(tensor.size, matrix.shape[1])
    bins = matrix.reshape(-1)[::every].view(np.int32) >> _DROPPED
    np.maximum(bins, _ORIGIN, out=bins)
    bins -= _ORIGIN
    if labels is None:
        groups = np.zeros(CLASSES, np.int64)
        histogram = np.bincount(bins, minlength=BINS)[None]
    else:
        classes = (labels[0][:, None] + labels[1]) >> np.uint8(1)
        bins += np.multiply(classes.reshape(-1)[::every], np.int32(BINS), dtype=np.int32)
        histogram = np.bincount(bins, minlength=CLASSES * BINS).reshape(CLASSES, BINS)
        groups, firsts = _joined(histogram.sum(axis=1))
        histogram = np.add.reduceat(histogram, firsts, axis=0)
    sums = np.zeros((len(histogram), 3, BINS + 1), np.int64)
    low, width = edges()
    for power, moment in enumerate((1, low + (width >> 1), low * (low + width) + width * width // 3)):
        np.cumsum(histogram * moment, axis=1, out=sums[:, power, 1:])
    means = fixed.log2(np.maximum(sums[:, 1, -1], 1)) - fixed.log2(np.maximum(sums[:, 0, -1], 1))
    scales = (means >> (fixed.FRACTION - 1)) + 2 * (SCALE - SUM_SCALE)
    rows, columns = labels or (None, None)
    return Magnitudes(tensor.size, exponent, _energy(whole), rows, columns, groups, scales, sums, every)


def _every(size: int, columns: int) -> int:
    """Which elements make a sample: one in this many, such that all columns have their turn."""
    every = max(1, size // _SAMPLE) | 1
    while every > 1 and math.gcd(every, columns) > 1:
        every += 2
    return every


def _joined(counts: I64) -> tuple[I64, I64]:
    """(the group of each class, the first class of each group): from the largest class down, each with enough."""
    enough = _ENOUGH + int(counts.sum()) // 256
    firsts: list[int] = []
    have = 0
    for number in range(CLASSES - 1, -1, -1):
        have += int(counts[number])
        if have >= enough:
            firsts.append(number)
            have = 0
    firsts = firsts[::-1] or [0]
    firsts[0] = 0
    groups = np.zeros(CLASSES, np.int64)
    groups[firsts[1:]] = 1
    return groups.cumsum(), np.array(firsts, np.int64)


def scaled(tensor: F32, exponent: int) -> F32:
    """Magnitudes times 2**(SCALE - exponent); what becomes subnormal by that may be rounded."""
    factor = SCALE - exponent
    result = np.abs(tensor)
    while factor > 127:  # subnormal tensors: the factor is no float32
        result *= np.float32(2.0**127)
        factor -= 127
    result *= np.float32(2.0**factor)
    return result


def positions(magnitudes: I64) -> I64:
    """Where scaled magnitudes (below 2**24, in units of 2**-8) lie between bins, in units of 2**-FRACTION bins."""
    bits = (magnitudes.astype(np.float32) * np.float32(2.0**-8)).view(np.int32).astype(np.int64)
    found: I64 = np.clip((bits >> (_DROPPED - FRACTION)) - (_ORIGIN << FRACTION), 0, BINS << FRACTION)
    return found


@cache
def edges() -> tuple[I64, I64]:
    """The lower ends and the widths of bins, on the scale of sums; the first one is for what is too small to count."""
    octave, part = np.divmod(np.arange(BINS + 1, dtype=np.int64), 1 << _PER_OCTAVE_BITS)
    shift = SUM_SCALE - _OCTAVES + octave - _PER_OCTAVE_BITS
    ends = (((1 << _PER_OCTAVE_BITS) + part) << np.maximum(shift, 0)) >> np.maximum(-shift, 0)
    ends[:2] = 0
    return ends[:-1], np.diff(ends)


def _labels(whole: npt.NDArray[np.int32]) -> tuple[U8, U8] | None:
    """The labels of the rows and columns of a matrix of scaled magnitudes, if they say anything."""
    rows, columns = whole.shape
    if rows == 1 or max(rows, columns) < _SHORTEST_LINE:
        return None
    by_row = whole.sum(axis=1, dtype=np.int64)
    mean = _log2(max(int(by_row.sum()), 1)) - _log2(rows * columns)
    by_column = whole.sum(axis=0, dtype=np.int64)
    return _compared(by_row, columns, mean), _compared(by_column, rows, mean)


def _compared(sums: I64, length: int, mean: int) -> U8:
    """How the means of lines of this length compare with `mean`."""
    if length < _SHORTEST_LINE:
        return np.full(len(sums), CLASSES // 2, np.uint8)
    logarithms = fixed.log2(np.maximum(sums, 1)) - (mean + _log2(length))
    quarters = (logarithms + (1 << (fixed.FRACTION - 3))) >> (fixed.FRACTION - 2)
    result: U8 = np.clip(quarters + CLASSES // 2, 0, CLASSES - 1).astype(np.uint8)
    return result


def _log2(number: int) -> int:
    return int(fixed.log2(np.array([number], np.int64))[0])


def _energy(whole: npt.NDArray[np.int32]) -> int:
    flat = whole.reshape(-1)
    total = 0
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE].astype(np.int64)
        total += int(np.dot(piece, piece))
    return total
