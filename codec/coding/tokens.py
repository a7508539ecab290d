"""Numbers as tokens and raw bits.

A natural number below 2**split is its own token. A larger one is a token for its highest bit and the one below it,
and the remaining bits are kept raw, outside the Huffman code: 2**split + 2 * (64 - split) tokens cover all 64-bit
numbers. (The idea of JPEG's and JPEG XL's hybrid integers.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def zigzag(values: I64) -> U64:
    """Fold signed numbers into natural ones: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def unzigzag(values: U64) -> I64:
    """The inverse of `zigzag`."""
    return ((values >> np.uint64(1)) ^ (np.uint64(0) - (values & np.uint64(1)))).view(np.int64)


def bit_length(values: U64) -> I64:
    """The position of the highest bit, from one; 0 for 0. By halving, since floats would round large numbers up."""
    length = np.zeros(values.shape, np.int64)
    rest = values.copy()
    for shift in (32, 16, 8, 4, 2, 1):
        big = rest >= np.uint64(1 << shift)
        length[big] += shift
        rest[big] >>= np.uint64(shift)
    return length + (rest > 0)


def split_tokens(values: U64, split: int) -> tuple[I64, I64, U64]:
    """(token, number of raw bits, raw bits) of each value; `split` is at least 1."""
    tokens = values.astype(np.int64)
    raw_lengths = np.zeros(len(values), np.int64)
    raw = np.zeros(len(values), np.uint64)
    large = np.flatnonzero(values >> np.uint64(split))
    if len(large):
        chosen = values[large]
        length = bit_length(chosen) - 2
        shift = length.astype(np.uint64)
        tokens[large] = (1 << split) + 2 * (length + 1 - split) + ((chosen >> shift) & np.uint64(1)).astype(np.int64)
        raw_lengths[large] = length
        raw[large] = chosen & ((np.uint64(1) << shift) - np.uint64(1))
    return tokens, raw_lengths, raw


def raw_length(tokens: I64, split: int) -> I64:
    """How many raw bits each token has."""
    return np.where(tokens < 1 << split, 0, ((tokens - (1 << split)) >> 1) + split - 1)


def join_tokens(tokens: I64, raw: U64, split: int) -> U64:
    """The inverse of `split_tokens`."""
    shift = raw_length(tokens, split).astype(np.uint64)
    top = (np.uint64(2) | (tokens & 1).astype(np.uint64)) << shift
    return np.where(tokens < 1 << split, tokens.astype(np.uint64), top | raw)


def token_count(split: int) -> int:
    """The number of tokens that cover all 64-bit numbers."""
    return (1 << split) + 2 * (64 - split)
