"""What the encoder decides: which arrays share a sequence, and how each sequence is coded.

Costs are counted in whole bits or in fixed-point bits from an integer logarithm, so that every platform decides
alike. The decoder needs none of this: whatever is decided here stands in the blob.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from . import huffman, modes, tokens
from .modes import RUNS, TUPLES, Coded, Way

I64 = npt.NDArray[np.int64]

#: Fractional bits of fixed-point bit counts, and the bits of mantissa that the logarithm looks at.
_FRACTION, _MANTISSA = 12, 10
#: Longer sequences are judged by this many values, taken in `_PIECES` equidistant pieces.
_SAMPLE, _PIECES = 1 << 17, 16
#: Bits that a sequence costs in the header apart from its code's lengths, and bits per symbol of these, about.
_SEQUENCE_BITS, _SYMBOL_BITS = 40, 4
#: A value is common if it is one in this many.
_COMMON = 8
#: Split of the tokens by whose histogram arrays are compared.
_GROUP_SPLIT = 3


@cache
def _log_table() -> I64:
    """log2 of 1 + i / 1024 in units of 2**-12, by repeated squaring of 64-bit integers (exact on every platform)."""
    table = []
    for index in range(1 << _MANTISSA):
        x, result = ((1 << _MANTISSA) + index) << (31 - _MANTISSA), 0
        for _ in range(_FRACTION):
            x = x * x >> 31
            result <<= 1
            if x >= 1 << 32:
                x >>= 1
                result |= 1
        table.append(result)
    return np.array(table, np.int64)


def entropy_bits(counts: I64) -> int:
    """About the bits that an ideal coder needs for symbols that occur `counts` times: order-0 entropy."""
    counts = counts[counts > 0]
    every = np.append(counts, counts.sum())
    length = tokens.bit_length(every.astype(np.uint64)) - 1
    mantissa = np.where(
        length > _MANTISSA, every >> np.maximum(length - _MANTISSA, 0), every << np.maximum(_MANTISSA - length, 0)
    )
    logarithm = (length << _FRACTION) + _log_table()[mantissa - (1 << _MANTISSA)]
    return int(every[-1] * logarithm[-1] - (counts * logarithm[:-1]).sum()) >> _FRACTION


def group(arrays: Sequence[I64]) -> list[int]:
    """The sequence that each (flat) array belongs to, numbered from 0 without gaps.

    Arrays are ordered by how large their values are; neighbours then merge wherever one code for both is cheaper than
    two: small arrays share, large ones that differ do not.
    """
    histograms = [
        np.bincount(tokens.split_tokens(tokens.zigzag(_sample(a)), _GROUP_SPLIT)[0],
        minlength=tokens.token_count(_GROUP_SPLIT)) * max(1, len(a) // _SAMPLE) for a in arrays
    ]  # fmt: skip
    weights = np.arange(tokens.token_count(_GROUP_SPLIT))
    scales = [int((h * weights).sum() << 16) // max(1, len(a)) for h, a in zip(histograms, arrays, strict=True)]
    order = sorted(range(len(arrays)), key=lambda i: (scales[i], i))
    merged: list[tuple[I64, int, list[int]]] = []
    for index in order:
        merged.append((histograms[index], _cost(histograms[index]), [index]))
        while len(merged) > 1:
            (a, cost_a, members_a), (b, cost_b, members_b) = merged[-2:]
            cost = _cost(a + b)
            if cost > cost_a + cost_b and len(merged) < 256:
                break
            merged[-2:] = [(a + b, cost, members_a + members_b)]
    sequence = [0] * len(arrays)
    for number, (_, _, members) in enumerate(sorted(merged, key=lambda m: min(m[2]))):
        for index in members:
            sequence[index] = number
    return sequence


def _cost(histogram: I64) -> int:
    return entropy_bits(histogram) + _SEQUENCE_BITS + _SYMBOL_BITS * int(np.count_nonzero(histogram))


def _sample(values: I64) -> I64:
    if len(values) <= _SAMPLE:
        return values
    piece, pitch = _SAMPLE // _PIECES, len(values) // _PIECES
    return np.concatenate([values[i * pitch : i * pitch + piece] for i in range(_PIECES)])


def base(values: I64) -> int:
    """What to subtract from a sequence: a value that is common, so that zeros are; else, of narrow data, the middle."""
    found, counts = np.unique(_sample(values), return_counts=True)
    if not len(found):
        return 0
    low, high = int(values.min()), int(values.max())
    if high - low < 1 << modes.LARGEST_SPLIT and counts.max() * _COMMON < counts.sum():
        return (low + high + 1) // 2  # all values then are tokens by themselves
    return int(found[np.argmax(counts)])


def choose(values: I64) -> tuple[Coded, I64]:
    """The cheapest way for a sequence, and its code lengths. `values` are already reduced by their base."""
    sample = _sample(values)
    best, best_cost = Way(TUPLES, 1, 1), -1
    for way in _candidates(sample):
        coded = modes.MODES[way.mode].encode(sample, way)
        if coded is None:
            continue
        cost = _exact_cost(coded, np.bincount(coded.symbols, minlength=coded.alphabet))
        if best_cost < 0 or cost < best_cost:
            best, best_cost = way, cost
    for way in (best, Way(TUPLES, best.split, 1), Way(TUPLES, 1, 1)):
        chosen = modes.MODES[way.mode].encode(values, way)
        if chosen is not None:  # the whole may have larger values than its sample
            break
    assert chosen is not None, "plain coding with the fewest tokens always fits"
    return chosen, huffman.code_lengths(np.bincount(chosen.symbols, minlength=chosen.alphabet))


def _exact_cost(coded: Coded, counts: I64) -> int:
    lengths = huffman.code_lengths(counts)
    return int((counts * np.maximum(lengths, 0)).sum()) + int(coded.raw_lengths.sum()) + huffman.written_size(lengths)


def _candidates(sample: I64) -> Iterator[Way]:
    """Ways worth a try, by the largest value and the share of zeros."""
    longest = int(tokens.zigzag(sample).max(initial=0)).bit_length()
    share = 100 * int(np.count_nonzero(sample == 0)) // max(1, len(sample))
    top = min(max(longest, 1), modes.LARGEST_SPLIT)
    yield from (Way(TUPLES, split, 1) for split in range(max(1, top - 5), top + 1))
    if share >= 25:
        yield from (Way(TUPLES, split, 2) for split in range(1, min(top, 4) + 1))
    if share >= 50:
        yield from (Way(TUPLES, split, 3) for split in range(1, min(top, 2) + 1))
        yield Way(TUPLES, 1, 4)
        yield from (Way(RUNS, split, extent) for split in (1, 2) for extent in (1, 2, 3, 4))
