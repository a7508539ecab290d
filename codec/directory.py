"""The directory of a blob: names, shapes and types of its arrays, checked against limits before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .coding.bits import BitReader, BitWriter
from .errors import CodecError
from .limits import CodecLimits
from .names import Described, Recent

#: By the number that stands in the blob. Numbers are never reused.
DTYPES: dict[int, np.dtype[np.generic]] = {
    number: np.dtype(name)
    for number, name in enumerate(
        ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool", "float32"]
    )
}
_DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


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


def write(head: BitWriter, entries: Sequence[Entry], *, typed: bool) -> None:
    """Write all entries; without types if not `typed` (all arrays are float32 then)."""
    head.number(len(entries), 4)
    described = Described()
    dtypes: Recent[int] = Recent()
    for entry in entries:
        described.write(head, entry.name, entry.shape)
        if typed:
            dtypes.write(head, _DTYPE_NUMBERS[entry.dtype], lambda h, number: h.number(number, 2))


def read(head: BitReader, limits: CodecLimits, *, typed: bool) -> list[Entry]:
    """The inverse of `write`; `CodecError` if names repeat or the arrays exceed `limits`."""
    entries: list[Entry] = []
    described = Described()
    dtypes: Recent[int] = Recent()
    seen: set[str] = set()
    names_bytes = elements = size = 0
    for _ in range(head.number(4, largest=limits.arrays)):
        name, shape = described.read(head, limits)
        names_bytes += len(name.encode())
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
