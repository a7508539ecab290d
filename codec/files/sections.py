"""What follows the table of a packed file: blocks of the rest and groups of tensors, in the order in which they are
needed, so that files of any size are written and read piece by piece.

Before a tensor comes every block that has bytes before it, and the group in which its first piece is, unless they
have come already. Each section stands after its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

from ..coding import arrays
from ..coding.bits import BitReader, BitWriter
from ..errors import CodecError
from ..limits import CodecLimits
from . import blocks, forms, general
from .blocks import BLOCK, Old
from .layout import Rest
from .pieces import Link, Range, grouped, pieces
from .source import Source

#: A group of pieces that went through the coder; other numbers are general compression of all its bytes.
_ARRAYS = 0
#: LZMA is tried on a group of so few bytes, or whose deflated bytes are at most so many percent of the coded ones.
_SMALL, _LZMA_TRIED = 1 << 16, 104
#: Reads bytes of a file: (start, size).
Reader = Callable[[int, int], bytes]


def order(size: int, ranges: Sequence[Range]) -> Iterator[tuple[int, int] | list[Range]]:
    """The sections of a file of `size` bytes: (place, size) of a block, or the pieces of a group."""
    rest = size - sum(item.size for item in ranges)
    needed = written = end = 0
    members = grouped(ranges)
    coming: list[Range] = []
    for item in ranges:
        needed += item.start - end
        end = item.end
        while written < needed:
            yield written, min(BLOCK, rest - written)
            written += BLOCK
        for piece in pieces(item) if item.link <= Link.OLD else ():
            if not coming:
                coming = next(members)
                yield list(coming)
            assert coming[0].start == piece.start
            coming = coming[1:]
    for place in range(written, rest, BLOCK):
        yield place, min(BLOCK, rest - place)


def write_group(group: Sequence[Range], source: Source, old: Source | None) -> bytes:
    """The section of a group."""
    chosen: list[forms.Parts] = []
    contents: list[bytes] = []
    for piece in group:
        data = source.read(piece.start, piece.size)
        before = old.read(piece.place, piece.size) if old is not None and piece.link is Link.OLD else None
        chosen.append(forms.choose(piece, data, before))
        contents.append(data)
    head = BitWriter()
    for piece, parts in zip(group, chosen, strict=True):
        forms.write(head, piece, parts)
    front = b"".join([bytes([_ARRAYS]), head.to_bytes(), *(parts.raw for parts in chosen)])
    coded = [array for parts in chosen for array in parts.arrays]
    if coded:
        front += arrays.encode(coded)
    data = b"".join(contents)
    if len(data) > _SMALL:
        sample = general.sample(data)
        if 100 * len(general.deflate(sample, 1)) * len(data) > _LZMA_TRIED * len(front) * len(sample):
            return front
    method, body = general.squeeze(data)
    return bytes([method]) + body if len(body) + 1 < len(front) else front


def read_group(coded: bytes, group: Sequence[Range], old: Source | None, limits: CodecLimits) -> list[bytes]:
    """The bytes of the pieces of a group."""
    if not coded:
        raise CodecError("a group of a packed file is empty: the blob is damaged")
    sizes = [piece.size for piece in group]
    if coded[0] != _ARRAYS:
        data = general.expand(coded[0], coded[1:], sum(sizes))
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        return [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    head = BitReader(coded[1:])
    chosen = [forms.read(head, piece) for piece in group]
    at = 1 + head.align()
    for piece, parts in zip(group, chosen, strict=True):
        size = forms.raw_size(piece, parts)
        parts.raw = coded[at : at + size]
        at += size
    if at > len(coded):
        raise CodecError("a group of a packed file is cut off: the blob is damaged")
    shapes = [forms.shapes(piece, parts) for piece, parts in zip(group, chosen, strict=True)]
    flat = iter(_decoded(coded[at:], list(chain.from_iterable(shapes)), limits))
    result: list[bytes] = []
    for piece, parts, wanted in zip(group, chosen, shapes, strict=True):
        parts.arrays = [next(flat) for _ in wanted]
        before = old.read(piece.place, piece.size) if old is not None and piece.link is Link.OLD else None
        result.append(forms.restore(piece, parts, before))
        parts.arrays, parts.raw = [], b""
    return result


def _decoded(data: bytes, shapes: list[tuple[int, ...]], limits: CodecLimits) -> list[forms.I64]:
    if not shapes:
        if data:
            raise CodecError("bytes are left over at the end of a group: the blob is damaged")
        return []
    return [array.astype(np.int64, copy=False).reshape(-1) for array in arrays.decode(data, shapes, limits)]


def write(
    source: Source, ranges: Sequence[Range], section: Callable[[bytes], None], old: Source | None, old_rest: Rest | None
) -> None:
    """Hand all sections of `source` to `section`, in order: what `contents` reads."""
    before = None if old is None or old_rest is None else Old(old, old_rest)
    rest = Rest(source.size, [(item.start, item.end) for item in ranges])
    for step in order(source.size, ranges):
        if isinstance(step, tuple):
            section(blocks.write(rest.read(source, *step), step[0], before))
        else:
            section(write_group(step, source, old))


def contents(
    size: int,
    ranges: Sequence[Range],
    section: Callable[[], bytes],
    old: Source | None,
    old_rest: Rest | None,
    limits: CodecLimits,
    *,
    earlier: Reader,
    lossy: Callable[[Range], bytes],
) -> Iterator[bytes]:
    """The bytes of a file in order; `section` gives the next section, `earlier` what has been handed out."""
    before = None if old is None or old_rest is None else Old(old, old_rest)
    steps = order(size, ranges)
    rest = bytearray()
    ready: list[bytes] = []

    def advance() -> None:
        step = next(steps)
        if isinstance(step, tuple):
            rest.extend(blocks.read(section(), step[1], step[0], before))
        else:
            ready.extend(read_group(section(), step, old, limits)[::-1])

    def resting(size: int) -> Iterator[bytes]:
        while size:
            while not rest:
                advance()
            yield bytes(rest[:size])
            taken = min(size, len(rest))
            del rest[:taken]
            size -= taken

    end = 0
    for item in ranges:
        yield from resting(item.start - end)
        end = item.end
        if item.link is Link.TWIN:
            for start in range(0, item.size, BLOCK):
                yield earlier(item.place + start, min(BLOCK, item.size - start))
        elif item.link is Link.LOSSY:
            yield lossy(item)
        else:
            for _ in pieces(item):
                while not ready:
                    advance()
                yield ready.pop()
    yield from resting(size - end)
