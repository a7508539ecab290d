"""Tensors of a TFLite model: a FlatBuffer, read by offsets that are checked one by one.

Layout: https://flatbuffers.dev/internals/; the schema is TensorFlow Lite's (schema.fbs, version 3). A table begins
with the distance back to its vtable, which gives for each field its place in the table. Offsets may lead anywhere, so
the number of tables that are looked at is limited: a hostile file takes no longer than a large one.
"""

from __future__ import annotations

from collections.abc import Iterator

from .protobuf import NotUnderstoodError
from .source import Source
from .tensors import Tensor, Type, typed

IDENTIFIER = b"TFL3"
#: TensorType of the schema -> how a buffer lies. Types that are not here (strings, resources) are left alone.
_TYPES: dict[int, Type] = {
    0: Type.FLOAT32, 1: Type.FLOAT16, 2: Type.INT32, 3: Type.UINT8, 4: Type.INT64, 6: Type.UINT8, 7: Type.INT16,
    8: Type.FLOAT32, 9: Type.INT8, 10: Type.FLOAT64, 11: Type.FLOAT64, 12: Type.UINT64, 15: Type.UINT32,
    16: Type.UINT16, 17: Type.INT4, 18: Type.BFLOAT16,
}  # fmt: skip
_COMPLEX = (8, 11)
#: Tensors that are looked at, dimensions of one, bytes of a name.
_MOST_TENSORS, _MOST_DIMENSIONS, _LONGEST_NAME = 1 << 16, 32, 512


class Table:
    """A table of a FlatBuffer. Every read is checked against the size of the file."""

    def __init__(self, source: Source, at: int) -> None:
        self._source, self.at = source, at
        self._vtable = at - _signed(_number(source, at, 4), 32)
        self._fields = (_number(source, self._vtable, 2) - 4) // 2

    def place(self, field: int) -> int:
        """Where a field lies; 0 if the table does not have it."""
        if not 0 <= field < self._fields:
            return 0
        offset = _number(self._source, self._vtable + 4 + 2 * field, 2)
        return self.at + offset if offset else 0

    def value(self, field: int, size: int, default: int = 0) -> int:
        """An unsigned number of `size` bytes."""
        at = self.place(field)
        return _number(self._source, at, size) if at else default

    def vector(self, field: int, width: int) -> tuple[int, int]:
        """(place, length) of a vector of items of `width` bytes."""
        at = self.place(field)
        if not at:
            return 0, 0
        at += _number(self._source, at, 4)
        length = _number(self._source, at, 4)
        if length * width > self._source.size - at - 4:
            raise NotUnderstoodError("a vector goes beyond the file")
        return at + 4, length

    def tables(self, field: int) -> Iterator[Table]:
        """The tables of a vector of tables."""
        at, length = self.vector(field, 4)
        for index in range(length):
            place = at + 4 * index
            yield Table(self._source, place + _number(self._source, place, 4))


def find(source: Source) -> Iterator[Tensor]:
    """The tensors of a model that have data; `NotUnderstoodError` if it is no model."""
    model = Table(source, _number(source, 0, 4))
    buffers, buffer_count = model.vector(4, 4)
    looked_at = 0
    for graph in model.tables(2):
        for tensor in graph.tables(0):
            looked_at += 1
            if looked_at > _MOST_TENSORS:
                raise NotUnderstoodError("too many tensors")
            number, kind = tensor.value(2, 4), tensor.value(1, 1)
            if not 0 < number < buffer_count or kind not in _TYPES:
                continue
            place = buffers + 4 * number
            at, size = _data(source, Table(source, place + _number(source, place, 4)))
            if size:
                found = typed(_name(source, tensor), at, size, _TYPES[kind], _shape(source, tensor, kind))
                if found is not None:
                    yield found
        looked_at += 1


def _data(source: Source, buffer: Table) -> tuple[int, int]:
    """(place, bytes) of a buffer's data: in the table, or for models beyond 2 GB after all tables."""
    at, size = buffer.vector(0, 1)
    if not size:
        at, size = buffer.value(1, 8), buffer.value(2, 8)
        if at <= 1:
            return 0, 0
    if at + size > source.size:
        raise NotUnderstoodError("a buffer goes beyond the file")
    return at, size


def _shape(source: Source, tensor: Table, kind: int) -> tuple[int, ...]:
    at, rank = tensor.vector(0, 4)
    if rank > _MOST_DIMENSIONS:
        raise NotUnderstoodError("too many dimensions")
    shape = tuple(max(0, _signed(_number(source, at + 4 * i, 4), 32)) for i in range(rank))
    if len(shape) == 4 and shape[0] == 1:  # a depthwise filter: its channels come last
        shape = (shape[1] * shape[2], shape[3])
    return (*shape, 2) if kind in _COMPLEX else shape


def _name(source: Source, tensor: Table) -> str:
    at, size = tensor.vector(3, 1)
    return source.small(at, min(size, _LONGEST_NAME)).decode(errors="replace") if size else ""


def _number(source: Source, at: int, size: int) -> int:
    if not 0 <= at <= source.size - size:
        raise NotUnderstoodError("an offset leads beyond the file")
    return source.number(at, size)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
