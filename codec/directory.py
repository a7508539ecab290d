"""Names, shapes and types of the arrays in a blob, in about four bytes for each array of an ordinary network.

Names of weights repeat one another ("blocks.0.depthwise.weight", "blocks.0.depthwise.bias"), and so do shapes. A name
is cut into parts (words, digits, marks); parts shared with the name before cost next to nothing, other parts are
looked up in a list of recent ones. `Recent` is that list, also for dimensions and types: an item seen before costs
its place, a new one is spelled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .coding.bits import BitReader, BitWriter
from .errors import CodecError
from .limits import CodecLimits

T = TypeVar("T")

#: By the number that stands in the blob. Numbers are never reused.
DTYPES: dict[int, np.dtype[np.generic]] = {
    number: np.dtype(name)
    for number, name in enumerate(
        ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool", "float32"]
    )
}
_DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}

#: Parts of a name. Words are of lower-case letters only: those are spelled in 5 bits each.
_PARTS = re.compile(rb"[a-z]+|[1-9][0-9]{0,8}|[^a-z1-9]+|.", re.DOTALL)
_WORD = re.compile(rb"[a-z]+")
_NUMBER = re.compile(rb"[1-9][0-9]{0,8}")
#: Items that a list of recent ones remembers.
_MEMORY = 256


@dataclass(frozen=True)
class Entry:
    """One array of a blob."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class Recent(Generic[T]):
    """A list of items, the most recent first, kept alike by both ends."""

    def __init__(self) -> None:
        self._items: list[T] = []

    def write(self, head: BitWriter, item: T, spell: Callable[[BitWriter, T], None]) -> None:
        """Write an item's place, or the place after the last and its spelling."""
        known = item in self._items
        place = self._items.index(item) if known else len(self._items)
        head.number(place)
        if not known:
            spell(head, item)
        self._keep(place, item)

    def read(self, head: BitReader, spelled: Callable[[BitReader], T]) -> T:
        """The inverse of `write`."""
        place = head.number(largest=len(self._items))
        item = self._items[place] if place < len(self._items) else spelled(head)
        self._keep(place, item)
        return item

    def _keep(self, place: int, item: T) -> None:
        del self._items[place : place + 1]
        self._items.insert(0, item)
        del self._items[_MEMORY:]


def write(head: BitWriter, entries: Sequence[Entry], *, typed: bool) -> None:
    """Write all entries; without types if not `typed` (all arrays are float32 then)."""
    head.number(len(entries), 4)
    parts: Recent[bytes] = Recent()
    dimensions: Recent[int] = Recent()
    ranks: Recent[int] = Recent()
    dtypes: Recent[int] = Recent()
    before: list[bytes] = []
    for entry in entries:
        before = _write_name(head, _cut(entry.name), before, parts)
        ranks.write(head, len(entry.shape), lambda h, rank: h.number(rank))
        for dimension in entry.shape:
            dimensions.write(head, dimension, lambda h, size: h.number(size, 4))
        if typed:
            dtypes.write(head, _DTYPE_NUMBERS[entry.dtype], lambda h, number: h.number(number, 2))


def read(head: BitReader, limits: CodecLimits, *, typed: bool) -> list[Entry]:
    """The inverse of `write`; `CodecError` if names repeat or the arrays exceed `limits`."""
    entries: list[Entry] = []
    parts: Recent[bytes] = Recent()
    dimensions: Recent[int] = Recent()
    ranks: Recent[int] = Recent()
    dtypes: Recent[int] = Recent()
    before: list[bytes] = []
    seen: set[str] = set()
    names_bytes = elements = size = 0
    for _ in range(head.number(4, largest=limits.arrays)):
        before = _read_name(head, before, parts, limits)
        name = _text(before)
        names_bytes += sum(map(len, before))
        rank = ranks.read(head, lambda h: h.number(largest=limits.dimensions))
        shape = tuple(dimensions.read(head, lambda h: h.number(4, largest=2**62)) for _ in range(rank))
        number = (
            dtypes.read(head, lambda h: h.number(2, largest=max(DTYPES))) if typed else _DTYPE_NUMBERS[np.dtype("f4")]
        )
        entry = Entry(name, DTYPES[number], shape)
        elements += entry.count
        size += entry.count * entry.dtype.itemsize
        if name in seen:
            raise CodecError(f"the blob has two arrays named {name!r}: it is damaged")
        if names_bytes > limits.names_bytes:
            raise CodecError(
                f"names of more than {limits.names_bytes} bytes: raise names_bytes of CodecLimits to read it"
            )
        if entry.count > limits.array_elements:
            raise CodecError(
                f"{name!r} has {entry.count} elements, at most {limits.array_elements} of one array are decoded: raise "
                "array_elements of CodecLimits to read it"
            )
        if elements > limits.elements or size > limits.decoded_bytes:
            raise CodecError(
                f"the arrays up to {name!r} are {elements} elements in {size} bytes, and at most {limits.elements} in "
                f"{limits.decoded_bytes} are decoded: raise elements and decoded_bytes of CodecLimits to read it"
            )
        # A dimension of 0 hides others from the count, but numpy refuses any that are too large for an index.
        if math.prod(d for d in shape if d) > 2**60:
            raise CodecError(f"the shape of {name!r}, {shape}, is too large: the blob is damaged")
        seen.add(name)
        entries.append(entry)
    return entries


class Totals:
    """Refuses, while encoding, what no decoder with these limits would read."""

    def __init__(self, limits: CodecLimits) -> None:
        self._limits = limits
        self._arrays = self._elements = self._size = self._names = 0

    def add(self, entry: Entry) -> Entry:
        """Count an array in, and hand it back."""
        limits = self._limits
        try:
            length = len(entry.name.encode())
        except UnicodeEncodeError as error:
            raise CodecError(f"the name {entry.name!r} is not valid Unicode: rename the array") from error
        self._arrays += 1
        self._elements += entry.count
        self._size += entry.count * entry.dtype.itemsize
        self._names += length
        if self._arrays > limits.arrays:
            raise CodecError(f"more than {limits.arrays} arrays do not go into one blob: use several")
        if len(entry.shape) > limits.dimensions:
            raise CodecError(
                f"{entry.name!r} has {len(entry.shape)} dimensions, at most {limits.dimensions} are coded: reshape it"
            )
        if entry.count > limits.array_elements:
            raise CodecError(
                f"{entry.name!r} has {entry.count} elements, at most {limits.array_elements} are coded in one array: "
                "cut it into several"
            )
        if self._elements > limits.elements or self._size > limits.decoded_bytes:
            raise CodecError(
                f"the arrays up to {entry.name!r} are {self._elements} elements in {self._size} bytes, at most "
                f"{limits.elements} in {limits.decoded_bytes} go into one blob: use several"
            )
        if length > limits.name_bytes or self._names > limits.names_bytes:
            raise CodecError(
                f"the name {entry.name[:40]!r}... is too long, {limits.name_bytes} bytes are most: rename the array"
            )
        return entry


def _cut(name: str) -> list[bytes]:
    return _PARTS.findall(name.encode())


def _text(parts: list[bytes]) -> str:
    try:
        return b"".join(parts).decode()
    except UnicodeDecodeError as error:
        raise CodecError("a name is not UTF-8: the blob is damaged") from error


def _write_name(head: BitWriter, name: list[bytes], before: list[bytes], parts: Recent[bytes]) -> list[bytes]:
    shared = next(
        (i for i, (a, b) in enumerate(zip(name, before, strict=False)) if a != b), min(len(name), len(before))
    )
    head.number(len(before) - shared)
    head.number(len(name) - shared, 1)
    for part in name[shared:]:
        parts.write(head, part, _spell)
    return name


def _read_name(head: BitReader, before: list[bytes], parts: Recent[bytes], limits: CodecLimits) -> list[bytes]:
    shared = len(before) - head.number(largest=len(before))
    name = before[:shared]
    size = sum(map(len, name))
    for _ in range(head.number(1, largest=limits.name_bytes)):
        name.append(parts.read(head, lambda h: _spelled(h, limits)))
        size += len(name[-1])
        if size > limits.name_bytes:
            raise CodecError(
                f"a name is longer than {limits.name_bytes} bytes: raise name_bytes of CodecLimits to read it"
            )
    return name


def _spell(head: BitWriter, part: bytes) -> None:
    if _WORD.fullmatch(part):
        head.bits(0, 1)
        head.number(len(part), 2)
        for letter in part:
            head.bits(letter - ord("a"), 5)
    elif _NUMBER.fullmatch(part):
        head.bits(2, 2)
        head.number(int(part), 2)
    else:
        head.bits(3, 2)
        head.number(len(part))
        for byte in part:
            head.bits(byte, 8)


def _spelled(head: BitReader, limits: CodecLimits) -> bytes:
    if not head.bits(1):
        length = head.number(2, largest=limits.name_bytes)
        return bytes((head.bits(5) + ord("a")) & 255 for _ in range(length))
    if not head.bits(1):
        return b"%d" % head.number(2, largest=10**9)
    return bytes(head.bits(8) for _ in range(head.number(largest=limits.name_bytes)))
