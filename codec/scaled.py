"""Levels times a step, straight into a sum: no tensor of values is ever made.

Levels are added in pieces that stay in the cache, in the precision of the sum. A level (20 bits) times a step (4
bits) is exact in float32, so each element is the value that `dequantize` gives, times the weight, added.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .steps import Levels, dequantize, step_size

#: Elements of a piece: levels, products and sums of one fit the second cache together.
_PIECE = 1 << 15
#: Steps from the smallest normal float32 on are exact in float32; smaller ones take the long way.
_SMALLEST = 2.0**-126
_LARGEST = float(np.finfo(np.float32).max)


def fits(peak: int, number: int) -> bool:
    """Whether `peak` steps are still a float32."""
    return peak * step_size(number) <= _LARGEST


def narrow(levels: Levels) -> Levels:
    """The same in as few bytes as hold them all."""
    peak = max(int(levels.max(initial=0)), -int(levels.min(initial=0)))
    dtype = np.dtype(np.int8 if peak < 1 << 7 else np.int16 if peak < 1 << 15 else np.int32)
    return levels.astype(dtype, copy=False)


def add(levels: Levels, number: int, into: npt.NDArray[np.floating[Any]], weight: float) -> None:
    """Add `weight` times the values of flat `levels` under a step number to `into`, in its precision."""
    step = step_size(number)
    factor = into.dtype.type(weight)
    if step < _SMALLEST or not into.flags.c_contiguous or into.dtype.itemsize < 4:
        values = dequantize(levels, number).astype(into.dtype)
        into += factor * values.reshape(into.shape)
        return
    flat = into.reshape(-1)
    size = into.dtype.type(step)
    product = np.empty(min(_PIECE, len(flat)), into.dtype)
    for start in range(0, len(flat), _PIECE):
        part = flat[start : start + _PIECE]
        value = product[: len(part)]
        value[...] = levels[start : start + _PIECE]
        value *= size
        if weight != 1.0:
            value *= factor
        part += value
