"""Tensors of a file, cut to what is coded at once.

A group of a file has at most 2**20 symbols, also where one tensor is larger: that is cut along its first dimensions,
so that the pieces still are matrices with the same columns. Memory is that for a group, whatever the file.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .. import groups
from .tensors import Type

#: Symbols of a group at most.
GROUP_SYMBOLS = 1 << 20


class Link(enum.IntEnum):
    """What the table says about where else the bytes of a tensor come from. Numbers are never reused."""

    NONE = 0
    #: Compared with bytes of the old file of a patch.
    OLD = 1
    #: As `OLD`, and the change is in the patch's delta.
    LOSSY = 2
    #: The same bytes as an earlier tensor of the file.
    TWIN = 3


@dataclass(frozen=True)
class Range:
    """A tensor as the table of a blob has it: `size` bytes of the file from `start` on, items of `type` in `shape`.

    `place` is where the bytes that it is linked to begin, in the old file or (twins) in the file itself.
    """

    start: int
    size: int
    type: Type
    shape: tuple[int, ...]
    link: Link = Link.NONE
    place: int = 0

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.start + self.size

    @property
    def symbols(self) -> int:
        """How many integers it becomes at most: bytes of floats and varints, halves of bytes, else items."""
        if self.type in (Type.INT4, Type.UINT4):
            return 2 * self.size
        return self.size if self.type.floating or self.type is Type.VARINT else self.size // self.type.width


def pieces(item: Range) -> Iterator[Range]:
    """The range in pieces of at most `GROUP_SYMBOLS` symbols. (Varints, which cannot be cut blindly, are no larger.)"""
    if item.symbols <= GROUP_SYMBOLS or item.type is Type.VARINT:
        yield item
        return
    half = item.type in (Type.INT4, Type.UINT4)
    symbols = item.type.width if item.type.floating else 1
    dimensions = item.shape
    if half:
        dimensions = (item.size, 2)  # no piece may end inside a byte
    lead = 1
    while math.prod(dimensions[lead:]) * symbols > GROUP_SYMBOLS:
        lead += 1
    rows, row = math.prod(dimensions[:lead]), dimensions[lead:]
    row_symbols = math.prod(row) * symbols
    most = GROUP_SYMBOLS // row_symbols
    row_bytes = item.size // rows
    for first in range(0, rows, most):
        taken = min(most, rows - first)
        yield Range(
            item.start + first * row_bytes, taken * row_bytes, item.type, (taken, *row), item.link,
            item.place + first * row_bytes,
        )  # fmt: skip


def grouped(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """Consecutive pieces in groups: both ends cut alike."""
    cut = (piece for item in ranges if item.link <= Link.OLD for piece in pieces(item))
    return groups.cut(cut, lambda piece: piece.symbols, GROUP_SYMBOLS)
