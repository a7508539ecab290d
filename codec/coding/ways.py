"""How each sequence is coded: the way that codes a part of it in the fewest bits.

Bits are estimated in whole numbers from counts of symbols, so that every platform decides alike. The decoder needs none
of this: whatever is decided here stands in the blob.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from . import fixed, huffman, modes, tables
from .modes import RUNS, TUPLES, Coded, Way, natural

I64 = npt.NDArray[np.int64]
Integers = npt.NDArray[np.signedinteger]

#: Longer sequences (of values, or of runs) are judged by this many, taken in `_PIECES` equidistant pieces.
_SAMPLE, _PIECES = 1 << 13, 32
#: For sequences of up to so many values, more ways are tried: they cost little time, and their tables count.
_FEW = 1 << 12
#: Bits in the header for a symbol that occurs, and one that does not.
_SYMBOL_BITS, _ABSENT_BITS = 3, 1
#: What a Huffman code takes above the entropy, in units of 2**-16 bits for each symbol, if no symbol is frequent.
_EXCESS = 2000
#: The best so many ways are judged by the codes that they would have.
_EXACTLY = 2
#: A code made for a sample takes half a nat for each of its symbols less than it would for others like these.
_UNSEEN = 47274
#: Splits of the tokens of runs, and the cost of what cannot be coded.
_RUN_SPLITS, _NEVER = (1, 2, 3, 4), 1 << 62


def choose(values: Integers) -> tuple[Coded, I64]:
    """The cheapest way for a sequence, and its code lengths."""
    base = _frequent(_sample(values, _SAMPLE))
    if base:
        values = values - values.dtype.type(base)
    signed = bool(values.min() < 0)
    zeros = 100 * (len(values) - int(np.count_nonzero(values))) // len(values)
    few = len(values) <= _FEW
    sample = _sample(values, _SAMPLE << 2 if zeros >= 50 else _SAMPLE)
    judged: list[tuple[int, int, Coded, int, int]] = []

    def judge(coded: Coded | None, count: int, sampled: int) -> int:
        if coded is None:
            return _NEVER
        judged.append((_cost(coded, count, sampled), len(judged), coded, count, sampled))
        return judged[-1][0]

    naturals = natural(sample, signed)
    split: dict[int, modes.Split] = {}
    for way in _tuples(naturals, signed, few):
        if way.split not in split:
            split[way.split] = modes.split_naturals(naturals, way.split)
        judge(modes.code_tuples(split[way.split], way), len(values), len(sample))
    if zeros >= (10 if few else 40) and values.any():
        gaps, nonzeros = modes.runs(values)
        some, last = _sample(gaps, _SAMPLE), modes.ends(_sample(nonzeros, _SAMPLE), signed)
        longest = (int(last.max(initial=0)) + 1).bit_length()
        count, sampled = len(gaps), max(len(some), 1)
        of_runs = [modes.split_naturals(some, extent) for extent in _RUN_SPLITS]
        splits = range(1, min(max(longest, 1), 4) + 1)
        # The split of runs that is best beside one split of values is nearly always so beside the others.
        first = min(2, splits[-1])
        of_values = modes.split_naturals(last, first)
        costs = [
            judge(modes.code_runs(each, of_values, Way(RUNS, signed, first, extent)), count, sampled)
            for each, extent in zip(of_runs, _RUN_SPLITS, strict=True)
        ]
        best_of_runs = costs.index(min(costs))
        for value_split in splits:
            if value_split != first:
                way = Way(RUNS, signed, value_split, _RUN_SPLITS[best_of_runs])
                of_values = modes.split_naturals(last, value_split)
                judge(modes.code_runs(of_runs[best_of_runs], of_values, way), count, sampled)
    best = sorted((_exact_cost(*each[2:]), each[1], each[2].way) for each in sorted(judged)[:_EXACTLY])
    for way in [way for _, _, way in best] + [Way(TUPLES, signed, 3, 1)]:
        chosen = modes.MODES[way.mode].encode(values, way)
        if chosen is not None:  # the whole may have larger values than its sample
            break
    assert chosen is not None, "plain coding with few tokens always fits"
    chosen = replace(chosen, way=replace(chosen.way, base=base))
    return chosen, huffman.code_lengths(np.bincount(chosen.symbols, minlength=chosen.way.alphabet))


def _frequent(sample: Integers) -> int:
    """The value of more than half of the sequence, so that this may be the zeros of tuples and runs; else 0."""
    middle = int(np.partition(sample, len(sample) // 2)[len(sample) // 2])
    return middle if 2 * int(np.count_nonzero(sample == middle)) > len(sample) else 0


def _sample(values: Integers, size: int) -> Integers:
    if len(values) <= size:
        return values
    piece, pitch = size // _PIECES, len(values) // _PIECES
    return np.concatenate([values[i * pitch : i * pitch + piece] for i in range(_PIECES)])


def _cost(coded: Coded, count: int, sampled: int) -> int:
    """Bits (times 2**16) for `count` values or runs, of which `sampled` were coded."""
    counts = np.bincount(coded.symbols, minlength=coded.way.alphabet).astype(np.int64)
    total, most = len(coded.symbols), int(counts.max(initial=0))
    bits = int(fixed.entropy(counts)) + (int(coded.raw_lengths.sum()) << fixed.FRACTION) + _EXCESS * total
    if 2 * most > total > most:  # a code word has a bit, even where its symbol is worth less
        bits += (total << fixed.FRACTION) - int(fixed.entropy(np.array([most, total - most])))
    occurring = int(np.count_nonzero(counts))
    header = _SYMBOL_BITS * occurring + _ABSENT_BITS * (len(counts) - occurring)
    return bits * count // sampled + (header << fixed.FRACTION)


def _exact_cost(coded: Coded, count: int, sampled: int) -> int:
    """The same by the code itself."""
    counts = np.bincount(coded.symbols, minlength=coded.way.alphabet)
    lengths = huffman.code_lengths(counts)
    bits = (int((counts * np.maximum(lengths, 0)).sum()) + int(coded.raw_lengths.sum())) << fixed.FRACTION
    bits += _UNSEEN * int(np.count_nonzero(counts)) * (count - sampled) // max(count, 1)
    table = int(tables.DIFFERENCES[tables.differences(lengths, coded.way)[1]].sum())
    return bits * count // sampled + (table << fixed.FRACTION)


def _tuples(naturals: npt.NDArray[np.integer], signed: bool, few: bool) -> Iterator[Way]:
    """Ways of tuples worth a try, by the largest value and the share of the most frequent one in percent."""
    top = min(max(int(naturals.max()).bit_length(), 1), modes.LARGEST_SPLIT)
    most = int(np.bincount(np.minimum(naturals, 1 << modes.LARGEST_SPLIT).astype(np.int64)).max())
    share = 100 * most // len(naturals)
    if share < 50 or few:
        fewest = top - 4 if len(naturals) < _SAMPLE else top - 1
        yield from (Way(TUPLES, signed, split, 1) for split in range(max(1, fewest), top + 1))
    if share >= 15 and (share < 75 or few):
        yield from (Way(TUPLES, signed, split, 2) for split in range(1, min(top, 4) + 1))
    if share >= 35 and (share < 85 or few):
        yield from (Way(TUPLES, signed, split, 3) for split in range(1, min(top, 3) + 1))
    if share >= 50:
        yield Way(TUPLES, signed, min(top, 2), 4)
