"""Steps by number, and the values that levels stand for.

Step number 8 * j + m is (8 + m) * 2**j: eight to an octave, four bits each. So a level of 20 bits times a step is exact
in float32, unless it is subnormal.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Levels = npt.NDArray[np.signedinteger[Any]]

#: Steps of an octave.
OCTAVE = 8
#: Step numbers that exist: from far below the smallest subnormal float32 to the largest float32.
STEP_NUMBERS = range(OCTAVE * -170, OCTAVE * 130)
#: Steps from this octave on are float32 numbers.
_SMALLEST = -149


def step_size(number: int) -> float:
    """The size of a step."""
    octave, mantissa = divmod(number, OCTAVE)
    return math.ldexp(OCTAVE + mantissa, octave)


def dequantize(levels: Levels, number: int) -> F32:
    """The values of levels under a step number."""
    octave, mantissa = divmod(number, OCTAVE)
    return np.ldexp(levels.astype(np.int64) * (OCTAVE + mantissa), octave).astype(np.float32)


def multiply(levels: F32, number: int) -> None:
    """Turn levels, as floats, into their values under a step number, in place: the very values of `dequantize`."""
    if number >= OCTAVE * _SMALLEST:
        levels *= np.float32(step_size(number))
    else:
        levels[...] = dequantize(levels.astype(np.int64), number)
