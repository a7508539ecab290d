"""The little of protocol buffers that finding tensors needs: fields of a message, without a schema.

Wire format: https://protobuf.dev/programming-guides/encoding/. A walk never goes beyond the message it is in.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .source import Source

I64 = npt.NDArray[np.int64]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
#: Bytes of a varint at most.
_LONGEST = 10


class NotUnderstoodError(Exception):
    """The bytes are not of the format that they were taken for."""


def varint(source: Source, at: int, end: int) -> tuple[int, int]:
    """(value, place after it) of the number at `at`."""
    value = shift = 0
    while at < end and shift < 64:
        byte = source.byte(at)
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise NotUnderstoodError("a number goes beyond its message")


def fields(source: Source, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, value of a varint, start, size) of each field; a varint has size 0."""
    while at < end:
        key, at = varint(source, at, end)
        wire = key & 7
        value = size = 0
        if wire == VARINT:
            value, at = varint(source, at, end)
        elif wire == BYTES:
            size, at = varint(source, at, end)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise NotUnderstoodError(f"wire type {wire}")
        if size > end - at:
            raise NotUnderstoodError("a field goes beyond its message")
        yield key >> 3, value, at, size
        at += size


def unpack_varints(data: bytes) -> I64 | None:
    """The numbers of a packed field, as signed 64-bit; None if `pack_varints` would not write these bytes."""
    array = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(array < 128)
    if not len(array) or not len(ends) or ends[-1] != len(array) - 1:
        return None
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        return None
    values = np.zeros(len(ends), np.uint64)
    for index in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > index)
        values[longer] |= (array[starts[longer] + index].astype(np.uint64) & np.uint64(127)) << np.uint64(7 * index)
    result = values.view(np.int64)
    return result if pack_varints(result) == data else None


def pack_varints(values: I64) -> bytes:
    """The bytes of a packed field."""
    rest = values.view(np.uint64)
    lengths = np.ones(len(rest), np.int64)
    for index in range(1, _LONGEST):
        lengths += (rest >> np.uint64(7 * index)) > 0
    ends = np.cumsum(lengths)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for index in range(_LONGEST):
        longer = np.flatnonzero(lengths > index)
        byte = (rest[longer] >> np.uint64(7 * index)).astype(np.uint8) & 127
        out[ends[longer] - lengths[longer] + index] = byte | ((lengths[longer] > index + 1) * 128).astype(np.uint8)
    return out.tobytes()
