"""Arrays of numpy's `.npz` (a zip archive; members that are not compressed) and of `.npy`, and of safetensors."""

from __future__ import annotations

import ast
import json
import zipfile
from collections.abc import Iterator

from .protobuf import NotUnderstoodError
from .source import Source
from .tensors import Tensor, Type, typed

ZIP, NPY = b"PK\x03\x04", b"\x93NUMPY"
#: Members that are looked at, and bytes of a header that is read.
_MOST_MEMBERS, _LONGEST_HEADER = 1 << 16, 1 << 16
_LONGEST_INDEX = 1 << 24
#: Kind and width of numpy's type -> how items lie.
_NUMPY: dict[str, Type] = {
    "i1": Type.INT8, "u1": Type.UINT8, "b1": Type.UINT8, "i2": Type.INT16, "u2": Type.UINT16, "i4": Type.INT32,
    "u4": Type.UINT32, "i8": Type.INT64, "u8": Type.UINT64, "f2": Type.FLOAT16, "f4": Type.FLOAT32,
    "f8": Type.FLOAT64,
}  # fmt: skip
#: The names of types in safetensors.
_SAFETENSORS: dict[str, Type] = {
    "F64": Type.FLOAT64, "F32": Type.FLOAT32, "F16": Type.FLOAT16, "BF16": Type.BFLOAT16, "I64": Type.INT64,
    "I32": Type.INT32, "I16": Type.INT16, "I8": Type.INT8, "U64": Type.UINT64, "U32": Type.UINT32,
    "U16": Type.UINT16, "U8": Type.UINT8, "BOOL": Type.UINT8, "F8_E4M3": Type.UINT8, "F8_E5M2": Type.UINT8,
}  # fmt: skip


def find_npz(source: Source) -> Iterator[Tensor]:
    """The arrays of an archive."""
    with zipfile.ZipFile(source.file) as archive:
        members = archive.infolist()[:_MOST_MEMBERS]
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.header_offset + 30 > source.size:
            continue
        local = source.small(member.header_offset, 30)
        name, extra = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
        start = member.header_offset + 30 + name + extra
        end = start + member.file_size
        if end <= source.size:
            yield from _npy(source, start, end, member.filename.removesuffix(".npy"))


def find_npy(source: Source) -> Iterator[Tensor]:
    """The array of a file."""
    yield from _npy(source, 0, source.size, "array")


def find_safetensors(source: Source) -> Iterator[Tensor]:
    """The tensors of a file: 8 bytes with the size of the index, the index in JSON, data."""
    size = source.number(0, 8)
    if not 2 <= size <= min(source.size - 8, _LONGEST_INDEX):
        raise NotUnderstoodError("no index")
    index = json.loads(source.read(8, size))
    for name, entry in index.items():
        if name == "__metadata__" or entry["dtype"] not in _SAFETENSORS:
            continue
        start, end = entry["data_offsets"]
        shape = tuple(int(dimension) for dimension in entry["shape"])
        if not 0 <= start <= end <= source.size - 8 - size or any(d < 0 for d in shape):
            raise NotUnderstoodError("a tensor goes beyond the file")
        found = typed(name, 8 + size + start, end - start, _SAFETENSORS[entry["dtype"]], shape)
        if found is not None:
            yield found


def _npy(source: Source, start: int, end: int, name: str) -> Iterator[Tensor]:
    """An array in numpy's format (NEP 1), of plain little-endian numbers."""
    if end - start < 12 or source.small(start, 6) != NPY:
        return
    wide = source.byte(start + 6) > 1
    size = source.number(start + 8, 4 if wide else 2)
    start += 12 if wide else 10
    if size > min(_LONGEST_HEADER, end - start):
        return
    header = ast.literal_eval(source.read(start, size).decode("latin-1").strip())
    kind = header["descr"]
    if not isinstance(kind, str) or kind[:1] not in "<|" or kind[1:] not in _NUMPY:
        return
    shape = tuple(int(dimension) for dimension in header["shape"])
    found = typed(
        name, start + size, end - start - size, _NUMPY[kind[1:]], shape[::-1] if header["fortran_order"] else shape
    )
    if found is not None:
        yield found
