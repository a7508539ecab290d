"""About how many bits our coder takes for an array: what forms and files are chosen by, before anything is coded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..coding import tokens
from ..coding.fixed import entropy_bits

I64 = npt.NDArray[np.int64]

#: Bits that a symbol adds to the written code.
_SYMBOL_BITS = 4
#: Integers up to this one are symbols by themselves; larger ones are taken as a symbol and raw bits.
_SPLIT = 8
#: Integers in a range of so many are symbols by themselves.
_NARROW = 1 << 10


def bits_of_bytes(plane: npt.NDArray[np.uint8]) -> int:
    """For bytes."""
    counts = np.bincount(plane.reshape(-1), minlength=256)
    return entropy_bits(counts) + _SYMBOL_BITS * int(np.count_nonzero(counts))


def bits_of_integers(values: I64) -> int:
    """For integers: narrow ones by their values, others as integers around zero."""
    flat = values.reshape(-1)
    low, high = int(flat.min()), int(flat.max())
    if high - low < _NARROW:
        counts = np.bincount(flat - low)
        raw = 0
    else:
        found, raw_lengths, _ = tokens.split_tokens(tokens.zigzag(flat), _SPLIT)
        counts, raw = np.bincount(found), int(raw_lengths.sum())
    return entropy_bits(counts) + raw + _SYMBOL_BITS * int(np.count_nonzero(counts))
