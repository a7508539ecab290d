"""All lanes at once: numpy loops that code one symbol of every lane per step.

Streams become blocks of lanes, the ones with more steps first, so the lanes that are still active in a step are
always the first few. Symbol number i of a block is in lane i mod its lanes, so a row of the matrix (steps, lanes) is a
piece of the stream as it stands and nothing is ever transposed.

What a step costs is numpy's price for each call, so calls are few and write into arrays made before: a lane keeps 64
bits of its codes and an offset into them; these are fetched anew only when the next code might not lie in them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import huffman

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]

#: A window is 64 bits from every 16th bit on: so many of them are ahead of any bit.
_AHEAD = 49
#: Symbol by symbol, so many cost about as much as one step for all lanes.
_STEP_SYMBOLS = 16


@dataclass(frozen=True)
class Block:
    """The lanes of one stream of `count` symbols: columns from `first` on, `steps` rows (the last may be short).

    The first half of the lanes run forward, the others backward: lane `first + i` and lane `first + pairs + i` share
    a segment.
    """

    count: int
    pairs: int
    steps: int
    first: int

    @property
    def lanes(self) -> slice:
        return slice(self.first, self.first + 2 * self.pairs)

    @property
    def forward(self) -> slice:
        return slice(self.first, self.first + self.pairs)

    @property
    def backward(self) -> slice:
        return slice(self.first + self.pairs, self.first + 2 * self.pairs)

    @property
    def idle(self) -> slice:
        """Lanes that have no symbol in the last row."""
        return slice(self.first + self.count - 2 * self.pairs * (self.steps - 1), self.first + 2 * self.pairs)


def arrange(counts: Sequence[int], longest: int) -> list[Block]:
    """Blocks for streams of `counts` symbols (at least 1), with lanes of at most `longest` symbols."""
    pairs = [-(-count // (2 * longest)) for count in counts]
    steps = [-(-count // (2 * pair)) for count, pair in zip(counts, pairs, strict=True)]
    first = [0] * len(counts)
    lanes = 0
    for index in sorted(range(len(counts)), key=lambda i: -steps[i]):
        first[index] = lanes
        lanes += 2 * pairs[index]
    return [Block(*shape) for shape in zip(counts, pairs, steps, first, strict=True)]


def _active(blocks: Sequence[Block]) -> Iterator[tuple[int, int, list[Block]]]:
    """(last step + 1, number of lanes active until then, blocks that end there), ascending."""
    ascending = sorted(blocks, key=lambda block: block.steps)
    lanes = sum(2 * block.pairs for block in blocks)
    for end, group in itertools.groupby(ascending, key=lambda block: block.steps):
        ending = list(group)
        yield end, lanes, ending
        lanes -= sum(2 * block.pairs for block in ending)


def encode(blocks: Sequence[Block], streams: Sequence[tuple[npt.NDArray[np.integer[Any]], I64]]) -> tuple[U64, I64]:
    """The codes of each lane, several joined to chunks of at most 64 bits: (chunks, their lengths), by row and lane.

    A stream is (symbols, code lengths).
    """
    total = sum(2 * block.pairs for block in blocks)
    steps = max(block.steps for block in blocks)
    few = sum(block.count for block in blocks) < _STEP_SYMBOLS * steps
    joined = 1 if few else 64 // max(int(lengths.max()) for _, lengths in streams)
    rows = -(-steps // joined)
    # Beyond its end a lane has a symbol whose code has no bits: the last of each table.
    symbols: U16 = np.zeros((rows * joined, total), np.uint16)
    code_tables: list[U64] = []
    length_tables: list[U64] = []
    base = np.zeros(total, np.int64)
    size = 0
    for block, (stream, lengths) in zip(blocks, streams, strict=True):
        lanes = 2 * block.pairs
        whole = block.count // lanes * lanes
        symbols[: block.count // lanes, block.lanes] = stream[:whole].reshape(-1, lanes)
        if whole < block.count:
            symbols[block.count // lanes, block.first : block.first + block.count - whole] = stream[whole:]
        symbols[block.steps - 1, block.idle] = len(lengths)
        symbols[block.steps :, block.lanes] = len(lengths)
        base[block.lanes] = size
        size += len(lengths) + 1
        code_tables += [huffman.canonical_codes(lengths), np.zeros(1, np.uint64)]
        length_tables += [np.maximum(lengths, 0).astype(np.uint64), np.zeros(1, np.uint64)]
    take_code, take_length = np.concatenate(code_tables).take, np.concatenate(length_tables).take
    if few:  # numpy's price for each step would be the higher one
        places = symbols + base
        return take_code(places), take_length(places).view(np.int64)
    chunks, chunk_lengths = np.zeros((rows, total), np.uint64), np.zeros((rows, total), np.uint64)
    at, code, length = np.empty(total, np.int64), np.empty(total, np.uint64), np.empty(total, np.uint64)
    done = 0
    for end, lanes, _ in _active(blocks):
        a, c, n, b = at[:lanes], code[:lanes], length[:lanes], base[:lanes]
        for row in range(done, -(-end // joined)):
            chunk, chunk_length = chunks[row, :lanes], chunk_lengths[row, :lanes]
            for symbol in symbols[row * joined : (row + 1) * joined, :lanes]:
                np.add(symbol, b, out=a)
                take_code(a, out=c, mode="clip")
                take_length(a, out=n, mode="clip")
                np.left_shift(chunk, n, out=chunk)
                np.bitwise_or(chunk, c, out=chunk)
                np.add(chunk_length, n, out=chunk_length)
        done = -(-end // joined)
    return chunks, chunk_lengths.view(np.int64)


def windows(data: bytes) -> U64:
    """The 64 bits that start at every second byte of `data` (whole words of 8 bytes, read as if zeros followed)."""
    padded = data + bytes(8)
    result = np.empty((len(data) // 8, 4), np.uint64)
    for phase in range(4):
        result[:, phase] = np.frombuffer(padded, ">u8", len(data) // 8, 2 * phase)
    return result.reshape(-1)


def decode(window: U64, blocks: Sequence[Block], codes: Sequence[I64], starts: I64) -> tuple[list[I64], I64]:
    """The symbols of each block, and how many bits each lane has used of what starts at bit `starts`.

    `codes` are the code lengths of each block. Lanes may run beyond the window: what they read there is arbitrary.
    """
    steps = max(block.steps for block in blocks)
    if sum(block.count for block in blocks) < _STEP_SYMBOLS * steps:
        return _one_by_one(window, blocks, codes, starts)
    return _lockstep(window, blocks, codes, starts)


def _one_by_one(window: U64, blocks: Sequence[Block], codes: Sequence[I64], starts: I64) -> tuple[list[I64], I64]:
    """Decode symbol after symbol: for few lanes, numpy's price for each step would be the higher one."""
    words: list[int] = (window >> np.uint64(36)).tolist()
    words += [0] * (max(block.steps for block in blocks) * huffman.LONGEST // 16 + 1)
    used = np.zeros(len(starts), np.int64)
    result: list[I64] = []
    for block, lengths in zip(blocks, codes, strict=True):
        longest = int(lengths.max())
        table = huffman.decode_table(lengths)
        # A list is quick to read, but not to make: few symbols are looked up in memory.
        entries: Sequence[int] = table.tolist() if block.count > len(table) else table.data
        down, mask = 28 - longest, (1 << longest) - 1
        symbols = np.empty(block.count, np.int64)
        for lane in range(2 * block.pairs):
            start = position = int(starts[block.first + lane])
            found = []
            for _ in range(len(range(lane, block.count, 2 * block.pairs))):
                entry = entries[words[position >> 4] >> (down - (position & 15)) & mask]
                found.append(entry)
                position += entry & 15
            symbols[lane :: 2 * block.pairs] = found
            used[block.first + lane] = position - start
        symbols >>= 4
        result.append(symbols)
    return result, used


def _lockstep(window: U64, blocks: Sequence[Block], codes: Sequence[I64], starts: I64) -> tuple[list[I64], I64]:
    """Decode one symbol of all lanes in each step."""
    total = len(starts)
    base, down = np.zeros(total, np.uint64), np.zeros(total, np.uint64)
    tables: list[U16] = []
    size = 0
    for block, lengths in zip(blocks, codes, strict=True):
        tables.append(huffman.decode_table(lengths))
        base[block.lanes], down[block.lanes] = size, 64 - int(lengths.max())
        size += len(tables[-1])
    several = len(blocks) > 1
    in_window = _AHEAD // max(int(lengths.max()) for lengths in codes)
    take_window, take_entry = window.take, np.concatenate(tables).take
    entries: U16 = np.zeros((max(block.steps for block in blocks), total), np.uint16)
    # A lane is at bit `offset` of window number `index`. Arrays that numpy indexes with are views of the same bits.
    index, offset = starts >> 4, (starts & 15).astype(np.uint64)
    word, place, length = np.zeros(total, np.uint64), np.zeros(total, np.uint64), np.zeros(total, np.uint16)
    four, low, low_length = np.full(total, 4, np.uint64), np.full(total, 15, np.uint64), np.full(total, 15, np.uint16)
    row = 0
    for end, lanes, ending in _active(blocks):
        i, o, w, p, n = index[:lanes], offset[:lanes], word[:lanes], place[:lanes], length[:lanes]
        b, d, four_, low_, low_n = base[:lanes], down[:lanes], four[:lanes], low[:lanes], low_length[:lanes]
        at = p.view(np.int64)
        while row < end:
            np.right_shift(o, four_, out=p)
            np.add(i, at, out=i)
            np.bitwise_and(o, low_, out=o)
            take_window(i, out=w, mode="clip")
            stop = min(row + in_window, end)
            for entry in entries[row:stop, :lanes]:
                np.left_shift(w, o, out=p)
                np.right_shift(p, d, out=p)
                if several:
                    np.add(p, b, out=p)
                take_entry(at, out=entry, mode="clip")
                np.bitwise_and(entry, low_n, out=n)
                np.add(o, n, out=o)
            row = stop
        for block in ending:
            offset[block.idle] -= length[block.idle]
    used = (index << 4) + offset.astype(np.int64) - starts
    np.right_shift(entries, 4, out=entries)
    return [entries[: block.steps, block.lanes].astype(np.int64).reshape(-1)[: block.count] for block in blocks], used
