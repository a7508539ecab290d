"""Which constants of a model are weights, and getting them in and out of model files.

Strategy: a constant is a weight if an operator takes it in a slot where learned values belong (a table), directly or
through operators that only move elements. Values are read and replaced in the serialized model at their byte offsets
by a small reader of the protobuf wire format, so that a training process needs no `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .errors import DataError, EngineError, ModelError

if TYPE_CHECKING:
    import onnx

FloatArray = npt.NDArray[np.float32]

#: Operator -> inputs that hold learned values.
SLOTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "Gather": (0,), "PRelu": (1,),
    "BatchNormalization": (1, 2), "LayerNormalization": (1, 2), "Add": (0, 1), "Mul": (0, 1),
}  # fmt: skip
#: Where a single number is a setting of a formula, not something learned.
_MANY_ONLY = ("Add", "Mul")
_MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 7, 5, 1, 2, 8, 9
_FLOAT = 1


def weight_names(proto: onnx.ModelProto) -> list[str]:
    """The weights of a normalized model, in the order of the file."""
    sizes = {t.name: int(np.prod(t.dims, dtype=np.int64)) for t in proto.graph.initializer if t.data_type == _FLOAT}
    origin = {name: name for name in sizes}
    found: set[str] = set()
    for node in proto.graph.node:
        if node.op_type in _MOVES and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        for slot in SLOTS.get(node.op_type, ()):
            if slot < len(node.input) and node.input[slot] in origin:
                name = origin[node.input[slot]]
                if sizes[name] > 1 or node.op_type not in _MANY_ONLY:
                    found.add(name)
    return [name for name in sizes if name in found]


def choose_trainable(
    trainable: str | Sequence[str], names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], last: Sequence[str]
) -> list[str]:
    """The weights to train: "all", "last" (those of the last weighted operator), "bias" (rank 1), or patterns.

    Raises EngineError when nothing is left.
    """
    if trainable == "all":
        chosen = list(names)
    elif trainable == "last":
        chosen = [n for n in names if n in last]
    elif trainable == "bias":
        chosen = [n for n in names if len(shapes[n]) <= 1]
    elif isinstance(trainable, str):
        raise EngineError(f'trainable={trainable!r}: use "all", "last", "bias" or a list of name patterns')
    else:
        for pattern in trainable:
            if not any(fnmatchcase(n, pattern) for n in names):
                raise EngineError(f"trainable: no weight matches {pattern!r}; the weights are {', '.join(names)}")
        chosen = [n for n in names if any(fnmatchcase(n, p) for p in trainable)]
    if not chosen:
        raise EngineError(f"trainable={trainable!r} leaves nothing to train; the weights are {', '.join(names)}")
    return chosen


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, varint value or 0, start, end) of each field of a protobuf message."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
            if shift > 63:
                raise ValueError("varint")

    while start < end:
        key, start = varint(start)
        kind = key & 7
        value, stop = 0, start
        if kind == 0:
            value, stop = varint(start)
        elif kind == 2:
            length, start = varint(start)
            stop = start + length
        elif kind in (1, 5):
            stop = start + (8 if kind == 1 else 4)
        else:
            raise ValueError("wire type")
        if stop > end:
            raise ValueError("length")
        yield key >> 3, value, start, stop
        start = stop


def raw_tensors(model: bytes) -> dict[str, tuple[int, tuple[int, ...]]]:
    """The float32 initializers stored as raw bytes: {name: (byte offset, shape)}. Raises ModelError."""
    view = memoryview(model)
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    try:
        for number, _, start, stop in _fields(view, 0, len(view)):
            if number != _MODEL_GRAPH:
                continue
            for inner, _, tensor, tensor_end in _fields(view, start, stop):
                if inner == _GRAPH_INITIALIZER:
                    entry = _raw_tensor(view, tensor, tensor_end)
                    if entry is not None:
                        found[entry[0]] = entry[1:]
    except (ValueError, IndexError) as error:
        raise ModelError("the model's bytes are damaged") from error
    return found


def _raw_tensor(view: memoryview, start: int, end: int) -> tuple[str, int, tuple[int, ...]] | None:
    name, kind, raw = "", 0, None
    dims: list[int] = []
    for number, value, begin, stop in _fields(view, start, end):
        if number == _TENSOR_NAME:
            name = bytes(view[begin:stop]).decode()
        elif number == _TENSOR_TYPE:
            kind = value
        elif number == _TENSOR_RAW:
            raw = (begin, stop)
        elif number == _TENSOR_DIMS:
            # packed (a length-delimited run of varints) or one at a time
            dims += _packed(view, begin, stop) if value == 0 and stop - begin > 0 else [value]
    size = 4
    for length in dims:
        size *= length
    if raw is None or kind != _FLOAT or raw[1] - raw[0] != size:
        return None
    return name, raw[0], tuple(dims)


def _packed(view: memoryview, start: int, end: int) -> list[int]:
    values, value, shift = [], 0, 0
    for byte in view[start:end]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value = shift = 0
    return values


def check_weights(given: Mapping[str, FloatArray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise DataError unless every given array is a finite array of a weight's shape."""
    for name, value in given.items():
        if name not in shapes:
            raise DataError(f"there is no weight {name!r}; the weights are {', '.join(shapes)}")
        array = np.asarray(value)
        if array.shape != tuple(shapes[name]):
            raise DataError(f"weight {name!r} has shape {list(shapes[name])}, given {list(array.shape)}")
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise DataError(f"weight {name!r}: the values given are not finite numbers")


def patch(model: bytes, weights: Mapping[str, FloatArray]) -> bytes:
    """The model with these values in place of its initializers of the same names. Raises DataError, ModelError."""
    places = raw_tensors(model)
    check_weights(weights, {n: shape for n, (_, shape) in places.items()})
    result = bytearray(model)
    for name, value in weights.items():
        data = np.ascontiguousarray(value, "<f4").tobytes()
        offset = places[name][0]
        result[offset : offset + len(data)] = data
    return bytes(result)


def view_weights(model: bytes, names: Sequence[str]) -> dict[str, FloatArray]:
    """Read-only views of weights inside a serialized model (no copy). Raises ModelError."""
    places = raw_tensors(model)
    result = {}
    for name in names:
        if name not in places:
            raise ModelError(f"weight {name!r} is not in the model")
        offset, shape = places[name]
        count = int(np.prod(shape, dtype=np.int64))
        result[name] = np.frombuffer(model, "<f4", count, offset).reshape(shape)
    return result


def read_weights(model: str | Path | bytes) -> dict[str, FloatArray]:
    """The trainable tensors of a model: {initializer name: float32 array}. Needs `onnx`. Raises ModelError."""
    from .onnxio import load_model, normalize

    proto = normalize(*load_model(model))
    return {n: v.copy() for n, v in view_weights(proto.SerializeToString(), weight_names(proto)).items()}


def export_model(model: str | Path | bytes, weights: Mapping[str, FloatArray]) -> bytes:
    """An inference model with these weights in place of its own (names as from `read_weights`).

    Needs `onnx` unless the model was written by this package. Raises ModelError, DataError.
    """
    data = model if isinstance(model, bytes) else None
    if data is not None and all(name in raw_tensors(data) for name in weights):
        return patch(data, weights)
    from .onnxio import load_model, normalize

    return patch(normalize(*load_model(model)).SerializeToString(), weights)
