"""Streams of Huffman codes, cut into lanes that are decoded in lockstep.

A stream is a run of symbols under one code. Its symbols are dealt to an even number of lanes in turn, so lanes are
alike and none is much longer than another, and one numpy step decodes one symbol of each lane of all streams. Two
lanes share a **segment** of bits: one runs forward from its first bit, the other backward from its last, and they
meet. So half as many sizes are written as there are lanes, and a stream of one segment has two lanes for nothing.

What a segment is expected to take is known from the code (a code word of n bits stands for a share of 2**-n), so
only the difference is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from . import huffman, lockstep
from .bits import BitReader, BitWriter, place, reverse, unzigzag, zigzag
from .lockstep import Block

I64 = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.integer[Any]]

#: Symbols of a lane at most are 2**(number in the header) times this; the number has `_STEPS_BITS` bits.
_FEWEST_STEPS, _STEPS_BITS = 256, 2
#: With this many symbols in all, lanes of 2,048 are enough to keep numpy busy, below it lanes of 1,024.
_MANY_SYMBOLS = 1 << 19
#: Bits that hold the order of the numbers for the sizes of a stream's segments.
_ORDER_BITS = 4

_BAD_END = "the lanes of a segment do not meet where they should: the blob is damaged"


@dataclass(frozen=True)
class Layout:
    """Where everything is: the lanes of all streams that have bits, and how long their segments are."""

    #: (number of symbols, code lengths) of each stream.
    streams: Sequence[tuple[int, I64]]
    #: The lanes of the streams that have bits, in the order of these, and their streams.
    blocks: list[Block] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    #: Bits of each segment, by block.
    sizes: list[I64] = field(default_factory=list)

    @property
    def bits(self) -> int:
        """Bits of all segments."""
        return sum(int(size.sum()) for size in self.sizes)


def encode(head: BitWriter, streams: Sequence[tuple[Symbols, I64]]) -> bytes:
    """Append the sizes of segments to `head` and return the codes of all streams; a stream is (symbols, code
    lengths).
    """
    owners = [i for i, (symbols, lengths) in enumerate(streams) if len(symbols) and lengths[symbols[0]]]
    if not owners:
        return b""
    counts = [len(streams[owner][0]) for owner in owners]
    exponent = 3 if sum(counts) >= _MANY_SYMBOLS else 2
    head.bits(exponent, _STEPS_BITS)
    blocks = lockstep.arrange(counts, _FEWEST_STEPS << exponent)
    chunks, chunk_lengths = lockstep.encode(blocks, [streams[owner] for owner in owners])
    in_lane = chunk_lengths.sum(axis=0)
    sizes: list[I64] = []
    for block, owner in zip(blocks, owners, strict=True):
        sizes.append(in_lane[block.forward] + in_lane[block.backward])
        _write_sizes(head, sizes[-1], expected(block.count, streams[owner][1]))
    total = sum(int(size.sum()) for size in sizes)
    length = -(-total // 64) * 64
    # Backward lanes are placed in a second copy that is read from its other end, so all positions ascend.
    lanes = np.concatenate(
        [np.arange(b.first, b.first + b.pairs) for b in blocks]
        + [np.arange(b.first + 2 * b.pairs, b.first + b.pairs, -1) - 1 for b in reversed(blocks)]
    )
    starts = _starts(blocks, sizes, length)[lanes, np.newaxis]
    chunk_lengths = np.ascontiguousarray(chunk_lengths.T)[lanes]
    positions = np.cumsum(chunk_lengths, axis=1) - chunk_lengths + starts
    values = np.ascontiguousarray(chunks.T)[lanes]
    placed = place(values.reshape(-1), chunk_lengths.reshape(-1), positions.reshape(-1), 2 * length)
    forward, backward = placed[: length // 8], reverse(placed[length // 8 :])
    both = np.frombuffer(forward, np.uint8) | np.frombuffer(backward, np.uint8)
    return both[: -(-total // 8)].tobytes()


def read_layout(head: BitReader, streams: Sequence[tuple[int, I64]]) -> Layout:
    """The layout of streams of (number of symbols, code lengths), with the sizes that are next in `head`."""
    owners = [i for i, (count, lengths) in enumerate(streams) if count and lengths.max() > 0]
    if not owners:
        return Layout(streams)
    steps = _FEWEST_STEPS << head.bits(_STEPS_BITS)
    blocks = lockstep.arrange([streams[owner][0] for owner in owners], steps)
    sizes = [
        _read_sizes(head, block, expected(block.count, streams[owner][1]))
        for block, owner in zip(blocks, owners, strict=True)
    ]
    return Layout(streams, blocks, owners, sizes)


def decode(data: bytes, layout: Layout) -> list[I64]:
    """The symbols of each stream from the codes at the start of `data`."""
    total = layout.bits
    if total > 8 * len(data):
        raise CodecError("the blob ends inside its codes: it was cut off; fetch it again")
    out = [
        np.full(count, np.argmax(lengths) if count else 0, np.int64) if not count or lengths.max() == 0 else None
        for count, lengths in layout.streams
    ]
    if layout.blocks:
        codes = data[: -(-total // 8)]
        if codes and codes[-1] & ((1 << (-total % 8)) - 1):
            raise CodecError("padding bits after the codes are not zero: the blob is damaged")
        codes += bytes(-len(codes) % 8)
        window = lockstep.windows(codes + reverse(codes))
        starts = _starts(layout.blocks, layout.sizes, 8 * len(codes))
        codings = [layout.streams[owner][1] for owner in layout.owners]
        decoded, used = lockstep.decode(window, layout.blocks, codings, starts)
        for block, owner, size, symbols in zip(layout.blocks, layout.owners, layout.sizes, decoded, strict=True):
            # Each lane has used what its codes say. If both together fill the segment, they met.
            if not np.array_equal(used[block.forward] + used[block.backward], size):
                raise CodecError(_BAD_END)
            out[owner] = symbols
    return [symbols for symbols in out if symbols is not None]


def expected(count: int, lengths: I64) -> int:
    """Bits that `count` symbols are expected to take, if each is as frequent as its code word is short."""
    used = lengths[lengths >= 0]
    return count * int((used << (huffman.LONGEST - used)).sum()) >> huffman.LONGEST


def _starts(blocks: Sequence[Block], sizes: Sequence[I64], length: int) -> I64:
    """The first bit of each lane, in `length` bits and then the same bits once more in reverse."""
    starts = np.zeros(sum(2 * block.pairs for block in blocks), np.int64)
    end = 0
    for block, size in zip(blocks, sizes, strict=True):
        ends = end + np.cumsum(size)
        starts[block.forward] = ends - size
        starts[block.backward] = 2 * length - ends
        end = int(ends[-1])
    return starts


def _first_order(mean: int) -> int:
    """Order of the number for the mean size of a stream's segments: about the error of its expectation."""
    bits = mean.bit_length()
    return max(bits // 2 - 1, bits - 6, 0)


def _write_sizes(head: BitWriter, sizes: I64, total: int) -> None:
    mean, guess = int(sizes.sum()) // len(sizes), total // len(sizes)
    head.signed(mean - guess, _first_order(guess))
    if len(sizes) == 1:
        return
    folded = [zigzag(size - mean) for size in sizes.tolist()]
    costs = [sum(2 * ((f >> order) + 1).bit_length() - 1 + order for f in folded) for order in range(1 << _ORDER_BITS)]
    order = costs.index(min(costs))
    head.bits(order, _ORDER_BITS)
    for number in folded:
        head.number(number, order)


def _read_sizes(head: BitReader, block: Block, total: int) -> I64:
    guess = total // block.pairs
    mean = guess + head.signed(_first_order(guess))
    sizes = [mean]
    if block.pairs > 1:
        order = head.bits(_ORDER_BITS)
        sizes = [mean + unzigzag(number) for number in head.numbers(block.pairs, order)]
    if min(sizes) < 0 or not block.count <= sum(sizes) <= huffman.LONGEST * block.count:
        raise CodecError("a segment of codes has a size that its symbols cannot take: the blob is damaged")
    return np.array(sizes, np.int64)
