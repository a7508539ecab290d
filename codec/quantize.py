"""Uniform quantization with an exact zero, its step chosen by how much of a tensor is to arrive.

`quality` is the share of a tensor's energy (its squared length) that its decoded form accounts for: at 0.9 the error
has at most a tenth of the energy of the tensor, a signal-to-noise ratio of 10 dB. The step is the largest for
which that holds, so bits go down as far as the promise allows. Rounding leans towards zero: a magnitude becomes n
steps from n - 3/8 steps on. Such a dead zone (as in video coders) buys more zeros than it costs in error.

Everything that decides is done on integers: magnitudes are scaled by a power of two to at most 2**20, steps are 8 to
15 times a power of two, sums are integer sums. So the same floats give the same bytes on every platform, and level
times step (18 bits by 4) is exact in float32.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

#: Share of energy that `encode_delta` sends if not told otherwise.
DEFAULT_QUALITY = 0.9
#: Bits of the scaled magnitudes.
_SCALE = 20
#: Extra width of the zones towards zero, in 1/16 step.
_DEAD = 2
#: Elements whose squares (of 40 bits) are summed in 64 bits.
_CHUNK = 1 << 20
#: Steps of an octave: step number 8 * j + m is (8 + m) * 2**j.
_OCTAVE = 8
#: Step numbers that exist: from the smallest subnormal float32 to the largest, with the bits of the scale below.
STEP_NUMBERS = range(_OCTAVE * (-150 - _SCALE), _OCTAVE * 130)


def quantize(tensor: F32, quality: float) -> tuple[I64, int | None]:
    """(levels, step number) of a finite tensor, in its shape; (zeros, None) if all is zero. 0 < quality < 1."""
    peak = float(np.max(np.abs(tensor), initial=0.0))
    if peak == 0.0:
        return np.zeros(tensor.shape, np.int64), None
    exponent = math.frexp(peak)[1]
    scaled = np.rint(np.ldexp(np.abs(tensor).astype(np.float64), _SCALE - exponent)).astype(np.int64)
    allowed = (_energy(scaled) * ((1 << 16) - round(quality * (1 << 16)))) >> 16
    low, high = 0, _OCTAVE * (_SCALE - 1)
    while low < high:
        middle = (low + high + 1) // 2
        step = _whole_step(middle)
        if _energy(scaled - _levels(scaled, step) * step) <= allowed:
            low = middle
        else:
            high = middle - 1
    levels = _levels(scaled, _whole_step(low))
    return np.where(np.signbit(tensor), -levels, levels), low + _OCTAVE * (exponent - _SCALE)


def dequantize(levels: I64, number: int) -> F32:
    """The values of levels under a step number."""
    octave, mantissa = divmod(number, _OCTAVE)
    return np.ldexp(levels * (_OCTAVE + mantissa), octave).astype(np.float32)


def _whole_step(number: int) -> int:
    octave, mantissa = divmod(number, _OCTAVE)
    return (_OCTAVE + mantissa) << octave


def _levels(scaled: I64, step: int) -> I64:
    return (16 * scaled + (8 - _DEAD) * step) // (16 * step)


def _energy(values: I64) -> int:
    flat = values.reshape(-1)
    return sum(int(np.square(flat[i : i + _CHUNK]).sum()) for i in range(0, len(flat), _CHUNK))
