"""Dynamic fixed point: int8 codes under a power of two that follows the overflow rate of its group.

Strategy: a group (a block of 256) has a step of 2^e; a value is a whole number of steps from -127 to 127, what lies
beyond is cut off. The paper moves e by one when the share of values that overflow is above a limit, and back when at
half the step it would still be below (`adapted`). What that converges to can be computed directly: the smallest e
whose overflow rate is within the limit, from the few largest magnitudes of a group. So does `Fixed`, anew for every
write, and never lags behind its data.

Source: Courbariaux, Bengio, David, "Training deep neural networks with low precision multiplications" (2014), sections
5 to 7.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from .blocks import F32, TINY, U8, BlockFormat, Scales, largest

_TOP = 127
#: From here on a value rounds to more than 127 steps.
_EDGE = np.float32(127.5)
I32 = npt.NDArray[np.int32]


def overflow_rates(groups: F32, exponents: I32) -> F32:
    """The share of each group [groups, width] that 127 steps of 2^exponent do not reach."""
    limits = np.ldexp(_EDGE, exponents)[:, None]
    return np.asarray((np.abs(groups) >= limits).mean(axis=1, dtype=np.float32))


def adapted(groups: F32, exponents: I32, limit: float) -> I32:
    """The exponents after one look at the data: up by one where the rate is above `limit`, down by one where it would
    be within it at half the step. Exponents stay within -126 and 120."""
    up = overflow_rates(groups, exponents) > limit
    down = ~up & (overflow_rates(groups, exponents - 1) <= limit)
    return np.clip(exponents + up - down, -126, 120).astype(np.int32)


class Fixed(BlockFormat):
    """int8 codes times a power of two.

    `overflow`: the share of a block's values that may be cut off to make the rest finer (0: none). Error: at most
    half a step, which is at most 1/127 of the largest magnitude; of a value that is cut off, what lies beyond.
    """

    name = "fixed8"

    def __init__(self, overflow: float = 0.0) -> None:
        """Raises CodecError for a share that is not at least 0 and below 1."""
        if not 0 <= overflow < 1:
            raise CodecError(f"the overflow rate {overflow} must be at least 0 and below 1")
        self.overflow = overflow

    def scales(self, blocks: F32) -> Scales:
        """The step: the smallest power of two that keeps the overflow rate."""
        top = largest(blocks)
        kept = int(self.overflow * blocks.shape[1] + 1e-9)
        if kept:
            sizes = np.partition(np.abs(blocks), blocks.shape[1] - 1 - kept, axis=1)
            reached = sizes[:, blocks.shape[1] - 1 - kept]
            top = np.where(np.isfinite(top) & (reached >= TINY), reached, top)  # a block of zeros but a few keeps these
        mantissa, exponent = np.frexp(top / _EDGE)
        steps = np.ldexp(np.float32(1), exponent)  # above top / 127.5: mantissas are below 1
        # exactly a power of two: frexp has it as a half, one exponent higher, which is right as the edge overflows
        return np.where(np.isfinite(mantissa), np.where(top == 0, np.float32(0), steps), np.float32(np.nan))

    def encode(self, blocks: F32, scales: Scales, codes: U8) -> None:
        """Round to nearest, ties to even; cut off beyond 127 steps."""
        steps = blocks / scales
        np.rint(steps, out=steps)
        if self.overflow:
            np.clip(steps, -_TOP, _TOP, out=steps)
        codes.view(np.int8)[...] = steps

    def decode(self, codes: U8, scales: Scales, out: F32) -> None:
        """Exact."""
        np.multiply(codes.view(np.int8), scales, out=out)

    def row_bound(self, blocks: F32) -> F32:
        """Half a step, or what is cut off."""
        steps = self.scales(blocks)[:, None]
        return np.maximum(steps / 2, np.abs(blocks) - _TOP * steps)
