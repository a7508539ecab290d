"""The labels of lines, written as streams of symbols before everything else.

A set of labels is written as it is, or as changes from one line to the next (where neighbouring lines are alike): 0 for
a line of nothing, else 1 plus the folded change from the last line that was something. Sets with similar statistics
share a stream and its Huffman code. Where one symbol is frequent, up to four in a row are joined to one, since a code
word has a bit at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from . import classes, fixed, huffman, tokens
from .bits import BitReader, BitWriter
from .division import LARGEST_LABEL, Labels

I64 = npt.NDArray[np.int64]

#: Symbols that labels or their changes can be.
ALPHABET = 2 * LARGEST_LABEL + 2
#: Streams at most, and the bits that hold a set's stream.
MOST_STREAMS = 15
#: Symbols that are joined to one at most, less one, have so many bits; the number of symbols is of this order.
_EXTENT_BITS, _RADIX_ORDER = 2, 3


def symbols(labels: Labels, changes: bool) -> I64:
    """A set of labels as symbols."""
    numbers = labels.astype(np.int64)
    if not changes:
        return numbers
    live = np.flatnonzero(numbers)
    result = np.zeros(len(numbers), np.int64)
    result[live] = tokens.zigzag(np.diff(numbers[live], prepend=1)).view(np.int64) + 1
    return result


def labels(found: I64, changes: bool) -> Labels:
    """The inverse of `symbols`."""
    if changes:
        live = np.flatnonzero(found)
        numbers = np.zeros(len(found), np.int64)
        folded = (found[live] - 1).view(np.uint64)
        numbers[live] = np.cumsum(tokens.unzigzag(folded)) + 1
        if len(live) and numbers[live].min() < 1:
            raise CodecError("a line has a label below 1: the blob is damaged")
        found = numbers
    if found.max(initial=0) > LARGEST_LABEL:
        raise CodecError(f"a line has label {found.max()}, and {LARGEST_LABEL} is the largest: the blob is damaged")
    return found.astype(np.uint8)


def join(head: BitWriter, found: I64) -> tuple[I64, I64]:
    """The symbols of a stream joined in the cheapest way: (joined symbols, code lengths). Writes the way to `head`."""
    radix = int(found.max(initial=0)) + 1
    best: tuple[int, int, I64, I64] | None = None
    for extent in range(1, (1 << _EXTENT_BITS) + 1):
        if radix**extent > huffman.LARGEST_ALPHABET:
            break
        padded = np.zeros(-(-len(found) // extent) * extent, np.int64)
        padded[: len(found)] = found
        joined = padded.reshape(-1, extent) @ (radix ** np.arange(extent, dtype=np.int64))
        counts = np.bincount(joined, minlength=radix**extent)
        lengths = huffman.code_lengths(counts)
        cost = int((counts * np.maximum(lengths, 0)).sum()) + huffman.written_size(lengths)
        if best is None or cost < best[0]:
            best = cost, extent, joined, lengths
    assert best is not None, "symbols by themselves always fit"
    _, extent, joined, lengths = best
    head.bits(extent - 1, _EXTENT_BITS)
    head.number(radix - 1, _RADIX_ORDER)
    huffman.write_lengths(head, lengths)
    return joined, lengths


@dataclass(frozen=True)
class Joined:
    """How a stream of `count` symbols is joined, and the code of what they are joined to."""

    count: int
    extent: int
    radix: int
    lengths: I64

    @property
    def coded(self) -> tuple[int, I64]:
        """(number of joined symbols, code lengths)."""
        return -(-self.count // self.extent), self.lengths

    def split(self, joined: I64) -> I64:
        """The symbols that were joined."""
        parts = joined[:, np.newaxis] // self.radix ** np.arange(self.extent, dtype=np.int64) % self.radix
        found: I64 = parts.reshape(-1)
        if found[self.count :].any():
            raise CodecError("the last symbol of labels goes beyond their end: the blob is damaged")
        return found[: self.count]


def read_joined(head: BitReader, count: int) -> Joined:
    """What `join` wrote, for a stream of `count` symbols."""
    extent = head.bits(_EXTENT_BITS) + 1
    radix = head.number(_RADIX_ORDER, largest=ALPHABET - 1) + 1
    if radix**extent > huffman.LARGEST_ALPHABET:
        raise CodecError(f"labels joined to {radix**extent} symbols, {huffman.LARGEST_ALPHABET} are most: damaged")
    return Joined(count, extent, radix, huffman.read_lengths(head, radix**extent))


def assign(sets: Sequence[Labels]) -> tuple[list[bool], I64]:
    """For each set, whether to write changes, and its stream."""
    if not sets:
        return [], np.zeros(0, np.int64)
    histograms = np.zeros((2, len(sets), ALPHABET), np.int64)
    for changes in (False, True):
        for number, each in enumerate(sets):
            histograms[int(changes), number] = np.bincount(symbols(each, changes), minlength=ALPHABET)
    plain, changed = fixed.entropy(histograms)
    better: list[bool] = (changed < plain).tolist()
    chosen = histograms[np.array(better, np.int64), np.arange(len(sets))]
    keys = ((chosen @ np.arange(ALPHABET)) << 16) // np.maximum(chosen.sum(axis=1), 1)
    return better, classes.cluster(chosen, keys, MOST_STREAMS)
