"""Number formats of one byte per value: float32 arrays in, codes and one scale per block out. Pure numpy.

Strategy: a format is a code map (256 values, in one file each) and a rule for the scale of a block; `blocks.py` does
the rest, for any length, in pieces that stay in the cache. In every format zero is exact, packing what was unpacked
gives the same values again, order is kept inside a block, and `bound` says how far a value can move; NaN and infinity
have no place in a block and are refused (`CodecError`).

| Name | Map | Scale of a block of 256 | Good for |
|---|---|---|---|
| `int8` | linear, 127 steps either way | largest magnitude | activations |
| `dynamic8` | seven decades, finer towards 1, either sign | largest magnitude | running means of gradients |
| `dynamic8u` | seven decades, positive | largest value | running means of squares: positive never becomes zero |
| `fixed8` | linear, 127 steps either way | power of two, by overflow rate | integer hardware |
| `e4m3` | float of 4 exponent and 3 mantissa bits | power of two | weights, activations |
| `e5m2` | float of 5 exponent and 2 mantissa bits | power of two | gradients |

A `Codebook` (`codebook.py`) is no format by blocks: all weights of a tensor share its values.

>>> import numpy as np
>>> values = np.linspace(-1, 1, 1000, dtype=np.float32)
>>> kind = number_format("dynamic8")
>>> kind.nbytes(1000), bool((abs(kind.unpack(kind.pack(values)) - values) <= kind.bound(values)).all())
(1016, True)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ..errors import CodecError
from .blocks import BLOCK, BlockFormat, Linear, Packed
from .codebook import LARGEST_CODEBOOK, Codebook
from .dynamic import Dynamic
from .fixed import Fixed
from .float8 import E4M3, E5M2, Float8, ScaledFloat8

#: Name -> how to make the format.
_MAKERS: dict[str, Callable[[], BlockFormat]] = {
    "int8": Linear,
    "dynamic8": lambda: Dynamic(signed=True),
    "dynamic8u": lambda: Dynamic(signed=False),
    "fixed8": Fixed,
    "e4m3": lambda: ScaledFloat8(E4M3),
    "e5m2": lambda: ScaledFloat8(E5M2),
}
FORMATS = tuple(_MAKERS)

__all__ = [
    "BLOCK", "E4M3", "E5M2", "FORMATS", "LARGEST_CODEBOOK", "BlockFormat", "Codebook", "Dynamic", "Fixed", "Float8",
    "Linear", "Packed", "ScaledFloat8", "number_format",
]  # fmt: skip


@cache
def number_format(name: str) -> BlockFormat:
    """A format by name, one object for all users (it holds tables only). Raises CodecError."""
    if name not in _MAKERS:
        raise CodecError(f"there is no number format {name!r}; choose one of {', '.join(FORMATS)}")
    return _MAKERS[name]()
