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

A weight at the end of its range stays there until its gradient turns. Random numbers are a function of seed, step and
group, so that a trainer that is loaded goes on bit for bit.

Sources: Lin et al., "On-Device Training Under 256KB Memory" (2022), section 3.1; Gupta et al., "Deep Learning with
Limited Numerical Precision" (2015) for stochastic rounding.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntegerArray = npt.NDArray[Any]
#: Element types of integer weights.
DTYPES = ("int8", "uint8", "int16", "uint16", "int32")


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the integers q of one weight stand for real values: scale (q - zero point).

    `scale` and `zero_point` are little-endian float32 and int32: one number for the whole tensor, one per index along
    `axis`, or with `block` > 0 one per `block` neighbours along `axis` (then in the shape of the tensor, that axis
    divided). Training keeps the integers between `low` and `high`.
    """

    weight: str
    dtype: str
    shape: tuple[int, ...]
    scale: bytes
    zero_point: bytes
    axis: int
    block: int
    low: int
    high: int

    @property
    def scales(self) -> FloatArray:
        """The scales, flat."""
        return np.frombuffer(self.scale, "<f4")

    @property
    def zero_points(self) -> npt.NDArray[np.int32]:
        """The zero points, flat, as many as scales."""
        return np.frombuffer(self.zero_point, "<i4")

    def scale_at(self, start: int, stop: int) -> FloatArray:
        """The scales of the elements from `start` to `stop` of the flat tensor: [stop - start], or [1] for one."""
        scales = self.scales
        return scales if scales.size == 1 else scales[self._places(start, stop)]

    def zero_at(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """The zero points of the elements from `start` to `stop` of the flat tensor."""
        zeros = self.zero_points
        return zeros if zeros.size == 1 else zeros[self._places(start, stop)]

    def _places(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Which of the scales belongs to each element."""
        length = self.shape[self.axis]
        inner = int(np.prod(self.shape[self.axis + 1 :], dtype=np.int64))
        if not self.block and start // (inner * length) == (stop - 1) // (inner * length):
            # whole rows of one channel each: repeating is several times faster than dividing every index
            first, last = start // inner, (stop - 1) // inner
            rows = np.repeat(np.arange(first, last + 1) % length, inner)
            return rows[start - first * inner : stop - first * inner]
        at = np.arange(start, stop)
        along = at // inner % length
        if not self.block:
            return along
        blocks = -(-length // self.block)
        return (at // (inner * length) * blocks + along // self.block) * inner + at % inner


def dequantize(integers: IntegerArray, how: Quantization) -> FloatArray:
    """The real values, in the shape of the integers, bit for bit as the runtime's DequantizeLinear computes them."""
    flat = integers.reshape(-1)
    values = (flat.astype(np.int64) - how.zero_at(0, flat.size)).astype(np.float32)
    values *= how.scale_at(0, flat.size)
    return values.reshape(integers.shape)


def quantize(values: npt.ArrayLike, how: Quantization, present: IntegerArray | None = None) -> IntegerArray:
    """The nearest integers (ties to even), saturated. Where a value is what `present` stands for, that is kept.

    So values read with `dequantize` come back as the integers that they were, in every case.
    """
    array = np.asarray(values, np.float32)
    flat = array.reshape(-1)
    exact = flat.astype(np.float64) / how.scale_at(0, flat.size) + how.zero_at(0, flat.size)
    limits = np.iinfo(how.dtype)
    nearest = np.clip(np.rint(exact), limits.min, limits.max).astype(how.dtype).reshape(array.shape)
    if present is None:
        return nearest
    return np.where(dequantize(present, how) == array, present, nearest).astype(how.dtype)


def random_source(seed: int, step: int, group: int) -> np.random.Generator:
    """Random numbers that depend on nothing else: a step that is taken again draws the same."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, step, group))))


def move(
    integers: IntegerArray, change: FloatArray, how: Quantization, start: int, random: np.random.Generator
) -> None:
    """Change integers in place so that the mean change of what they stand for is `change` (which is overwritten).

    `integers` and `change` are flat, the elements from `start` on of the tensor. A change of 0 leaves an integer as it
    is; every other is exact on average up to 2^-23 of a scale step, and the ends of the range hold.
    """
    change /= how.scale_at(start, start + change.size)
    change += random.random(change.size, np.float32)
    np.floor(change, out=change)
    # beyond this every weight is at the end of its range; it keeps the conversion defined
    reach = np.float32(how.high) - np.float32(how.low)
    np.clip(change, -reach, reach, out=change)
    moved: IntegerArray = change.astype(np.int32 if integers.dtype.itemsize < 4 else np.int64)
    np.add(moved, integers, out=moved)
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
