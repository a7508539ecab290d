"""Tensors are found where they are, in every format, and damaged files have fewer of them but never an error."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable

import flatbuffers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sanderling.codec.files import in_onnx, in_tflite, protobuf
from sanderling.codec.files.find import find, format_name
from sanderling.codec.files.source import Source
from sanderling.codec.files.tensors import Type

Found = tuple[str, Type, tuple[int, ...], bytes]


def found(data: bytes, smallest: int = 1) -> list[Found]:
    source = Source(data)
    tensors = find(source, smallest)
    end = 0
    for tensor in tensors:
        assert end <= tensor.start and tensor.size > 0 and tensor.end <= len(data)
        end = tensor.end
    return [(t.name, t.type, t.shape, source.read(t.start, t.size)) for t in tensors]


def onnx_model() -> bytes:
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((3, 4, 2)).astype(np.float32)
    constant = helper.make_node("Constant", [], ["k"], value=helper.make_tensor("", 7, [2], [1, 2]))
    branch = helper.make_graph([constant], "b", [], [], initializer=[numpy_helper.from_array(weights[0], "inner")])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=helper.make_graph([], "e", [], []))
    tensors = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(weights.astype(np.float16), "h"),
        helper.make_tensor("f", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0]),
        helper.make_tensor("i", TensorProto.INT8, [3], [-1, 0, 127]),
        helper.make_tensor("n", TensorProto.UINT4, [3], [1, 2, 3]),
    ]
    data: bytes = helper.make_model(helper.make_graph([choice], "g", [], [], initializer=tensors)).SerializeToString()
    return data


def test_onnx() -> None:
    by_name = {name: (type, shape, data) for name, type, shape, data in found(onnx_model())}
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((3, 4, 2)).astype(np.float32)
    assert by_name == {
        "k": (Type.VARINT, (2,), b"\1\2"),
        "inner": (Type.FLOAT32, (4, 2), weights[0].tobytes()),
        "w": (Type.FLOAT32, (3, 4, 2), weights.tobytes()),
        "h": (Type.FLOAT16, (3, 4, 2), weights.astype(np.float16).tobytes()),
        "f": (Type.FLOAT32, (2, 2), np.array([1, 2, 3, 4], "<f4").tobytes()),
        "i": (Type.VARINT, (3,), b"\xff" * 9 + b"\1\0\x7f"),
        "n": (Type.VARINT, (3,), b"\x21\3"),
    }
    assert format_name(Source(onnx_model())) == "ONNX"


def test_weights_in_other_files_are_named() -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.data"), ("offset", "0")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    model = helper.make_model(helper.make_graph([], "g", [], [], initializer=[tensor, tensor]))
    assert in_onnx.external_files(Source(model.SerializeToString())) == ["w.data"]
    assert in_onnx.external_files(Source(onnx_model())) == []
    assert in_onnx.external_files(Source(b"\xff" * 9)) == []


def tflite_model(tensors: list[tuple[str, int, list[int], bytes]], outside: bool = False) -> bytes:
    """A model of one graph; with `outside`, data stand after the FlatBuffer, as in models beyond 2 GB."""
    builder = flatbuffers.Builder(0)

    def vector(items: list[int]) -> int:
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return int(builder.EndVector())

    buffers = []
    for index, (_, _, _, data) in enumerate([("", 0, [], b""), *tensors]):
        content = builder.CreateByteVector(data) if data and not outside else 0
        builder.StartObject(3)
        if content:
            builder.PrependUOffsetTRelativeSlot(0, content, 0)
        elif data:
            builder.PrependUint64Slot(1, 1 << 20 | index << 10, 0)
            builder.PrependUint64Slot(2, len(data), 0)
        buffers.append(builder.EndObject())
    tables = []
    for index, (name, kind, shape, _) in enumerate(tensors, 1):
        text = builder.CreateString(name)
        builder.StartVector(4, len(shape), 4)
        for size in reversed(shape):
            builder.PrependInt32(size)
        dimensions = builder.EndVector()
        builder.StartObject(8)
        builder.PrependUOffsetTRelativeSlot(0, dimensions, 0)
        builder.PrependInt8Slot(1, kind, 0)
        builder.PrependUint32Slot(2, index, 0)
        builder.PrependUOffsetTRelativeSlot(3, text, 0)
        tables.append(builder.EndObject())
    listed = vector(tables)
    builder.StartObject(5)
    builder.PrependUOffsetTRelativeSlot(0, listed, 0)
    graph = vector([builder.EndObject()])
    listed = vector(buffers)
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(2, graph, 0)
    builder.PrependUOffsetTRelativeSlot(4, listed, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TFL3")
    result = bytearray(builder.Output())
    for index, (_, _, _, data) in enumerate(tensors, 1):
        if outside:
            at = 1 << 20 | index << 10
            result.extend(bytes(at - len(result)) + data)
    return bytes(result)


TFLITE = [
    ("conv", 9, [4, 3, 3, 2], bytes(range(72))),
    ("depthwise", 9, [1, 3, 3, 8], bytes(range(72, 144))),
    ("bias", 2, [4], bytes(range(16))),
    ("float", 0, [2, 3], bytes(range(24))),
    ("half", 1, [5], bytes(range(10))),
    ("nibbles", 17, [3, 3], bytes(range(5))),
    ("text", 5, [1], b"abc"),
    ("none", 0, [2], b""),
]


@pytest.mark.parametrize("outside", [False, True])
def test_tflite(outside: bool) -> None:
    data = tflite_model(TFLITE, outside)
    assert sorted(found(data)) == sorted(
        [
            ("conv", Type.INT8, (4, 3, 3, 2), bytes(range(72))),
            ("depthwise", Type.INT8, (9, 8), bytes(range(72, 144))),
            ("bias", Type.INT32, (4,), bytes(range(16))),
            ("float", Type.FLOAT32, (2, 3), bytes(range(24))),
            ("half", Type.FLOAT16, (5,), bytes(range(10))),
            ("nibbles", Type.INT4, (3, 3), bytes(range(5))),
        ]
    )
    assert format_name(Source(data)) == "TFLite"


def npz() -> bytes:
    file = io.BytesIO()
    generator = np.random.default_rng(1)
    weights = np.asfortranarray(generator.standard_normal((5, 7)).astype(np.float32))
    np.savez(file, labels=np.arange(40), w=weights, big=np.arange(9, dtype=">i4"), text=np.array("a"), none=np.zeros(0))
    return file.getvalue()


def safetensors() -> bytes:
    index = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "BF16", "shape": [4, 5], "data_offsets": [0, 40]},
        "b": {"dtype": "I64", "shape": [2], "data_offsets": [40, 56]},
    }
    text = json.dumps(index).encode()
    return len(text).to_bytes(8, "little") + text + bytes(range(56))


def test_archives() -> None:
    assert [(name, type, shape) for name, type, shape, _ in found(npz())] == [
        ("labels", Type.INT64, (40,)),
        ("w", Type.FLOAT32, (7, 5)),
    ]
    assert found(safetensors()) == [
        ("w", Type.BFLOAT16, (4, 5), bytes(range(40))),
        ("b", Type.INT64, (2,), bytes(range(40, 56))),
    ]
    file = io.BytesIO()
    np.save(file, np.arange(100, dtype=np.int16).reshape(4, 25))
    assert [(type, shape) for _, type, shape, _ in found(file.getvalue())] == [(Type.INT16, (4, 25))]
    assert [format_name(Source(data)) for data in (npz(), safetensors(), file.getvalue())] == [
        "npz", "safetensors", "npy",
    ]  # fmt: skip


def test_small_tensors_are_left_alone() -> None:
    assert [name for name, *_ in found(onnx_model(), 64)] == ["w"]


@pytest.mark.parametrize("make", [onnx_model, lambda: tflite_model(TFLITE), npz, safetensors])
def test_damaged_files_have_some_tensors_or_none(make: Callable[[], bytes]) -> None:
    data = make()
    source = random.Random(1)
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(source.choice([1, 1, 2, 8])):
            damaged[source.randrange(len(data))] = source.choice([0, 255, source.randrange(256)])
        found(bytes(damaged))
        found(data[: source.randrange(len(data))])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"TFL3", b"PK\3\4", b"\x93NUMPY\1\0", b'{"']))
def test_invented_files(tail: bytes, mark: bytes) -> None:
    found(tail)
    found(mark + tail)
    found(tail[:4].ljust(4, b"\0") + mark + tail)
    found(len(tail).to_bytes(8, "little") + mark + tail)


def test_a_hostile_flatbuffer_takes_no_longer_than_a_large_one() -> None:
    """All graphs are one graph, and all its tensors one tensor: 10^8 tensors in 40 KB."""
    count = 4900
    builder = bytearray(b"\0\0\0\0TFL3")

    def table(fields: dict[int, int]) -> int:
        """A table whose fields are offsets to be filled in."""
        size = 4 + 2 * 8
        builder.extend(size.to_bytes(2, "little") + (4 + 4 * 8).to_bytes(2, "little"))
        builder.extend(b"".join((4 + 4 * i).to_bytes(2, "little") if i in fields else b"\0\0" for i in range(8)))
        at = len(builder)
        builder.extend(size.to_bytes(4, "little", signed=True) + bytes(32))
        return at

    def point(place: int, target: int) -> None:
        builder[place : place + 4] = (target - place).to_bytes(4, "little")

    root, graph, tensor = table({2: 0, 4: 0}), table({0: 0}), table({2: 0})
    for owner, field, target in ((root, 2, graph), (graph, 0, tensor), (root, 4, tensor)):
        point(owner + 4 + 4 * field, len(builder))
        builder.extend(count.to_bytes(4, "little"))
        for _ in range(count):
            builder.extend(bytes(4))
            point(len(builder) - 4, target) if target > len(builder) else None
            builder[-4:] = ((target - len(builder) + 4) & 0xFFFFFFFF).to_bytes(4, "little")
    point(0, root)
    begun = time.process_time()
    assert found(bytes(builder)) == []
    with pytest.raises(protobuf.NotUnderstoodError):
        list(in_tflite.find(Source(bytes(builder))))
    assert time.process_time() - begun < 5


@given(st.lists(st.one_of(st.integers(-3, 300), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=50))
def test_packed_varints(values: list[int]) -> None:
    data = protobuf.pack_varints(np.array(values, np.int64))
    unpacked = protobuf.unpack_varints(data)
    assert unpacked is not None and unpacked.tolist() == values
    at = 0
    for value in values:
        number, at = protobuf.varint(Source(data), at, len(data))
        assert number == value % 2**64
    assert protobuf.unpack_varints(data + b"\x80") is None
    assert protobuf.unpack_varints(data + b"\x80\0") is None
