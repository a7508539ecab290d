"""The coding of a group of integer arrays, without names: what a blob consists of besides its directory.

An array, less its base, is coded whole or divided into classes by its lines (`division.py`); what is of one class, in
all arrays, is one sequence, and each sequence is coded in its cheapest way (`modes.py`). In a group stand:

1. a header: how each array is divided, how each sequence is coded;
2. the codes of the labels of all lines, and of the Huffman tables of all sequences;
3. a second header, which needs the labels: the sequence of each context, negated lines, sizes;
4. the codes of all sequences, and their raw bits.

Each part begins at a whole byte. All symbols of a part are decoded at once (`lanes.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from ..limits import CodecLimits
from . import describe, lanes, lines, mirror, modes, plan, tables, ways
from .bits import BitReader, BitWriter, pack, unpack, words
from .describe import Described, Second
from .division import Labels, Shape
from .modes import Way
from .template import Template

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Integers = npt.NDArray[np.signedinteger]

#: Sequences of a group at most: the number of a sequence fits a byte.
MOST_SEQUENCES = 1 << 8
#: Arrays with no number of this magnitude are coded as 32-bit ones.
_NARROW = 1 << 29


def encode(arrays: Sequence[npt.NDArray[np.generic]]) -> bytes:
    """The bytes of integer (or bool) arrays of any shape; the upper half of uint64 wraps to negative numbers."""
    planned, total = plan.plan([(Shape.of(array.shape), narrow(array)) for array in arrays if array.size])
    parts: list[list[Integers]] = [[] for _ in range(total)]
    for each in planned:
        if each.division is not None:
            each.division.order().divide(each.values, parts)
        elif not each.constant:
            parts[each.code].append(each.values.reshape(-1))
        each.values = each.values[:0]
    coded = []
    for part in parts:
        coded.append(ways.choose(np.concatenate(part)))
        part.clear()
    sets = [labels for each in planned if each.division is not None for labels in each.division.labels]
    changes, stream_of = lines.assign(sets)
    streams = int(stream_of.max(initial=-1)) + 1

    head = BitWriter()
    head.number(total)
    head.number(streams)
    described = iter(zip(changes, stream_of.tolist(), strict=True))
    for each in planned:
        each.described([next(described) for _ in each.labels]).write(head, total, streams)
    first: list[tuple[I64, I64]] = []
    for stream in range(streams):
        chosen = [lines.symbols(s, c) for s, c, of in zip(sets, changes, stream_of, strict=True) if of == stream]
        first.append(lines.join(head, np.concatenate(chosen)))
    differences: list[I64] = []
    for sequence, lengths in coded:
        modes.write_way(head, sequence.way)
        stride, found = tables.differences(lengths, sequence.way)
        head.bits(stride, tables.STRIDE_BITS)
        differences.append(found)
    if differences:
        first.append((np.concatenate(differences), tables.DIFFERENCES))
    first_codes = lanes.encode(head, first)

    second = BitWriter()
    for each in planned:
        describe.write_second(second, each.division, each.mirrored, each.signs, each.uses, total)
    codes = lanes.encode(second, [(sequence.symbols, lengths) for sequence, lengths in coded])
    raw_lengths = np.concatenate([np.zeros(0, np.int64), *(sequence.raw_lengths for sequence, _ in coded)])
    raw = pack(
        np.concatenate([np.zeros(0, np.uint64), *(sequence.raw for sequence, _ in coded)]),
        raw_lengths,
        int(raw_lengths.sum()),
    )
    return b"".join([head.to_bytes(), first_codes, second.to_bytes(), codes, raw])


def decode(data: bytes, shapes: Sequence[tuple[int, ...]], limits: CodecLimits) -> list[Integers]:
    """The arrays of these shapes, of 32-bit or 64-bit integers, each as wide as its values may need.

    The caller has checked the shapes against the limits. `CodecError` unless the bytes are used up exactly.
    """
    head = BitReader(data)
    total = head.number(largest=min(limits.codes, MOST_SEQUENCES))
    streams = head.number(largest=lines.MOST_STREAMS)
    described: list[Described] = []
    for shape in shapes:
        if math.prod(shape):
            described.append(describe.read(head, Shape.of(shape), total, streams))
        if math.prod(shape) and described[-1].template:
            described.append(describe.read(head, Shape.of((described[-1].shape.columns,)), total, streams))
    counts = [0] * streams
    for each in described:
        for size, (_, stream) in zip(each.lines, each.sets, strict=True):
            counts[stream] += size
    joined = [lines.read_joined(head, count) for count in counts]
    first = [each.coded for each in joined]
    all_ways: list[Way] = []
    strides: list[int] = []
    for _ in range(total):
        all_ways.append(modes.read_way(head, sum(each.shape.size for each in described)))
        strides.append(head.bits(tables.STRIDE_BITS))
    alphabets = [way.alphabet for way in all_ways]
    if total:
        first.append((sum(alphabets), tables.DIFFERENCES))
    layout = lanes.read_layout(head, first)
    at = head.align()
    decoded = lanes.decode(data[at:], layout)
    lengths: list[I64] = []
    if total:
        found = np.split(decoded.pop(), np.cumsum(alphabets)[:-1])
        lengths = [tables.lengths(*each) for each in zip(found, all_ways, strides, strict=True)]
    found_labels = [each.split(symbols) for each, symbols in zip(joined, decoded, strict=True)]
    second = BitReader(data)
    second.position = 8 * (at + -(-layout.bits // 8))
    seconds: list[Second] = []
    used = [0] * streams
    for each in described:
        labels: list[Labels] = []
        for size, (changes, stream) in zip(each.lines, each.sets, strict=True):
            labels.append(lines.labels(found_labels[stream][used[stream] : used[stream] + size], changes))
            used[stream] += size
        seconds.append(describe.read_second(second, each, labels, total))
    values = _Values(data, second, described, seconds, list(zip(all_ways, lengths, strict=True)))
    return [values.next(shape) if math.prod(shape) else np.zeros(shape, np.int32) for shape in shapes]


class _Values:
    """The decoded sequences of a group, handed out to its arrays in order."""

    def __init__(
        self,
        data: bytes,
        head: BitReader,
        described: Sequence[Described],
        seconds: Sequence[Second],
        codes: Sequence[tuple[Way, I64]],
    ) -> None:
        orders = [None if each.division is None else each.division.order() for each in seconds]
        sizes = np.zeros(len(codes), np.int64)
        for each, order in zip(described, orders, strict=True):
            if order is not None:
                sizes += order.sizes(len(codes))
            elif each.kind != describe.CONSTANT:
                sizes[each.code] += each.shape.size
        counts: list[int] = sizes.tolist()
        lengths = [way.length(count) for count, (way, _) in zip(counts, codes, strict=True)]
        for length, count in zip(lengths, counts, strict=True):
            if length > count:
                raise CodecError("a sequence has more symbols than elements: the blob is damaged")
        layout = lanes.read_layout(head, [(length, code) for length, (_, code) in zip(lengths, codes, strict=True)])
        rest = data[head.align() :]
        symbols = lanes.decode(rest, layout)
        raw = _Raw(rest[-(-layout.bits // 8) :])
        self._sequences = [
            modes.decode(way, count, each, raw.read)
            for (way, _), count, each in zip(codes, counts, symbols, strict=True)
        ]
        raw.finish()
        self._used = [0] * len(codes)
        self._arrays = zip(described, orders, seconds, strict=True)

    def next(self, shape: tuple[int, ...]) -> Integers:
        """The next array."""
        return self._matrix().reshape(shape)

    def _matrix(self) -> Integers:
        each, order, second = next(self._arrays)
        base = each.base
        small = -_NARROW < base < _NARROW
        if each.kind == describe.CONSTANT:
            shape = (each.shape.rows, each.shape.columns)
            return np.full(shape, base, np.int32 if small else np.int64)
        codes = [each.code] if second.division is None else np.unique(second.division.classes).tolist()
        dtype: np.dtype[np.signedinteger] = np.dtype(
            np.int32 if small and all(self._sequences[code].itemsize == 4 for code in codes) else np.int64
        )
        if order is None:
            begin = self._used[each.code]
            self._used[each.code] = begin + each.shape.size
            values = self._sequences[each.code][begin : self._used[each.code]].astype(dtype, copy=False)
            values = values.reshape(each.shape.rows, each.shape.columns)
        else:
            values = order.join(self._sequences, self._used, dtype)
        if second.uses is not None:
            values = Template(self._matrix()[0], second.uses).add(values)
        values = second.signs.restore(values)
        if second.mirrored:
            values = mirror.add(values, each.shape.taps, second.mirrored)
        if base:
            values = values + dtype.type(base)
        return values


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


def narrow(array: npt.NDArray[np.generic]) -> Integers:
    """The array in 32 bits if its numbers leave room there, else in 64."""
    if array.dtype.itemsize <= 2 or (int(array.min()) > -_NARROW and int(array.max()) < _NARROW):
        return array.astype(np.int32)
    return array.astype(np.int64)
