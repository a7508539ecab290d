"""Numbers as tokens and raw bits.

A natural number below 2**split is its own token. A larger one is a token for its highest bit and the one below it,
and the remaining bits are kept raw, outside the Huffman code: 2**split + 2 * (64 - split) tokens cover all 64-bit
numbers. (The idea of JPEG's and JPEG XL's hybrid integers.)
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

#: Values below this are split by a table of all of them.
_LARGEST_TABLE = 1 << 16


def zigzag(values: I64) -> U64:
    """Fold signed numbers into natural ones: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def unzigzag(values: U64) -> I64:
    """The inverse of `zigzag`."""
    return ((values >> np.uint64(1)) ^ (np.uint64(0) - (values & np.uint64(1)))).view(np.int64)


def bit_length(values: U64) -> I64:
    """The position of the highest bit, from one; 0 for 0."""
    # The exponent of a float tells. With the bit below the highest one cleared, rounding cannot reach the next power.
    floats = (values & ~(values >> np.uint64(1))).astype(np.float64)
    length: I64 = np.maximum((floats.view(np.int64) >> 52) - 1022, 0)
    return length


def split_tokens(values: U64, split: int) -> tuple[I64, I64, U64]:
    """(token, number of raw bits, raw bits) of each value; `split` is at least 1."""
    largest = int(values.max(initial=0))
    if largest < 1 << split:
        return values.astype(np.int64), np.zeros(len(values), np.int64), np.zeros(len(values), np.uint64)
    if largest < min(_LARGEST_TABLE, len(values)):  # values repeat: look up what each of them gives
        tokens, raw_lengths, raw = _split(np.arange(largest + 1, dtype=np.uint64), split)
        index = values.view(np.int64)
        return tokens.take(index), raw_lengths.take(index), raw.take(index)
    return _split(values, split)


def _split(values: U64, split: int) -> tuple[I64, I64, U64]:
    raw_lengths = np.maximum(bit_length(values) - 2, split - 1)
    small = values < np.uint64(1 << split)
    raw_lengths[small] = 0
    shift = raw_lengths.astype(np.uint64)
    top = (values >> shift).astype(np.int64)  # 2 or 3, of large values
    tokens = np.where(small, top, (1 << split) + 2 * (raw_lengths - split) + top)
    return tokens, raw_lengths, values & ((np.uint64(1) << shift) - np.uint64(1))


@cache
def _join(split: int) -> tuple[I64, U64]:
    """(number of raw bits, least value) of each token."""
    tokens = np.arange(token_count(split), dtype=np.int64)
    raw_lengths = np.where(tokens < 1 << split, 0, ((tokens - (1 << split)) >> 1) + split - 1)
    top = (np.uint64(2) | (tokens & 1).astype(np.uint64)) << raw_lengths.astype(np.uint64)
    least = np.where(tokens < 1 << split, tokens.astype(np.uint64), top)
    raw_lengths.flags.writeable = least.flags.writeable = False
    return raw_lengths, least


def raw_length(tokens: I64, split: int) -> I64:
    """How many raw bits each token (below `token_count`) has."""
    return _join(split)[0].take(tokens)


def join_tokens(tokens: I64, raw: U64, split: int) -> U64:
    """The inverse of `split_tokens`."""
    values = _join(split)[1].take(tokens)
    return np.bitwise_or(values, raw, out=values)


def token_count(split: int) -> int:
    """The number of tokens that cover all 64-bit numbers."""
    return (1 << split) + 2 * (64 - split)
