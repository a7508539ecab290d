"""The Huffman codes of all sequences, written as one stream of symbols under a code that both ends know.

A code is the length of each symbol's word, one number for each symbol of the alphabet: 0 for an absent symbol, else the
length plus one. Neighbours in an alphabet have similar lengths, where neighbour means one value on, one magnitude on
(the sign apart), or one run or tuple place on, as is best: that is the code's `stride`. What is written is the
difference (modulo 14) to the neighbour before. So a table is read by cumulative sums, not number by number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from . import huffman
from .modes import Way

I64 = npt.NDArray[np.int64]

#: Numbers that a length can be: absent, and 0 to 12 bits.
_NUMBERS = huffman.LONGEST + 2
#: What the first number is expected to be.
_FIRST = 4
#: Word lengths of the differences: what the codes of many deltas and weights need on average.
DIFFERENCES: I64 = np.array([1, 3, 4, 5, 5, 6, 6, 7, 7, 6, 6, 6, 5, 3], np.int64)
#: Bits that say which stride.
STRIDE_BITS = 2


def strides(way: Way) -> list[int]:
    """The strides that a code of this way may have, by number."""
    return [1, 2, way.radix, way.radix**2]


def differences(lengths: I64, way: Way) -> tuple[int, I64]:
    """(number of the best stride, differences) of a code."""
    best: tuple[int, int, I64] | None = None
    numbers = lengths + 1
    for number, stride in enumerate(strides(way)):
        before = np.empty_like(numbers)
        stride = min(stride, len(numbers))
        before[stride:] = numbers[: len(numbers) - stride]
        before[0], before[1:stride] = _FIRST, numbers[: stride - 1]
        found = (numbers - before) % _NUMBERS
        cost = int(DIFFERENCES[found].sum())
        if best is None or cost < best[0]:
            best = cost, number, found
    assert best is not None, "there are strides"
    return best[1], best[2]


def lengths(found: I64, way: Way, number: int) -> I64:
    """The inverse of `differences`; `CodecError` unless the code is complete (Kraft sum exactly one)."""
    stride = min(strides(way)[number], len(found))
    rows = -(-len(found) // stride)
    flat = np.zeros(rows * stride, np.int64)
    flat[: len(found)] = found
    table = flat.reshape(rows, stride)
    table[0, 0] += _FIRST
    np.cumsum(table[0], out=table[0])
    result: I64 = np.cumsum(table, axis=0).reshape(-1)[: len(found)] % _NUMBERS - 1
    words = np.bincount(result + 1, minlength=_NUMBERS)[1:]
    if int((words << np.arange(huffman.LONGEST, -1, -1)).sum()) != 1 << huffman.LONGEST:
        raise CodecError("a Huffman code has too few or too many words (Kraft): the blob is damaged")
    return result


def split(found: I64, ways: Sequence[Way]) -> list[I64]:
    """The differences of each code from those of all."""
    return np.split(found, np.cumsum([way.alphabet for way in ways])[:-1])
