"""Blobs of every kind that the codec makes, each small: what damage is done to.

Strategy: everything goes through the public functions, so blobs follow the format wherever it goes. Contents are drawn
to reach every way of coding: dense, sparse, repeated, constant, tiny and large values, many small arrays, and enough
elements for lanes that are decoded together. Sizes are from a few bytes to about 10 KB.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from sanderling.codec import encode_delta, encode_integers, make_patch, pack_file

F32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[np.generic]]


def blobs(seed: int = 0) -> dict[str, bytes]:
    """Name -> blob; a name says what is in it."""
    return dict([*_integers(seed), *_deltas(seed), *_files(seed), *_patches(seed)])


def _integers(seed: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    rows, columns = rng.standard_normal((40, 1)), rng.standard_normal((1, 60))
    codebook = rng.integers(-128, 128, 31).astype(np.int8)
    sets: dict[str, Arrays] = {
        "none": {},
        "empty": {"a": np.zeros((0, 4), np.int32), "b": np.zeros((3, 0, 2), np.uint8)},
        "scalars": {f"s{i}": np.array(rng.integers(-(2 ** (8 * i)), 2 ** (8 * i)), np.int64) for i in range(1, 8)},
        "constant": {"c": np.full((30, 40), 7, np.int16), "z": np.zeros((100, 300), np.int8)},
        "dense": {"w": rng.normal(0, 20, (60, 70)).clip(-128, 127).astype(np.int8)},
        "small": {"w": rng.integers(-1, 2, (70, 50)).astype(np.int8), "t": rng.integers(0, 2, 900).astype(bool)},
        "sparse": {"w": (rng.integers(-2, 3, (90, 100)) * (rng.random((90, 100)) < 0.05)).astype(np.int8)},
        "very sparse": {"w": (rng.integers(-9, 9, 20000) * (rng.random(20000) < 0.003)).astype(np.int32)},
        "structured": {"w": np.rint(3 * rows * columns + rng.standard_normal((40, 60)) / 4).astype(np.int16)},
        "empty rows": {"w": np.rint(2 * rows * columns * (rng.random((40, 1)) < 0.3)).astype(np.int8)},
        "shared": {"w": codebook[rng.integers(0, 31, (50, 60))]},
        "wide": {"w": rng.integers(-(2**62), 2**62, 300), "u": rng.integers(0, 2**63, 90).astype(np.uint64)},
        "far": {"w": (rng.integers(0, 50, 500) + 2**40), "v": rng.integers(0, 9, 500).astype(np.uint16)},
        "lanes": {"w": np.rint(rng.laplace(0, 0.3, (150, 200))).astype(np.int8)},
        "large": {"w": rng.normal(0, 30, (90, 104)).clip(-128, 127).astype(np.int8)},
        "convolution": {"w": np.rint(rng.laplace(0, 0.6, (24, 16, 3, 3))).astype(np.int8)},
        "many": {f"layer.{i}.weight": rng.integers(-3, 4, (i % 5 + 1, 7)).astype(np.int8) for i in range(60)},
    }
    for name, arrays in sets.items():
        yield f"integers, {name}", encode_integers(arrays)


def _network(rng: np.random.Generator) -> dict[str, F32]:
    """A change of a small network: close to rank one, as changes by gradients are, plus noise."""
    shapes: dict[str, tuple[int, ...]] = {"stem.weight": (16, 6, 5), "block0.depthwise.weight": (16, 1, 7)}
    shapes |= {"block0.pointwise.weight": (24, 16, 1), "hidden.weight": (40, 96), "head.weight": (7, 40)}
    result: dict[str, F32] = {}
    for name, shape in shapes.items():
        rows = rng.standard_normal((shape[0],) + (1,) * (len(shape) - 1))
        columns = rng.standard_normal((1, *shape[1:]))
        result[name] = (1e-3 * (rows * columns + 0.3 * rng.standard_normal(shape))).astype(np.float32)
        result[name.replace("weight", "bias")] = (1e-3 * rng.standard_normal(shape[0])).astype(np.float32)
    return result


def _deltas(seed: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed + 1)
    residual: dict[str, F32] | None = None
    for quality in (0.3, 0.6, 0.9, 0.99):
        blob, residual = encode_delta(_network(rng), residual, quality)
        yield f"delta, {quality}", blob
    extreme = {"large": np.array([2.0**119, -1, 0], np.float32), "tiny": np.array([1e-45, 0], np.float32)}
    yield "delta, extreme", encode_delta(extreme | {"none": np.zeros((0, 3), np.float32)})[0]
    yield "delta, zero", encode_delta({"w": np.zeros((100, 150), np.float32)})[0]


def _files(seed: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed + 2)
    made: dict[str, Callable[[np.random.Generator], bytes]] = {
        "m.onnx": onnx_file,
        "m.tflite": tflite_file,
        "m.npz": npz_file,
        "plain.txt": lambda rng: b"plain",
        "words.txt": lambda rng: b"words and words and more words, " * 40,
        "noise.bin": lambda rng: rng.bytes(600),
    }
    for name, make in made.items():
        yield f"file, {name}", pack_file(make(rng), name)


def old_file() -> bytes:
    """The file that all patches start from."""
    return onnx_file(np.random.default_rng(99))


def _patches(seed: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed + 3)
    old = old_file()
    tuned = onnx.load_from_string(old)
    for tensor in tuned.graph.initializer:
        value = numpy_helper.to_array(tensor)
        change = rng.standard_normal(value.shape) * (0.001 if value.dtype.kind == "f" else 0.6)
        tensor.CopyFrom(numpy_helper.from_array((value + change).astype(value.dtype), tensor.name))
    new = tuned.SerializeToString()
    yield "patch, exact", make_patch(old, new, "m.onnx")
    yield "patch, lossy", make_patch(old, new, "m.onnx", 0.9)
    yield "patch, other structure", make_patch(old, old[: len(old) // 2] + b"more" + old[len(old) // 2 :], "m.onnx")
    yield "patch, other format", make_patch(old, npz_file(rng), "m.npz")
    yield "patch, none", make_patch(old, old, "m.onnx")


def delta_target() -> dict[str, npt.NDArray[np.float64]]:
    """Zeros, to which the deltas of a network may be added."""
    return {name: np.zeros(value.shape) for name, value in _network(np.random.default_rng(0)).items()}


def onnx_file(rng: np.random.Generator) -> bytes:
    """A model with tensors of several types, one of them repeated values, and a Constant."""
    tensors: dict[str, npt.NDArray[Any]] = {
        "weight": rng.normal(0, 0.1, (32, 24)).astype(np.float32),
        "half": rng.normal(0, 0.1, 300).astype(np.float16),
        "quantized": rng.normal(0, 25, (30, 30)).clip(-128, 127).astype(np.int8),
        "shared": rng.standard_normal(16).astype(np.float32)[rng.integers(0, 16, (30, 20))],
        "shape": np.array([1, -1, 24], np.int64),
    }
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(tensors["half"], "k"))
    node = helper.make_node("Gemm", ["x", "weight"], ["y"], name="first")
    graph = helper.make_graph(
        [constant, node], "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 24])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return data


def tflite_file(rng: np.random.Generator) -> bytes:
    """A TensorFlow Lite model as far as its tensors go: one float32, one int8, each with a buffer of its own."""
    values: list[npt.NDArray[np.generic]] = [
        np.zeros(0, np.int8),  # buffer 0 is empty by convention
        rng.normal(0, 0.1, (20, 30)).astype(np.float32),
        rng.normal(0, 25, (40, 30)).clip(-128, 127).astype(np.int8),
    ]
    b = flatbuffers.Builder(1 << 14)
    buffers = []
    for value in values:
        data = b.CreateByteVector(value.tobytes())
        b.StartObject(1)
        b.PrependUOffsetTRelativeSlot(0, data, 0)
        buffers.append(b.EndObject())
    tensors = []
    for number, kind in ((1, 0), (2, 9)):  # TensorType: FLOAT32 is 0, INT8 is 9
        name, shape = b.CreateString(f"tensor{number}"), b.CreateNumpyVector(np.array(values[number].shape, np.int32))
        b.StartObject(4)
        b.PrependUOffsetTRelativeSlot(0, shape, 0)
        b.PrependInt8Slot(1, kind, 0)
        b.PrependUint32Slot(2, number, 0)
        b.PrependUOffsetTRelativeSlot(3, name, 0)
        tensors.append(b.EndObject())
    graph_tensors = _vector(b, tensors)
    b.StartObject(1)
    b.PrependUOffsetTRelativeSlot(0, graph_tensors, 0)
    graphs = _vector(b, [b.EndObject()])
    all_buffers = _vector(b, buffers)
    b.StartObject(5)
    b.PrependUint32Slot(0, 3, 0)
    b.PrependUOffsetTRelativeSlot(2, graphs, 0)
    b.PrependUOffsetTRelativeSlot(4, all_buffers, 0)
    b.Finish(b.EndObject(), file_identifier=b"TFL3")
    return bytes(b.Output())


def _vector(builder: flatbuffers.Builder, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    end: int = builder.EndVector()
    return end


def npz_file(rng: np.random.Generator) -> bytes:
    """An archive of arrays that is not compressed."""
    file = io.BytesIO()
    np.savez(file, labels=rng.integers(0, 9, (20, 30)), weights=rng.standard_normal((20, 30)).astype(np.float32))
    return file.getvalue()
