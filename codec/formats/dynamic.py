"""The dynamic map: seven decades in a byte, finer towards the largest value.

Strategy: decade k (k = 0 the lowest, values 10^(k-7) to 10^(k-6) of the block's largest) is cut into 2^k equal
intervals, or 2^(k+1) where there are no signs, and a code stands for the middle of one; the last code stands for 1
itself, so the largest value of a block is exact. Encoding is one look-up: the upper 20 bits of a float32 are an index
that grows with its magnitude, and a table says which code is nearest. So values are rounded to nearest within 2^-12
of themselves.

Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2022), section 2 and appendix. Theirs has 1
but not -1; here both signs are alike (sign and magnitude, 127 magnitudes), so that a block keeps its largest value
whatever its sign, and values that were unpacked pack to themselves. And here a positive value of the map without
signs never becomes zero: it is what Adam divides by.
"""

from __future__ import annotations

import numpy as np

from .blocks import F32, U8, BlockFormat, Scales, largest

_DECADES = 7
#: Bits of a float32 that the table of codes does without.
_DROPPED = 12
_SIGN = 0x80


def magnitudes(signed: bool) -> F32:
    """The map's values from 0 to 1, ascending: [128] beside a sign bit, else [256]."""
    found = [0.0]
    for decade in range(_DECADES):
        count = 2**decade if signed else 2 ** (decade + 1)
        ends = np.linspace(0.1, 1.0, count + 1)
        found += list(10.0 ** (decade - _DECADES + 1) * (ends[:-1] + ends[1:]) / 2)
    if signed:
        found[-1] = 1.0
    else:
        found.append(1.0)
    return np.array(found, np.float32)


class Dynamic(BlockFormat):
    """Code map of seven decades times the block's largest magnitude.

    Error: half an interval. In the highest decade that is 0.7 % of the block's largest with signs (1 % next to the
    largest itself) and 0.35 % without; each decade below has a tenth of the length and half the intervals, down to 45 %
    (22 %) of its own upper end in the lowest. Without signs, negative values become zero.
    """

    def __init__(self, signed: bool) -> None:
        self.signed = signed
        self.name = "dynamic8" if signed else "dynamic8u"
        values = magnitudes(signed)
        middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
        if not signed:
            middles[0] = 0  # whatever is positive is nearer to the smallest code than to zero
        self._ends = np.concatenate([middles, [np.float32(np.inf)]]).astype(np.float32)
        self._starts = np.concatenate([[np.float32(0)], middles]).astype(np.float32)
        self._values = values
        self._decoded = np.concatenate([values, -values]).astype(np.float32) if signed else values
        # np.zeros: the pages of indices that no value has are never touched
        self._codes = np.zeros(1 << (32 - _DROPPED), np.uint8)
        first = int(values[1:2].view(np.uint32)[0] >> _DROPPED) - (8 << (23 - _DROPPED))
        top = int(values[-1:].view(np.uint32)[0] >> _DROPPED)
        index = np.arange(first, top + 1, dtype=np.uint32)
        centers = ((index << _DROPPED) | (1 << (_DROPPED - 1))).view(np.float32)
        self._codes[first : top + 1] = np.searchsorted(middles, centers)
        self._codes[top] = len(values) - 1
        if signed:
            half = 1 << (31 - _DROPPED)
            self._codes[half + first : half + top + 1] = self._codes[first : top + 1] | _SIGN
        else:
            self._codes[1:first] = 1

    def scales(self, blocks: F32) -> Scales:
        """The largest magnitude."""
        return largest(blocks)

    def encode(self, blocks: F32, scales: Scales, codes: U8) -> None:
        """Look the code up by the upper bits of value / scale."""
        ratio = blocks / scales
        index = ratio.view(np.uint32)
        index >>= np.uint32(_DROPPED)
        self._codes.take(index, out=codes, mode="clip")

    def decode(self, codes: U8, scales: Scales, out: F32) -> None:
        """Look the value up."""
        self._decoded.take(codes, out=out, mode="clip")
        out *= scales

    def row_bound(self, blocks: F32) -> F32:
        """The farther end of the interval that a value may fall into."""
        top = largest(blocks)[:, None]
        ratio = np.abs(blocks) / np.where(top == 0, np.float32(1), top)
        code = np.searchsorted(self._ends[:-1], ratio)
        slack = 1 + 2.0**-11
        far = np.maximum(self._ends[np.minimum(code, len(self._values) - 2)] - self._values[code],
                         self._values[code] - self._starts[code])  # fmt: skip
        found: F32 = (top * (far * slack + ratio * np.float32(2.0**-11))).astype(np.float32)
        if self.signed:
            return found
        # what is positive becomes at least the smallest, what is negative zero
        least = np.where(blocks < 0, -blocks, np.minimum(np.abs(blocks), top * self._values[1]))
        return np.maximum(found, least, out=found)
