"""The labels of lines, written as streams of symbols before everything else.

A set of labels is written as it is, or as changes from one line to the next (where neighbouring lines are alike): 0 for
a line of nothing, else 1 plus the folded change from the last line that was something. Sets with similar statistics
share a stream and its Huffman code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from . import classes, fixed, tokens
from .division import LARGEST_LABEL, Labels

I64 = npt.NDArray[np.int64]

#: Symbols that labels or their changes can be.
ALPHABET = 2 * LARGEST_LABEL + 2
#: Streams at most, and the bits that hold a set's stream.
MOST_STREAMS = 15


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
    return better, classes.cluster(chosen, np.arange(ALPHABET), MOST_STREAMS)
