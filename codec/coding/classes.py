"""Which histograms share a code: clusters of least coded size.

A unit is a histogram, of a context of an array, or of a set of labels. Units that share a code cost the entropy of
their sum, and each code costs its place in the header. Units are sorted by how large their values are and cut into
segments of least cost (dynamic programming over all cuts); then each unit moves to the code that is cheapest for it,
and codes merge while that pays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import fixed

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

#: What a code costs in bits: its description, and each of its symbols; for codes of runs there are more symbols.
_CODE_BITS, _SYMBOL_BITS, _RUN_SYMBOL_BITS = 36, 3, 12
#: Units are first collected to at most this many; for codes that are made anew later, to fewer, and moved once.
_MOST_SEGMENTS, _PROVISIONAL_SEGMENTS = 64, 32
#: A symbol that did not occur counts as this part of one that did, so that no unit is shut out of a code.
_UNSEEN = 32
_ROUNDS = 2


def code_costs(histograms: I64) -> I64:
    """Bits (times 2**16) of histograms along the last axis, each with a code of its own."""
    symbols = np.count_nonzero(histograms, axis=-1)
    sparse = 2 * histograms.max(axis=-1, initial=0) > histograms.sum(axis=-1)
    header = _CODE_BITS + symbols * np.where(sparse, _RUN_SYMBOL_BITS, _SYMBOL_BITS)
    result: I64 = fixed.entropy(histograms) + (header << fixed.FRACTION)
    return result


def word_costs(histograms: I64) -> F64:
    """Bits (times 2**16, whole numbers) that each symbol costs in the code of each histogram."""
    counts = histograms * _UNSEEN + 1
    result: F64 = (fixed.log2(counts.sum(axis=-1))[..., np.newaxis] - fixed.log2(counts)).astype(np.float64)
    return result


def cluster(units: I64, keys: I64, most: int, *, provisional: bool = False) -> I64:
    """The code of each unit (a row of counts), numbered from 0 without gaps, at most `most` of them.

    `keys` sort the units: codes are shared by neighbours first. `provisional` codes are found faster.
    """
    order = np.argsort(keys, kind="stable")
    codes = _segments(units, order, _PROVISIONAL_SEGMENTS if provisional else _MOST_SEGMENTS)
    total = int(codes.max(initial=-1)) + 1
    for _ in range(1 if provisional else _ROUNDS):
        # Exact: the sums of products are whole numbers below 2**53.
        costs = fixed.product(units, word_costs(_sums(units, codes, total)).T.copy())
        codes = _numbered(costs.argmin(axis=1))
        codes = _merge(units, codes, most)
        total = int(codes.max(initial=-1)) + 1
    return codes


def _sums(units: I64, codes: I64, total: int) -> I64:
    sums = np.zeros((total, units.shape[1]), np.int64)
    np.add.at(sums, codes, units)
    return sums


def _numbered(codes: I64) -> I64:
    result: I64 = np.unique(codes, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return result


def _segments(units: I64, order: I64, most: int) -> I64:
    """The cheapest cut of the sorted units into segments; units are at most so many, or neighbours are joined."""
    piece = np.arange(len(units)) * most // max(len(units), most)
    pieces = _sums(units[order], piece, int(piece.max(initial=-1)) + 1)
    total = len(pieces)
    before = np.concatenate([np.zeros((1, units.shape[1]), np.int64), np.cumsum(pieces, axis=0)])
    best, cut = [0] * (total + 1), [0] * (total + 1)
    for end in range(1, total + 1):
        costs = code_costs(before[end] - before[:end]) + np.array(best[:end], np.int64)
        cut[end] = int(costs.argmin())
        best[end] = int(costs[cut[end]])
    segment = np.zeros(total, np.int64)
    end, number = total, 0
    while end:
        segment[cut[end] : end] = number
        end, number = cut[end], number + 1
    codes = np.zeros(len(units), np.int64)
    codes[order] = (number - 1 - segment)[piece]
    return codes


def _merge(units: I64, codes: I64, most: int) -> I64:
    """Merge the two codes whose merger saves most, again and again, while it saves or codes are too many."""
    total = int(codes.max(initial=-1)) + 1
    sums = _sums(units, codes, total)
    costs = code_costs(sums)
    never = np.int64(2**62)
    gains = np.full((total, total), never)
    for i in range(total - 1):
        gains[i, i + 1 :] = code_costs(sums[i] + sums[i + 1 :]) - costs[i] - costs[i + 1 :]
    while total > 1:
        i, j = divmod(int(gains.argmin()), len(gains))
        if gains[i, j] > 0 and total <= most:
            break
        sums[i] += sums[j]
        costs[i] = code_costs(sums[i])
        codes = np.where(codes == j, i, codes)
        gains[j, :] = gains[:, j] = never
        alive = np.unique(codes)
        others = alive[alive != i]
        found = code_costs(sums[i] + sums[others]) - costs[i] - costs[others]
        gains[np.minimum(i, others), np.maximum(i, others)] = found
        total -= 1
    return _numbered(codes)
