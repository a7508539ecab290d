"""Floats of 8 bits: E4M3 and E5M2, as plain casts and as blocks with a power of two as their scale.

Strategy: casting rounds the upper bits of a float32 as integers (to nearest, ties to even), with the exponent's bias
exchanged; below the smallest normal number codes are whole numbers of the smallest step. Beyond the largest finite
number the cast saturates, infinity included; NaN stays NaN. A block is divided by the power of two that brings its
largest magnitude into the highest binade of the format, so nothing saturates and small values keep their bits.

Sources: the OCP 8-bit Floating Point Specification (2023), ONNX's float8e4m3fn and float8e5m2 with saturate=1;
shared powers of two after the OCP Microscaling Formats Specification (2023), with blocks of 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .blocks import F32, TINY, U8, BlockFormat, Scales, largest

_MANTISSA, _BIAS = 23, 127


@dataclass(frozen=True)
class Float8:
    """A sign, `exponent` bits with their `bias`, `mantissa` bits. `infinite`: whether the top exponent is reserved."""

    name: str
    exponent: int
    mantissa: int
    bias: int
    infinite: bool

    @property
    def top_code(self) -> int:
        """The code of the largest finite number: below NaN, or below infinity."""
        return (((1 << self.exponent) - 1) << self.mantissa) - 1 if self.infinite else 0x7E

    @property
    def nan_code(self) -> int:
        """The code that NaN becomes."""
        return self.top_code + 1 + (1 << (self.mantissa - 1)) if self.infinite else 0x7F

    @cached_property
    def table(self) -> F32:
        """The value of each code, [256]."""
        return np.array([self._value(code) for code in range(256)], np.float32)

    def _value(self, code: int) -> float:
        sign = -1.0 if code & 0x80 else 1.0
        code &= 0x7F
        if code > self.top_code:
            return sign * (np.inf if self.infinite and code == self.top_code + 1 else np.nan)
        exponent, fraction = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        if exponent:
            fraction += 1 << self.mantissa
        return sign * fraction * 2.0 ** (max(exponent, 1) - self.bias - self.mantissa)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return float(self.table[self.top_code])

    def cast(self, values: F32) -> U8:
        """The nearest codes (ties to even), saturated; NaN to NaN. In the shape of `values`."""
        values = np.asarray(values, np.float32)
        nan = np.isnan(values)
        codes = np.empty(values.shape, np.uint8)
        self.cast_into(np.where(nan, np.float32(0), values), codes)
        codes[nan] = self.nan_code | (np.signbit(values[nan]).astype(np.uint8) << 7)
        return codes

    def cast_into(self, values: F32, codes: U8) -> None:
        """As `cast`, for values without NaN."""
        size = np.minimum(np.abs(values), np.float32(self.largest))
        dropped = _MANTISSA - self.mantissa
        # what is below the smallest normal number counts in steps of the smallest number
        low = np.rint(size * np.float32(2.0 ** (self.bias + self.mantissa - 1)))
        bits = size.view(np.uint32)
        odd = (bits >> np.uint32(dropped)) & np.uint32(1)
        bits += odd
        bits += np.uint32((1 << (dropped - 1)) - 1)
        bits >>= np.uint32(dropped)
        bits -= np.uint32((_BIAS - self.bias) << self.mantissa)
        np.copyto(bits, low, where=low <= np.float32(1 << self.mantissa), casting="unsafe")
        bits |= (np.ascontiguousarray(values).view(np.uint32) >> np.uint32(24)) & np.uint32(0x80)
        codes[...] = bits

    def value(self, codes: U8) -> F32:
        """The values of codes, in their shape."""
        return np.asarray(self.table.take(codes))


E4M3 = Float8("e4m3", 4, 3, 7, infinite=False)
E5M2 = Float8("e5m2", 5, 2, 15, infinite=True)


class ScaledFloat8(BlockFormat):
    """Floats of 8 bits times a power of two per block.

    Error: half a unit in the last place, 1/16 (E4M3) or 1/8 (E5M2) of a value; below the smallest normal number, half
    the smallest step: 2^-18 (E4M3) or 2^-32 (E5M2) of the block's largest magnitude, or less.
    """

    def __init__(self, kind: Float8) -> None:
        self.kind = kind
        self.name = kind.name
        self._table = kind.table

    def scales(self, blocks: F32) -> Scales:
        """The smallest power of two by which the largest magnitude is finite in the format."""
        top = largest(blocks)
        mantissa, exponent = np.frexp(top / np.float32(self.kind.largest))
        exponent = exponent - (mantissa == 0.5)
        steps = np.ldexp(np.float32(1), exponent)
        return np.where(np.isfinite(mantissa), np.where(top == 0, np.float32(0), steps), np.float32(np.nan))

    def encode(self, blocks: F32, scales: Scales, codes: U8) -> None:
        """Cast value / scale: the division is exact."""
        self.kind.cast_into(blocks / scales, codes)

    def decode(self, codes: U8, scales: Scales, out: F32) -> None:
        """Exact, but for products below the smallest normal float32."""
        self._table.take(codes, out=out, mode="clip")
        out *= scales

    def row_bound(self, blocks: F32) -> F32:
        """Half a unit in the last place."""
        scales = self.scales(blocks)[:, None]
        relative = np.abs(blocks) * np.float32(2.0 ** -(self.kind.mantissa + 1))
        smallest = scales * np.float32(2.0 ** -(self.kind.bias + self.kind.mantissa - 1)) / 2
        return np.maximum(np.maximum(relative, smallest), TINY)
