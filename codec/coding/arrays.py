"""The coding of integer arrays, without names and shapes: sequences in the header, codes, raw bits.

Encoding: arrays are grouped into sequences (`plan.group`), each sequence is coded in its cheapest way. The header
receives, for each array, its sequence, and for each sequence its base, its way and its Huffman code; then the lengths
of all segments. After the header, from a whole byte on, come the codes of all lanes, and from the next whole byte on
all raw bits.

A later version may divide arrays into sequences in another way (by row and column): that is another number in
`_DIVISION`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from ..limits import CodecLimits
from . import huffman, lanes, modes, plan
from .bits import BitReader, BitWriter, pack, unpack, words

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

#: How elements are divided into sequences: whole arrays.
_DIVISION = 0


def encode(head: BitWriter, arrays: Sequence[I64]) -> bytes:
    """Append the header of flat 64-bit `arrays` to `head` and return the bytes that follow it."""
    sequence_of = plan.group(arrays)
    total = max(sequence_of, default=-1) + 1
    head.number(_DIVISION)
    head.number(total)
    for sequence in sequence_of:
        head.bits(sequence, _width(total))
    streams: list[tuple[I64, I64]] = []
    raw_lengths: list[I64] = []
    raw: list[U64] = []
    for number in range(total):
        values = np.concatenate([a for a, s in zip(arrays, sequence_of, strict=True) if s == number])
        base = plan.base(values)
        coded, lengths = plan.choose(values - np.int64(base))
        head.signed(base)
        modes.write_way(head, coded)
        if len(coded.symbols):
            huffman.write_lengths(head, lengths)
        streams.append((coded.symbols, lengths))
        raw_lengths.append(coded.raw_lengths)
        raw.append(coded.raw)
    codes = lanes.encode(head, streams)
    if not raw:
        return codes
    sizes = np.concatenate(raw_lengths)
    return codes + pack(np.concatenate(raw), sizes, int(sizes.sum()))


def decode(head: BitReader, data: bytes, counts: Sequence[int], limits: CodecLimits) -> list[I64]:
    """The flat arrays of `counts` elements whose header is next in `head`, which reads from `data`.

    The caller has checked the sum of `counts` against the limits. `CodecError` unless the bytes are used up exactly.
    """
    division = head.number()
    if division != _DIVISION:
        raise CodecError(f"division {division} is not known here: a newer version wrote this blob; update this side")
    total = head.number(largest=min(limits.codes, len(counts)))
    if counts and not total:
        raise CodecError("the blob has arrays but no sequence to take them from: it is damaged")
    sequence_of = [head.bits(_width(total)) for _ in counts]
    if max(sequence_of, default=0) >= max(total, 1):
        raise CodecError("an array belongs to a sequence that is not there: the blob is damaged")
    sizes = [0] * total
    for count, sequence in zip(counts, sequence_of, strict=True):
        sizes[sequence] += count
    bases: list[int] = []
    ways: list[tuple[modes.Way, int]] = []
    streams: list[tuple[int, I64]] = []
    for size in sizes:
        bases.append(_int64(head.signed()))
        way, radix, alphabet, symbols = modes.read_way(head, size)
        ways.append((way, radix))
        lengths = huffman.read_lengths(head, alphabet) if symbols else np.full(alphabet, -1, np.int64)
        streams.append((symbols, lengths))
    layout = lanes.read_layout(head, streams)
    rest = data[head.align() :]
    decoded = lanes.decode(rest, layout)
    raw = _Raw(rest[-(-layout.bits // 8) :])
    values = [
        modes.MODES[way.mode].decode(way, size, radix, symbols, raw.read) + np.int64(base)
        for size, (way, radix), symbols, base in zip(sizes, ways, decoded, bases, strict=True)
    ]
    raw.finish()
    used = [0] * total
    result: list[I64] = []
    for count, sequence in zip(counts, sequence_of, strict=True):
        result.append(values[sequence][used[sequence] : used[sequence] + count])
        used[sequence] += count
    return result


class _Raw:
    """The raw bits at the end, handed out in order."""

    def __init__(self, data: bytes) -> None:
        self._bits = 8 * len(data)
        self._words = words(data)
        self._position = 0

    def read(self, lengths: I64) -> U64:
        end = self._position + int(lengths.sum())
        if end > self._bits:
            raise CodecError("the blob ends inside its raw bits: it was cut off; fetch it again")
        values = unpack(self._words, self._position, lengths)
        self._position = end
        return values

    def finish(self) -> None:
        if self._bits - self._position >= 8:
            raise CodecError("bytes are left over at the end of the blob: it is damaged")
        left = unpack(self._words, self._position, np.array([self._bits - self._position], np.int64))
        if left.any():
            raise CodecError("padding bits at the end of the blob are not zero: it is damaged")


def _width(total: int) -> int:
    return max(total - 1, 0).bit_length()


def _int64(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise CodecError("a base does not fit 64 bits: the blob is damaged")
    return value
