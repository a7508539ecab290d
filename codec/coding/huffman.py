"""Canonical Huffman codes of at most 12 bits.

Lengths come from the package-merge algorithm (Larmore and Hirschberg, "A fast algorithm for optimal length-limited
Huffman codes", 1990), on integers only, ties broken by symbol, so every platform finds the same code. Codes are
canonical (Schwartz and Kallick, 1964): shorter first, then by symbol, hence lengths are all that is written. A code
is written as (symbols skipped, change of length) pairs until the Kraft sum is one: a code that is complete needs no
count, and one that can never be complete is refused. A lone symbol has a code of no bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from .bits import BitReader, BitWriter, zigzag

#: Bits of the longest code: one look into a table of 4,096 entries decodes any symbol.
LONGEST = 12
#: The largest alphabet: a complete code of 12 bits has no room for more.
LARGEST_ALPHABET = 1 << LONGEST
#: Prediction of the first length of a code; later lengths are predicted by the one before.
_FIRST_LENGTH = 3

#: More than all counts together.
_NEVER = 1 << 62

I64 = npt.NDArray[np.int64]


def code_lengths(counts: I64) -> I64:
    """Optimal code lengths (0 to 12) for symbols that occur `counts` times; absent symbols get -1."""
    lengths = np.full(len(counts), -1, np.int64)
    symbols = np.flatnonzero(counts)
    if len(symbols) <= 1:
        lengths[symbols] = 0
        return lengths
    order = symbols[np.argsort(counts[symbols], kind="stable")]
    found = _unlimited(counts[order].tolist())
    lengths[order] = found if max(found) <= LONGEST else _package_merge(counts[order])
    return lengths


def _unlimited(counts: list[int]) -> list[int]:
    """Huffman's lengths for ascending counts: leaves and inner nodes form two queues (van Leeuwen, 1976)."""
    size = len(counts)
    leaves, inner = [*counts, _NEVER, _NEVER], [_NEVER] * size
    above_leaf, above_inner = [0] * size, [0] * size
    leaf = node = 0
    for parent in range(size - 1):
        total = 0
        for _ in range(2):
            if leaves[leaf] <= inner[node]:
                total += leaves[leaf]
                above_leaf[leaf] = parent
                leaf += 1
            else:
                total += inner[node]
                above_inner[node] = parent
                node += 1
        inner[parent] = total
    depth = [1] * (size - 1)
    for node in range(size - 3, -1, -1):
        depth[node] = depth[above_inner[node]] + 1
    return [depth[parent] for parent in above_leaf]


def _package_merge(counts: I64) -> I64:
    """Lengths limited to 12 for ascending counts.

    What is taken from a level is its first items, and leaves among them are the rarest symbols: of each level, which
    items are packages is all that is kept.
    """
    size = len(counts)
    items, levels = counts, [np.zeros(size, np.bool_)]
    for _ in range(LONGEST - 1):
        both = np.concatenate([counts, items[: len(items) & ~1].reshape(-1, 2).sum(axis=1)])
        order = np.argsort(both, kind="stable")
        items = both[order]
        levels.append(order >= size)
    lengths = np.zeros(size, np.int64)
    take = 2 * size - 2
    for packages in reversed(levels):
        taken = int(np.count_nonzero(packages[:take]))
        lengths[: take - taken] += 1
        take = 2 * taken
    return lengths


def canonical_codes(lengths: I64) -> npt.NDArray[np.uint64]:
    """The code word of each symbol (0 for absent ones): shorter codes first, then by symbol."""
    present, room = _canonical(lengths)
    codes = np.zeros(len(lengths), np.int64)
    # What all words before one take of the table is that word, followed by zeros.
    codes[present] = (np.cumsum(room) - room) >> (LONGEST - lengths[present])
    return codes.view(np.uint64)


def decode_table(lengths: I64) -> npt.NDArray[np.uint16]:
    """Entries `symbol << 4 | length`, indexed by as many next bits as the longest code has. The code is complete."""
    present, room = _canonical(lengths)
    entries = (present << 4 | lengths[present]).astype(np.uint16)
    return np.repeat(entries, room >> (LONGEST - int(lengths.max())))


def _canonical(lengths: I64) -> tuple[I64, I64]:
    """Symbols in the order of their code words, and how many of all 4,096 words of 12 bits begin with each."""
    present = np.flatnonzero(lengths >= 0)
    present = present[np.argsort(lengths[present].astype(np.uint8), kind="stable")]
    return present, np.int64(1) << (LONGEST - lengths[present])


def write_lengths(head: BitWriter, lengths: I64) -> None:
    """Write a complete code."""
    next_symbol, previous = 0, _FIRST_LENGTH
    for symbol in np.flatnonzero(lengths >= 0).tolist():
        length = int(lengths[symbol])
        head.number(symbol - next_symbol)
        head.signed(length - previous)
        next_symbol, previous = symbol + 1, length


def written_size(lengths: I64) -> int:
    """Bits that `write_lengths` takes."""
    symbols = np.flatnonzero(lengths >= 0)
    skipped = np.diff(symbols, prepend=-1) - 1
    changes = np.diff(lengths[symbols], prepend=_FIRST_LENGTH)
    return sum(2 * (number + 1).bit_length() - 1 for number in [*skipped.tolist(), *map(zigzag, changes.tolist())])


def read_lengths(head: BitReader, alphabet: int) -> I64:
    """Read a code over `alphabet` symbols; `CodecError` unless it is complete (Kraft sum exactly one)."""
    lengths = np.full(alphabet, -1, np.int64)
    symbol, length, kraft = -1, _FIRST_LENGTH, 0
    while kraft < 1 << LONGEST:
        symbol += 1 + head.number()
        length += head.signed()
        if symbol >= alphabet or not 0 <= length <= LONGEST:
            raise CodecError(f"Huffman code with symbol {symbol} of {alphabet}, {length} bits: the blob is damaged")
        lengths[symbol] = length
        kraft += 1 << (LONGEST - length)
    if kraft > 1 << LONGEST:
        raise CodecError("Huffman code with more words than fit (Kraft): the blob is damaged")
    return lengths
