"""Where the weights lie in a file: ranges of bytes that are arrays of one type.

Files are taken apart only to compress them better, and put together again byte for byte, so a file that is not
understood costs size, never correctness: `find` returns what it is sure of. ONNX is a protocol buffer; a walk along
the fields that lead to tensors needs no library. Numpy's `.npz` is a zip archive; members that are not compressed
hold arrays.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

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

#: The head of a member with an array of plain little-endian numbers (numpy's NEP 1), and how much to read for it.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY(?P<version>[\1-\3])\0.{2,4}?\{'descr': '[<|](?P<kind>[iufb])(?P<width>[1248])', ", re.DOTALL
)
_NPY_HEADER_SIZE = 64

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
        archive = data[:4] == b"PK\x03\x04"
        found = list(_in_archive(data) if archive else _in_message(data, 0, len(data), "Model", 0))
    except Exception:  # zipfile raises a dozen types on damaged archives: what cannot be read has no ranges
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
        members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            continue
        local = data[member.header_offset : member.header_offset + 30]
        name, extra = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
        start = member.header_offset + 30 + name + extra
        found = _NPY_HEADER.match(data[start : start + _NPY_HEADER_SIZE])
        if found is None:
            continue
        size_bytes = 2 if found["version"] == b"\1" else 4
        header = 8 + size_bytes + int.from_bytes(data[start + 8 : start + 8 + size_bytes], "little")
        size = member.file_size - header
        if 0 < size <= len(data) - start - header:
            yield Range(start + header, size, int(found["width"]), found["kind"] == b"f")
