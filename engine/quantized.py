"""Weights that are integers: what they stand for, and how a step changes them without a copy in real numbers.

Strategy: a weight of a quantized model is q (int8, uint8, int16, uint16; biases int32) with fixed scales and zero
points, and stands for w = s (q - z). The integers in memory are the only copy. A step computes the change d of the
real weight as for any other weight, block by block, and moves q by d / s, rounded up or down at random so that the
mean is d / s (stochastic rounding): changes far below one step of the scale still arrive, on average.

Why d / s: with G = dL/dw, the gradient in the integer domain is dL/dq = s G, and plain descent on it, q -= r s G,
would move the real weight by r s^2 G. Scales differ by orders of magnitude between layers, channels and biases
(s_bias = s_input s_weight), and so would the size of the steps, whatever the rate r. Quantization-aware scaling (Lin
et al.) multiplies dL/dq by s^-2. Then q moves by r G / s and w by r G: exactly descent on the real weights. For
optimizers with state it is applied to their result (d = what the optimizer would change w by), which for SGD with
momentum is the same thing and for Adam, whose step does not depend on the size of gradients, the only right one.

A weight at the end of its range stays there until its gradient turns. The state of the random numbers is saved with
the trainer, so that one that is loaded goes on bit for bit.

Sources: Lin et al., "On-Device Training Under 256KB Memory" (2022), section 3.1; Gupta et al., "Deep Learning with
Limited Numerical Precision" (2015) for stochastic rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .plan import Quantization

FloatArray = npt.NDArray[np.float32]
IntegerArray = npt.NDArray[Any]
#: Element types of integer weights.
DTYPES = ("int8", "uint8", "int16", "uint16", "int32")


def scales_of(how: Quantization) -> FloatArray:
    """The scales, flat."""
    return np.frombuffer(how.scale, "<f4")


def scale_at(how: Quantization, start: int, stop: int) -> FloatArray:
    """The scales of the elements from `start` to `stop` of the flat tensor: [stop - start], or [1] for one."""
    return _picked(scales_of(how), how, start, stop)


def zero_at(how: Quantization, start: int, stop: int) -> npt.NDArray[np.int32]:
    """The zero points of the elements from `start` to `stop` of the flat tensor: as many as `scale_at` gives."""
    return _picked(np.frombuffer(how.zero_point, "<i4"), how, start, stop)


def _picked(values: npt.NDArray[Any], how: Quantization, start: int, stop: int) -> npt.NDArray[Any]:
    """The value that belongs to each element."""
    if values.size == 1:
        return values
    length = how.shape[how.axis]
    inner = math.prod(how.shape[how.axis + 1 :])
    if not how.block:
        first, last = start // inner, (stop - 1) // inner
        rows = np.repeat(values.take(range(first, last + 1), mode="wrap"), inner)
        return rows[start - first * inner : stop - first * inner]
    at = np.arange(start, stop)
    blocks = -(-length // how.block)
    picked: npt.NDArray[Any] = values[
        (at // (inner * length) * blocks + at // inner % length // how.block) * inner + at % inner
    ]
    return picked


def dequantize(integers: IntegerArray, how: Quantization) -> FloatArray:
    """The real values, in the shape of the integers, bit for bit as the runtime's DequantizeLinear computes them."""
    return dequantize_part(integers.reshape(-1), how, 0).reshape(integers.shape)


def dequantize_part(integers: IntegerArray, how: Quantization, start: int) -> FloatArray:
    """The same for a flat part of a weight, from the element `start` on."""
    stop = start + integers.size
    values = (integers.astype(np.int64) - zero_at(how, start, stop)).astype(np.float32)
    values *= scale_at(how, start, stop)
    return values


def quantize(values: npt.ArrayLike, how: Quantization, present: IntegerArray | None = None) -> IntegerArray:
    """The nearest integers (ties to even), saturated. Where a value is what `present` stands for, that is kept.

    So values read with `dequantize` come back as the integers that they were, in every case.
    """
    array = np.asarray(values, np.float32)
    flat = array.reshape(-1)
    exact = flat.astype(np.float64) / scale_at(how, 0, flat.size) + zero_at(how, 0, flat.size)
    limits = np.iinfo(how.dtype)
    nearest = np.clip(np.rint(exact), limits.min, limits.max).astype(how.dtype).reshape(array.shape)
    if present is None:
        return nearest
    return np.where(dequantize(present, how) == array, present, nearest).astype(how.dtype)


def move(
    integers: IntegerArray, change: FloatArray, how: Quantization, start: int, random: np.random.Generator
) -> None:
    """Change integers in place so that the mean change of what they stand for is `change` (which is overwritten).

    `integers` and `change` are flat, the elements from `start` on of the tensor. A change of 0 leaves an integer as it
    is; every other is exact on average up to 2^-23 of a scale step, and the ends of the range hold.
    """
    change /= scale_at(how, start, start + change.size)
    change += random.random(change.size, np.float32)
    np.floor(change, out=change)
    if integers.dtype.itemsize < 4:  # float32 holds these integers and their sums exactly, as far as the range goes
        change += integers
        np.clip(change, how.low, how.high, out=change)
        integers[...] = change
    else:
        reach = np.float32(how.high) - np.float32(how.low)
        moved = np.clip(change, -reach, reach).astype(np.int64)
        moved += integers
        np.clip(moved, how.low, how.high, out=moved)
        integers[...] = moved


def kept_range(integers: IntegerArray, zero_point: npt.NDArray[np.int32]) -> tuple[int, int]:
    """The range that training keeps integers in: that of their quantizer, which did not write it down.

    Quantizers scale the largest weight to the end of the range. With 7 of 8 bits (`reduce_range`), for processors
    whose 8-bit products would overflow, nothing lies in the outer half; signed symmetric weights leave out the least
    integer. Both properties are kept.
    """
    limits = np.iinfo(integers.dtype)
    low, high = int(limits.min), int(limits.max)
    if integers.dtype.itemsize > 1 or not integers.size:
        return low, high
    least, most = int(integers.min()), int(integers.max())
    if low < 0:
        if (least, most) != (0, 0) and least >= -64 and most <= 64:
            return -64, 64
        return (low + 1 if least > low and not zero_point.any() else low), high
    return (0, 127) if 0 < most <= 127 and (zero_point <= 127).all() else (0, high)
