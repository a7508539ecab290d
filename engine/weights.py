"""Getting weights in and out of model files, and choosing among them.

Strategy: values are read and replaced in the serialized model at their byte offsets by a small reader of the protobuf
wire format, so that a training process needs no `onnx`. In a quantized model the integers are the weights
(`quantized.py`); what they stand for is what callers see, float32 as for any model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .adapters import Adapted
from .errors import DataError, EngineError, ModelError
from .plan import Quantization
from .quantized import IntegerArray, dequantize, quantize

FloatArray = npt.NDArray[np.float32]

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 7, 5, 1, 2, 8, 9
_PIECE = 1 << 16
_LAST = re.compile("last(?:-([1-9][0-9]{0,5}))?")
#: Element types of weights, by their number in ONNX.
KINDS = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32"}


class Place(NamedTuple):
    """Where the values of an initializer lie in a serialized model."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


def choose_trainable(
    trainable: str | Sequence[str],
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    last: Callable[[int], Collection[str]],
) -> list[str]:
    """The weights to train: "all", "last" or "last-3" (those of the last layers), "bias" (rank 1), or patterns.

    `last(k)` are the weights from the k-th last layer on. Raises EngineError when nothing is left.
    """
    if trainable == "all":
        chosen = list(names)
    elif isinstance(trainable, str) and (count := _LAST.fullmatch(trainable)):
        among = last(int(count[1] or 1))
        chosen = [n for n in names if n in among]
    elif trainable == "bias":
        chosen = [n for n in names if len(shapes[n]) <= 1]
    elif isinstance(trainable, str):
        raise EngineError(f'trainable={trainable!r}: use "all", "last", "last-3", "bias" or a list of name patterns')
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


def raw_tensors(model: bytes | memoryview) -> dict[str, Place]:
    """The initializers stored as raw bytes whose element types weights may have. Raises ModelError."""
    view = memoryview(model)
    found: dict[str, Place] = {}
    try:
        for number, _, start, stop in _fields(view, 0, len(view)):
            if number != _MODEL_GRAPH:
                continue
            for inner, _, tensor, tensor_end in _fields(view, start, stop):
                if inner == _GRAPH_INITIALIZER:
                    entry = _raw_tensor(view, tensor, tensor_end)
                    if entry is not None:
                        found[entry[0]] = entry[1]
    except (ValueError, IndexError) as error:
        raise ModelError("the model's bytes are damaged") from error
    return found


def _raw_tensor(view: memoryview, start: int, end: int) -> tuple[str, Place] | None:
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
    if raw is None or kind not in KINDS:
        return None
    size = np.dtype(KINDS[kind]).itemsize
    for length in dims:
        size *= length
    return (name, Place(raw[0], KINDS[kind], tuple(dims))) if raw[1] - raw[0] == size else None


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
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"weight {name!r} is no array: {error}") from error
        if array.shape != tuple(shapes[name]):
            raise DataError(f"weight {name!r} has shape {list(shapes[name])}, given {list(array.shape)}")
        if array.dtype.kind not in "fiu" or not _finite(array):
            raise DataError(f"weight {name!r}: the values given are not finite numbers")


def _finite(array: npt.NDArray[Any]) -> bool:
    """Whether all numbers are finite, looked at in pieces so that little memory is needed."""
    flat = array.reshape(-1)
    with np.errstate(over="ignore"):  # beyond float32 is infinite as well
        return all(
            np.isfinite(flat[i : i + _PIECE].astype(np.float32, copy=False)).all() for i in range(0, flat.size, _PIECE)
        )


def patched(
    model: bytes | memoryview,
    weights: Mapping[str, FloatArray | IntegerArray],
    quantized: Mapping[str, Quantization] | None = None,
    places: Mapping[str, Place] | None = None,
) -> Iterator[memoryview]:
    """The model with these values in place of its initializers of the same names, in pieces without copies of it.

    `places`: `raw_tensors` of the model where they are known: looking for them touches all of it. Raises DataError,
    ModelError.

    An array of the initializer's own element type is written as it is. Real values for one of integers become the
    nearest integers, as `quantized` says.
    """
    places = raw_tensors(model) if places is None else places
    shapes = {n: place.shape for n, place in places.items()}
    view, done = memoryview(model), 0
    for name in sorted(weights, key=lambda n: places[n].offset if n in places else -1):
        value = weights[name]
        place = places.get(name)
        if isinstance(value, Adapted) and place is not None and place[1:] == ("float32", value.shape):
            yield view[done : place.offset]
            for rows in value.rows():
                check_weights({name: rows}, {name: rows.shape})
                yield np.ascontiguousarray(rows, "<f4").reshape(-1).view(np.uint8).data
            done = place.offset + value.weight.nbytes
            continue
        array = np.asarray(value)
        check_weights({name: array}, shapes)
        place = places[name]
        if array.dtype != place.dtype and place.dtype != "float32":
            how = (quantized or {}).get(name)
            if how is None:
                raise DataError(f"weight {name!r} is made of {place.dtype}, given {array.dtype}")
            array = quantize(array, how, view_weights(model, [name])[name])
        data = np.ascontiguousarray(array, np.dtype(place.dtype).newbyteorder("<"))
        yield view[done : place.offset]
        yield data.reshape(-1).view(np.uint8).data
        done = place.offset + data.nbytes
    yield view[done:]


def patch(
    model: bytes, weights: Mapping[str, FloatArray | IntegerArray], quantized: Mapping[str, Quantization] | None = None
) -> bytes:
    """The model with these values in place of its initializers of the same names. Raises as `patched`."""
    return b"".join(patched(model, weights, quantized))


def view_weights(model: bytes | memoryview, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read-only views of weights inside a serialized model (no copy), integers as they are. Raises ModelError."""
    places = raw_tensors(model)
    result = {}
    for name in names:
        if name not in places:
            raise ModelError(f"weight {name!r} is not in the model")
        offset, dtype, shape = places[name]
        count = int(np.prod(shape, dtype=np.int64))
        result[name] = np.frombuffer(model, np.dtype(dtype).newbyteorder("<"), count, offset).reshape(shape)
    return result


def real_values(arrays: Mapping[str, npt.NDArray[Any]], quantized: Mapping[str, Quantization]) -> dict[str, FloatArray]:
    """Copies of weights as float32: what the integers stand for, and other weights as they are."""
    return {n: dequantize(a, quantized[n]) if n in quantized else a.astype(np.float32) for n, a in arrays.items()}


def read_weights(model: str | Path | bytes) -> dict[str, FloatArray]:
    """The trainable tensors of a model: {initializer name: float32 array}, of integers what they stand for.

    Needs `onnx`. Raises ModelError.
    """
    from .integers import quantizations
    from .onnxio import load_model, normalize
    from .slots import weight_names

    proto = normalize(*load_model(model))
    names = weight_names(proto)
    return real_values(view_weights(proto.SerializeToString(), names), quantizations(proto, names))


def export_model(model: str | Path | bytes, weights: Mapping[str, FloatArray]) -> bytes:
    """An inference model with these weights in place of its own (names as from `read_weights`).

    Integer weights take the nearest values that they can stand for; those that were read come back exactly. Needs
    `onnx` unless the model was written by this package and has float32 weights. Raises ModelError, DataError.
    """
    data = model if isinstance(model, bytes) else None
    if data is not None:
        places = raw_tensors(data)
        if all(name in places and places[name].dtype == "float32" for name in weights):
            return patch(data, weights)
    from .integers import quantizations
    from .onnxio import load_model, normalize

    proto = normalize(*load_model(model))
    return patch(proto.SerializeToString(), weights, quantizations(proto, weights))
