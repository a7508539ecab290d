"""Streams of Huffman codes, cut into lanes that are decoded in lockstep.

A stream is a run of symbols under one code. It is cut into lanes of 2,048 symbols; the header gives each lane's
length in bits, so all lanes of all streams can start at once: one numpy loop of at most 2,048 steps decodes one
symbol of each lane per step. Each lane must end exactly where the next begins, else the blob is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from . import huffman
from .bits import BitReader, BitWriter, pack, windows

#: Symbols of a lane (the last lane of a stream may have fewer).
LANE = 2048
#: Order of the Exp-Golomb numbers that hold lane lengths, less one bit for each symbol.
_ORDER = 10

#: From this many lanes on, one numpy step for all beats one Python step for each.
_MANY = 24
_BAD_END = "a lane of codes does not end where the next begins: the blob is damaged"

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
_Decoder = Callable[[U32, Sequence[U32], Sequence[int], Sequence[int], Sequence[int]], Iterator[npt.NDArray[Any]]]


def encode(head: BitWriter, streams: Sequence[tuple[I64, I64]]) -> bytes:
    """Append lane lengths to `head` and return the codes of all streams; a stream is (symbols, code lengths)."""
    words: list[npt.NDArray[np.uint64]] = []
    sizes: list[I64] = []
    for symbols, lengths in streams:
        if not len(symbols) or lengths[symbols[0]] == 0:
            continue
        words.append(huffman.canonical_codes(lengths)[symbols])
        sizes.append(lengths[symbols])
        for start in range(0, len(symbols), LANE):
            lane = sizes[-1][start : start + LANE]
            head.number(int(lane.sum()) - len(lane), _ORDER)
    if not sizes:
        return b""
    size = np.concatenate(sizes)
    return pack(np.concatenate(words), size, int(size.sum()))


def read_sizes(head: BitReader, streams: Sequence[tuple[int, I64]]) -> tuple[list[int], list[int]]:
    """The (symbols, bits) of every lane; a stream is (number of symbols, code lengths)."""
    counts: list[int] = []
    sizes: list[int] = []
    for count, lengths in streams:
        if not count or lengths.max() == 0:
            continue
        for start in range(0, count, LANE):
            symbols = min(LANE, count - start)
            counts.append(symbols)
            sizes.append(symbols + head.number(_ORDER, largest=symbols * huffman.LONGEST))
    return counts, sizes


def decode(data: bytes, streams: Sequence[tuple[int, I64]], counts: list[int], sizes: list[int]) -> list[I64]:
    """The symbols of each stream from the codes at the start of `data`; lanes as `read_sizes` gave them."""
    if sum(sizes) > 8 * len(data):
        raise CodecError("the blob ends inside its codes: it was cut off; fetch it again")
    out = [np.zeros(count, np.int64) for count, _ in streams]
    tables: list[U32] = []
    table_of: list[int] = []
    for index, (count, lengths) in enumerate(streams):
        if count and lengths.max() == 0:
            out[index][:] = int(np.argmax(lengths))
        elif count:
            table_of += [len(tables)] * -(-count // LANE)
            tables.append(huffman.decode_table(lengths))
    if not tables:
        return out
    total = sum(sizes)
    codes = data[: -(-total // 8)]
    if codes and codes[-1] & ((1 << (-total % 8)) - 1):
        raise CodecError("padding bits after the codes are not zero: the blob is damaged")
    # A damaged lane may run on, but never further than its symbols at 12 bits each: the margin makes that harmless.
    window = windows(codes, LANE * huffman.LONGEST // 8 + 4)
    way: _Decoder = _lockstep if len(counts) >= _MANY else _one_by_one
    decoded = way(window, tables, table_of, counts, sizes)
    for index, (count, lengths) in enumerate(streams):
        if count and lengths.max() > 0:
            for start in range(0, count, LANE):
                out[index][start : start + LANE] = next(decoded)[: count - start]
    return out


def _one_by_one(
    window: U32, tables: Sequence[U32], table_of: Sequence[int], counts: Sequence[int], sizes: Sequence[int]
) -> Iterator[I64]:
    """Decode symbol after symbol: for few lanes, numpy's price for each step would be the higher one."""
    words: list[int] = window.tolist()
    entries: list[list[int]] = [table.tolist() for table in tables]
    position = 0
    for table, count, size in zip(table_of, counts, sizes, strict=True):
        chosen, symbols, end = entries[table], [], position + size
        for _ in range(count):
            entry = chosen[words[position >> 3] >> (12 - (position & 7)) & 4095]
            symbols.append(entry >> 4)
            position += entry & 15
        if position != end:
            raise CodecError(_BAD_END)
        yield np.array(symbols, np.int64)


def _lockstep(
    window: U32, tables: Sequence[U32], table_of: Sequence[int], counts: Sequence[int], sizes: Sequence[int]
) -> Iterator[npt.NDArray[np.uint16]]:
    """Decode all lanes at once; for each lane 2,048 symbols (zeros after its last)."""
    table = np.concatenate(tables)
    ends: I64 = np.cumsum(np.array(sizes, np.int64))
    order = np.argsort(-np.array(counts), kind="stable")
    position: I64 = (ends - sizes)[order]
    base = (np.array(table_of) << huffman.LONGEST)[order]
    # Lanes are sorted by length, so the active ones of a step are always the first few.
    active = np.searchsorted(-np.array(counts)[order], -np.arange(1, max(counts) + 1), side="right").tolist()
    symbols = np.zeros((LANE, len(counts)), np.uint16)
    for step, lanes in enumerate(active):
        here = position[:lanes]
        entry = table[base[:lanes] + ((window[here >> 3] >> (12 - (here & 7)).astype(np.uint32)) & 4095)]
        symbols[step, :lanes] = entry >> 4
        here += entry & 15
    if not np.array_equal(position, ends[order]):
        raise CodecError(_BAD_END)
    for lane in np.argsort(order, kind="stable").tolist():
        yield symbols[:, lane]
