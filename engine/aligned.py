"""Arrays that begin at the border of a cache line.

numpy aligns to 16 bytes only: every other load of a wide vector unit then touches two lines, which costs optimizers
about a tenth of their time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Bytes of a cache line, on the processors that have been asked: x86-64, and 64-bit ARM of all common makers.
LINE = 64


def aligned_zeros(count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A flat array of `count` zeros whose first byte begins a cache line; pages are touched when first written."""
    kind = np.dtype(dtype)
    raw = np.zeros(count * kind.itemsize + LINE, np.uint8)
    begin = -raw.ctypes.data % LINE
    return raw[begin : begin + count * kind.itemsize].view(kind)
