"""Logarithms and entropies in whole numbers, so that every platform and every numpy decides alike.

Bits are counted in units of 2**-16. log2 is a table of 1,025 values, itself made by squaring integers, with straight
lines between them (off by less than 2**-21), and binary exponents come from `frexp`, which is exact.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

#: Fractional bits of a number of bits.
FRACTION = 16
#: Bits of a number that choose a line of the table; as many again say where on the line.
_MANTISSA = 10
#: Numbers are below 2**this.
_LARGEST = 62
#: Products of matrices are made in pieces of so many multiplications, for which BLAS starts no threads: waiting for
#: these costs more than they save where other processes want to run.
_PIECE = 1 << 17
#: Up to here n log n is looked up.
_SMALL = 1 << 14


@cache
def _table() -> I64:
    """log2(1 + i / 1024) for i from 0 to 1,024, by repeated squaring of 64-bit integers."""
    table = []
    for index in range(1 << _MANTISSA):
        x, result = ((1 << _MANTISSA) + index) << (31 - _MANTISSA), 0
        for _ in range(FRACTION):
            x = x * x >> 31
            result <<= 1
            if x >= 1 << 32:
                x >>= 1
                result |= 1
        table.append(result)
    return np.array([*table, 1 << FRACTION], np.int64)


def log2(numbers: I64) -> I64:
    """log2 of whole numbers from 1 to 2**62 - 1, in units of 2**-16; of 0, something."""
    exponent = np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1
    exponent = np.maximum(exponent, 0)
    normal = numbers << (_LARGEST - exponent)
    line = (normal >> (_LARGEST - _MANTISSA)) & ((1 << _MANTISSA) - 1)
    rest = (normal >> (_LARGEST - 2 * _MANTISSA)) & ((1 << _MANTISSA) - 1)
    table = _table()
    low = table[line]
    result: I64 = (exponent << FRACTION) + low + (((table[line + 1] - low) * rest) >> _MANTISSA)
    return result


@cache
def _small() -> I64:
    numbers = np.arange(_SMALL)
    return numbers * log2(numbers)


def information(counts: I64) -> I64:
    """n log2 n of each count n, in units of 2**-16 bits."""
    result: I64 = _small().take(counts, mode="clip")
    if counts.size and counts.max() >= _SMALL:
        large = counts >= _SMALL
        numbers = counts[large]
        result[large] = numbers * log2(numbers)
    return result


def entropy(counts: I64) -> I64:
    """Bits (times 2**16) of symbols that occur `counts` times along the last axis, for an ideal coder of order 0."""
    result: I64 = information(counts.sum(axis=-1, keepdims=True))[..., 0] - information(counts).sum(axis=-1)
    return result


def rounded_log2(numerators: I64, denominator: int, per_octave: int) -> I64:
    """`per_octave` * log2(numerator / denominator), rounded to the nearest; of a numerator 0, something."""
    scaled = log2(numerators) - int(log2(np.array([denominator], np.int64))[0])
    result: I64 = (per_octave * scaled + (1 << (FRACTION - 1))) >> FRACTION
    return result


def entropy_bits(counts: I64) -> int:
    """`entropy` of one histogram in whole bits."""
    return int(entropy(counts.astype(np.int64))) >> FRACTION


def product(left: npt.NDArray[Any], right: Floats) -> Floats:
    """The matrix product in the type of `right`: exact, where that holds all sums of products of whole numbers."""
    result = np.empty((len(left), right.shape[1]), right.dtype)
    left = left.astype(right.dtype)
    step = max(1, _PIECE // right.size)
    for start in range(0, len(left), step):
        np.matmul(left[start : start + step], right, out=result[start : start + step])
    return result
