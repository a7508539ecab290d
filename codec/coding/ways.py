"""How each sequence is coded: the way that codes a part of it in the fewest bits.

Bits are estimated in whole numbers from counts of symbols, so that every platform decides alike. The decoder needs none
of this: whatever is decided here stands in the blob.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from . import fixed, huffman, modes
from .modes import RUNS, TUPLES, Coded, Way, natural

I64 = npt.NDArray[np.int64]
Integers = npt.NDArray[np.signedinteger]

#: Longer sequences (of values, or of runs) are judged by this many, taken in `_PIECES` equidistant pieces.
_SAMPLE, _PIECES = 1 << 13, 8
#: Bits in the header for a symbol that occurs, and one that does not.
_SYMBOL_BITS, _ABSENT_BITS = 3, 1
#: What a Huffman code takes above the entropy, in units of 2**-16 bits for each symbol, if no symbol is frequent.
_EXCESS = 2000


def choose(values: Integers) -> tuple[Coded, I64]:
    """The cheapest way for a sequence, and its code lengths."""
    signed = bool(values.min() < 0)
    zeros = 100 * (len(values) - int(np.count_nonzero(values))) // len(values)
    sample = _sample(values)
    judged: list[tuple[int, int, Way]] = []
    for way in _tuples(sample, signed, zeros):
        coded = modes.MODES[way.mode].encode(sample, way)
        if coded is not None:
            judged.append((_cost(coded, len(values), len(sample)), len(judged), way))
    if zeros >= 50 and values.any():
        gaps, nonzeros = modes.runs(values)
        some, of_them = _sample(gaps), _sample(nonzeros)
        longest = int(natural(of_them, signed).max(initial=0)).bit_length()
        for split in range(1, min(max(longest, 1), 4) + 1):
            for extent in (1, 2, 3, 4):
                coded = modes.code_runs(some, of_them, Way(RUNS, signed, split, extent))
                if coded is not None:
                    judged.append((_cost(coded, len(gaps), max(len(some), 1)), len(judged), coded.way))
    for way in [way for _, _, way in sorted(judged)[:2]] + [Way(TUPLES, signed, 3, 1)]:
        chosen = modes.MODES[way.mode].encode(values, way)
        if chosen is not None:  # the whole may have larger values than its sample
            break
    assert chosen is not None, "plain coding with few tokens always fits"
    return chosen, huffman.code_lengths(np.bincount(chosen.symbols, minlength=chosen.way.alphabet))


def _sample(values: Integers) -> Integers:
    if len(values) <= _SAMPLE:
        return values
    piece, pitch = _SAMPLE // _PIECES, len(values) // _PIECES
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


def _tuples(sample: Integers, signed: bool, zeros: int) -> Iterator[Way]:
    """Ways of tuples worth a try, by the largest value and the share of zeros in percent."""
    top = min(max(int(natural(sample, signed).max()).bit_length(), 1), modes.LARGEST_SPLIT)
    if zeros < 50:
        yield from (Way(TUPLES, signed, split, 1) for split in range(max(1, top - 4), top + 1))
    if 15 <= zeros < 75:
        yield from (Way(TUPLES, signed, split, 2) for split in range(1, min(top, 4) + 1))
    if 35 <= zeros < 85:
        yield from (Way(TUPLES, signed, split, 3) for split in range(1, min(top, 2) + 1))
    if 50 <= zeros < 90:
        yield Way(TUPLES, signed, min(top, 2), 4)
