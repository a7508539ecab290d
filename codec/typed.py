"""Where the weights lie in a file: ranges of bytes that are arrays of one type.

Files are taken apart only to compress them better, and put together again byte for byte, so a file that is not
understood costs size, never correctness: `find` returns what it is sure of. ONNX is a protocol buffer; a walk along
the fields that lead to tensors needs no library. Numpy's `.npz` is a zip archive; members that are not compressed
hold arrays.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

from numpy.lib import format as npy

#: Ranges of fewer bytes are not worth their entry.
_SMALLEST = 64
#: Graphs within graphs (the branches of If, the body of Loop) are followed this deep.
_DEEPEST = 64


@dataclass(frozen=True)
class Range:
    """`size` bytes from `start` on: items of `width` bytes each, little-endian; floats if `floating`, else
    integers.
    """

    start: int
    size: int
    width: int
    floating: bool


#: ONNX TensorProto.DataType -> (bytes of an item, floating). Types that are not here are left alone.
_ONNX_TYPES = {
    1: (4, True), 2: (1, False), 3: (1, False), 4: (2, False), 5: (2, False), 6: (4, False), 7: (8, False), 9: (1,
    False), 10: (2, True), 11: (8, True), 12: (4, False), 13: (8, False), 16: (2, True), 21: (1, False), 22: (1,
    False),
}  # fmt: skip

#: Message -> field number -> message in that field, along all paths from an ONNX model to its tensors.
_ONNX_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Function": {7: "Node"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
}


class _NotUnderstoodError(Exception):
    """The bytes are no protocol buffer after all."""


def find(data: bytes) -> list[Range]:
    """Ranges in ascending order that do not overlap; none if `data` is in no format known here."""
    try:
        found = (
            list(_in_archive(data)) if data[:4] == b"PK\x03\x04" else list(_in_message(data, 0, len(data), "Model", 0))
        )
    except (_NotUnderstoodError, zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, KeyError):
        return []
    result: list[Range] = []
    end = 0
    for item in sorted(found, key=lambda r: r.start):
        if item.start >= end and item.size >= _SMALLEST and item.size % item.width == 0:
            result.append(item)
            end = item.start + item.size
    return result


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise _NotUnderstoodError


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, value of a varint, start, size) of each field; a varint has size 0."""
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        value = size = 0
        if wire == 0:
            value, at = _varint(data, at, end)
        elif wire == 1:
            size = 8
        elif wire == 2:
            size, at = _varint(data, at, end)
        elif wire == 5:
            size = 4
        else:
            raise _NotUnderstoodError
        if size > end - at:
            raise _NotUnderstoodError
        yield key >> 3, value, at, size
        at += size


def _in_message(data: bytes, at: int, end: int, message: str, depth: int) -> Iterator[Range]:
    if depth > _DEEPEST:
        raise _NotUnderstoodError
    if message == "Tensor":
        yield from _in_tensor(data, at, end)
        return
    inner = _ONNX_FIELDS[message]
    for field, _, start, size in _fields(data, at, end):
        if field in inner:
            yield from _in_message(data, start, start + size, inner[field], depth + 1)


def _in_tensor(data: bytes, at: int, end: int) -> Iterator[Range]:
    kind, raw, floats = 0, (0, 0), (0, 0)
    for field, value, start, size in _fields(data, at, end):
        if field == 2:
            kind = value
        elif field == 9:
            raw = (start, size)
        elif field == 4:
            floats = (start, size)
    if kind in _ONNX_TYPES and raw[1]:
        yield Range(*raw, *_ONNX_TYPES[kind])
    if kind == 1 and floats[1]:  # packed float_data
        yield Range(*floats, 4, True)


def _in_archive(data: bytes) -> Iterator[Range]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                dtype = read(file)[2]
                header = file.tell()
            if dtype.kind not in "iufb" or dtype.byteorder == ">" or dtype.itemsize not in (1, 2, 4, 8):
                continue
            name, extra = (
                int.from_bytes(data[member.header_offset + i : member.header_offset + i + 2], "little")
                for i in (26, 28)
            )
            start = member.header_offset + 30 + name + extra + header
            if start + member.file_size - header <= len(data):
                yield Range(start, member.file_size - header, dtype.itemsize, dtype.kind == "f")
