"""The table of a packed file or patch: which bytes are tensors, of what type and shape, and what they are linked to.

All else is the **rest**: the bytes between the tensors, one after another.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from ..coding.bits import BitReader, BitWriter
from ..errors import CodecError
from ..limits import CodecLimits
from ..names import Recent
from .pieces import GROUP_SYMBOLS, Link, Range
from .source import Source
from .tensors import Type

_LINK_BITS = 2


def write_table(head: BitWriter, ranges: Sequence[Range]) -> None:
    """Append the table."""
    linked = any(item.link for item in ranges)
    head.number(len(ranges), 4)
    head.bits(linked, 1)
    types: Recent[int] = Recent()
    ranks: Recent[int] = Recent()
    dimensions: Recent[int] = Recent()
    end = old_end = 0
    for index, item in enumerate(ranges):
        gap = item.start - end
        head.number(gap, 6)
        types.write(head, item.type, lambda h, number: h.number(number, 2))
        ranks.write(head, len(item.shape), lambda h, rank: h.number(rank))
        for dimension in item.shape:
            dimensions.write(head, dimension, lambda h, size: h.number(size, 4))
        if item.type is Type.VARINT:
            head.number(item.size, 8)
        if linked:
            head.bits(item.link, _LINK_BITS)
        if item.link in (Link.OLD, Link.LOSSY):
            head.signed(item.place - old_end - gap)
            old_end = item.place + item.size
        elif item.link is Link.TWIN:
            twin = next(i for i in range(index) if ranges[i].start == item.place)
            head.number(index - 1 - twin)
        end = item.end


def read_table(head: BitReader, size: int, old_size: int, limits: CodecLimits) -> list[Range]:
    """The inverse of `write_table`, for a file of `size` bytes; all ranges lie in it, and all links in their file."""
    ranges: list[Range] = []
    total = head.number(4, largest=limits.arrays)
    linked = bool(head.bits(1))
    types: Recent[int] = Recent()
    ranks: Recent[int] = Recent()
    dimensions: Recent[int] = Recent()
    end = old_end = 0
    for index in range(total):
        gap = head.number(6, largest=size)
        type = Type(types.read(head, lambda h: h.number(2, largest=max(Type))))
        rank = ranks.read(head, lambda h: h.number(largest=limits.dimensions))
        shape = tuple(dimensions.read(head, lambda h: h.number(4, largest=size * 2)) for _ in range(rank))
        count = math.prod(shape)
        if type is Type.VARINT:
            length = head.number(8, largest=GROUP_SYMBOLS)
        else:
            length = (count + 1) // 2 if type in (Type.INT4, Type.UINT4) else count * type.width
        link = Link(head.bits(_LINK_BITS)) if linked else Link.NONE
        place = 0
        if link in (Link.OLD, Link.LOSSY):
            place = old_end + gap + head.signed()
            old_end = place + length
            if not 0 <= place <= old_end <= old_size or (link is Link.LOSSY and type is not Type.FLOAT32):
                raise CodecError("a tensor is linked to bytes that are not in the old file: the patch is damaged")
        elif link is Link.TWIN:
            twin = ranges[index - 1 - head.number(largest=index - 1)] if index else None
            if twin is None or twin.size != length:
                raise CodecError("a tensor is the twin of one of another size: the blob is damaged")
            place = twin.start
        if not 0 < length <= size - end - gap:
            raise CodecError("tensors lie beyond the end of their file: the blob is damaged")
        ranges.append(Range(end + gap, length, type, shape, link, place))
        end = ranges[-1].end
    return ranges


class Rest:
    """The bytes of a file that are in none of some ranges (ascending), as if they lay one after another."""

    def __init__(self, size: int, ranges: Sequence[tuple[int, int]]) -> None:
        self._starts: list[int] = [0]  # in the file
        self._places: list[int] = [0]  # in the rest
        self._ends: list[int] = []
        for start, end in ranges:
            self._ends.append(start)
            self._places.append(self._places[-1] + start - self._starts[-1])
            self._starts.append(end)
        self._ends.append(size)
        self.size = self._places[-1] + size - self._starts[-1]

    def spans(self, place: int, size: int) -> Iterator[tuple[int, int]]:
        """(start, size) in the file of `size` bytes of the rest from `place` on."""
        index = bisect_right(self._places, place) - 1
        while size > 0:
            start = self._starts[index] + place - self._places[index]
            taken = min(size, self._ends[index] - start)
            if taken > 0:
                yield start, taken
            place, size, index = place + taken, size - taken, index + 1

    def read(self, source: Source, place: int, size: int) -> bytes:
        """The bytes themselves."""
        return b"".join(source.read(start, taken) for start, taken in self.spans(place, size))


def old_rest(size: int, ranges: Sequence[Range]) -> Rest:
    """The rest of the old file of a patch: what no tensor is compared with."""
    places = sorted((item.place, item.place + item.size) for item in ranges if item.link in (Link.OLD, Link.LOSSY))
    merged: list[tuple[int, int]] = []
    for start, end in places:
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return Rest(size, merged)
