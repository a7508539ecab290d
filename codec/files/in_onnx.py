"""Tensors of an ONNX model, wherever they are: initializers, constants, branches, functions.

A model is a protocol buffer (onnx.proto, release 1.20); the walk follows only the fields that lead to tensors, so it
needs no library and reads little of a large file.
"""

from __future__ import annotations

from collections.abc import Iterator

from .protobuf import NotUnderstoodError, fields, varint
from .source import Source
from .tensors import Tensor, Type, typed

#: Graphs within graphs (the branches of If, the body of Loop) are followed this deep.
_DEEPEST = 64
#: Bytes of a name that is read, and dimensions.
_LONGEST_NAME, _MOST_DIMENSIONS = 512, 32

#: Message -> field number -> message in that field, along all paths from a model to its tensors.
_INNER: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Function": {7: "Node"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
}
#: TensorProto.DataType -> how raw data lies. Types that are not here (strings) are left alone.
_RAW: dict[int, Type] = {
    1: Type.FLOAT32, 2: Type.UINT8, 3: Type.INT8, 4: Type.UINT16, 5: Type.INT16, 6: Type.INT32, 7: Type.INT64,
    9: Type.UINT8, 10: Type.FLOAT16, 11: Type.FLOAT64, 12: Type.UINT32, 13: Type.UINT64, 14: Type.FLOAT32,
    15: Type.FLOAT64, 16: Type.BFLOAT16, 17: Type.UINT8, 18: Type.UINT8, 19: Type.UINT8, 20: Type.UINT8,
    21: Type.UINT4, 22: Type.INT4, 23: Type.UINT4, 24: Type.UINT8,
}  # fmt: skip
#: TensorProto's fields of numbers: float_data, int32_data, int64_data, double_data, uint64_data.
_LISTS = {4: Type.FLOAT32, 5: Type.VARINT, 7: Type.VARINT, 10: Type.FLOAT64, 11: Type.VARINT}
_COMPLEX = (14, 15)
_EXTERNAL = 1


def find(source: Source) -> Iterator[Tensor]:
    """The tensors of a model, in the order of the file; `NotUnderstoodError` if it is none."""
    yield from _walk(source, 0, source.size, "Model", "", 0)


def external_files(source: Source) -> list[str]:
    """The other files in which tensors of a model lie; none if it is no model or complete by itself."""
    found: dict[str, None] = {}
    try:
        for start, end in _external(source, 0, source.size, "Model", 0):
            key = value = ""
            for field, _, at, size in fields(source, start, end):
                text = source.small(at, min(size, _LONGEST_NAME)).decode(errors="replace")
                key, value = (text, value) if field == 1 else (key, text if field == 2 else value)
            if key == "location":
                found[value] = None
    except NotUnderstoodError:
        return []
    return list(found)


def _walk(source: Source, at: int, end: int, message: str, name: str, depth: int) -> Iterator[Tensor]:
    if depth > _DEEPEST:
        raise NotUnderstoodError("messages are nested too deeply")
    if message == "Tensor":
        yield from _tensor(source, at, end, name)
        return
    inner = _INNER[message]
    for field, _, start, size in fields(source, at, end):
        if message == "Node" and field == 2:  # a constant is known by its output
            name = _text(source, start, size)
        if field in inner:
            yield from _walk(source, start, start + size, inner[field], name, depth + 1)


def _external(source: Source, at: int, end: int, message: str, depth: int) -> Iterator[tuple[int, int]]:
    if depth > _DEEPEST:
        raise NotUnderstoodError("messages are nested too deeply")
    if message == "Tensor":
        found = list(fields(source, at, end))
        if any(field == 14 and value == _EXTERNAL for field, value, _, _ in found):
            yield from ((start, start + size) for field, _, start, size in found if field == 13)
        return
    inner = _INNER[message]
    for field, _, start, size in fields(source, at, end):
        if field in inner:
            yield from _external(source, start, start + size, inner[field], depth + 1)


def _tensor(source: Source, at: int, end: int, name: str) -> Iterator[Tensor]:
    kind, dimensions = 0, list[int]()
    data: list[tuple[Type | None, int, int]] = []
    for field, value, start, size in fields(source, at, end):
        if field == 1:
            dimensions += _packed(source, start, size) if size else [value]
        elif field == 2:
            kind = value
        elif field == 8 and size:
            name = _text(source, start, size)
        elif field == 9:
            data.append((None, start, size))
        elif field in _LISTS:
            data.append((_LISTS[field], start, size))
    if len(dimensions) > _MOST_DIMENSIONS or kind not in _RAW:
        return
    if kind in _COMPLEX:
        dimensions.append(2)
    if any(dimension >= 1 << 63 for dimension in dimensions):
        raise NotUnderstoodError("a dimension is negative")
    for listed, start, size in data:
        if size:
            found = typed(name, start, size, _RAW[kind] if listed is None else listed, tuple(dimensions))
            if found is not None:
                yield found


def _packed(source: Source, at: int, size: int) -> Iterator[int]:
    end = at + size
    for _ in range(_MOST_DIMENSIONS + 1):
        if at >= end:
            return
        value, at = varint(source, at, end)
        yield value


def _text(source: Source, at: int, size: int) -> str:
    return source.small(at, min(size, _LONGEST_NAME)).decode(errors="replace")
