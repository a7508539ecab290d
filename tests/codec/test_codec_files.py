"""Files come back byte for byte, whatever they are, in the memory that a group takes, and smaller than general coders
make them.
"""

from __future__ import annotations

import io
import lzma
import random
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sanderling.codec import CodecError, CodecLimits
from sanderling.codec.coding.bits import BitReader, BitWriter
from sanderling.codec.files import forms, pack, pieces, sections
from sanderling.codec.files.forms import Form
from sanderling.codec.files.pack import FileOutput, pack_file, pack_stream, unpack_file, unpack_stream
from sanderling.codec.files.pieces import Link, Range
from sanderling.codec.files.source import Source
from sanderling.codec.files.tensors import Type

TYPES = [t for t in Type if t is not Type.VARINT]


def model(seed: int = 0) -> bytes:
    """Weights as raw data, as lists, in a Constant and in a branch; of many types; one tensor twice."""
    generator = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...], dtype: str, scale: float = 20) -> onnx.TensorProto:
        name = f"{dtype}.{'x'.join(map(str, shape))}"
        return numpy_helper.from_array((generator.standard_normal(shape) * scale).astype(dtype), name)

    constant = helper.make_node("Constant", [], ["k"], value=normal((301,), "float32"))
    branch = helper.make_graph([constant], "branch", [], [])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=helper.make_graph([], "else", [], []))
    integers = [int(value) for value in generator.standard_normal(400) * 30]
    tensors = [
        normal((50, 80), "float32"),
        normal((40, 50), "int8"),
        normal((20, 25), "float16"),
        normal((9, 10), "int64"),
        normal((3,), "float32"),
        normal((40,), "float64"),
        helper.make_tensor("list.float", TensorProto.FLOAT, [50], np.linspace(0, 1, 50).tolist()),
        helper.make_tensor("list.int8", TensorProto.INT8, [20, 20], integers),
        helper.make_tensor("list.int64", TensorProto.INT64, [400], [value << 40 for value in integers]),
        helper.make_tensor("int4", TensorProto.INT4, [21, 21], [value % 16 - 8 for value in (integers * 2)[:441]]),
        numpy_helper.from_array(generator.choice(np.linspace(-1, 1, 31), (60, 50)).astype("float32"), "shared"),
    ]
    tensors.append(numpy_helper.from_array(numpy_helper.to_array(tensors[0]), "twin"))
    data: bytes = helper.make_model(helper.make_graph([choice], "g", [], [], initializer=tensors)).SerializeToString()
    return data


def archive() -> bytes:
    generator = np.random.default_rng(1)
    file = io.BytesIO()
    np.savez(
        file,
        labels=generator.integers(0, 9, (40, 50)),
        weights=generator.standard_normal((30, 40)).astype(np.float32),
        halves=generator.standard_normal(70).astype(np.float16),
        big_endian=np.arange(100, dtype=">i4"),
        text=np.array(["a", "bb"]),
        none=np.zeros((0, 3)),
    )
    return file.getvalue()


@pytest.mark.parametrize(("name", "make", "share"), [("m.onnx", model, 0.7), ("a.npz", archive, 0.35)])
def test_models_and_archives_come_back_and_are_smaller(name: str, make: object, share: float) -> None:
    assert callable(make)
    data = make()
    blob = pack_file(data, name)
    assert unpack_file(blob) == (name, data)
    assert len(blob) < share * len(data)
    assert len(blob) < len(lzma.compress(data, preset=9)) and len(blob) < len(zlib.compress(data, 9))


@pytest.mark.parametrize("symbols", [1500, 4000, 20000])
def test_files_of_several_groups_and_blocks(monkeypatch: pytest.MonkeyPatch, symbols: int) -> None:
    monkeypatch.setattr(pieces, "GROUP_SYMBOLS", symbols)
    monkeypatch.setattr(sections, "BLOCK", 700)
    monkeypatch.setattr(pack, "GROUP_SYMBOLS", symbols)
    for data in (model(), archive(), archive() + random.Random(1).randbytes(3000)):
        assert unpack_file(pack_file(data, "f"))[1] == data


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.binary(), st.binary(max_size=300).map(lambda tail: model()[:3000] + tail)))
def test_any_file_comes_back(data: bytes) -> None:
    blob = pack_file(data, "any.bin")
    assert unpack_file(blob) == ("any.bin", data)
    assert len(blob) <= min(len(data), len(zlib.compress(data, 9))) + 40


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_damaged_models_and_archives_are_files_like_any_other(draws: st.DataObject) -> None:
    data = bytearray(archive() if draws.draw(st.booleans()) else model())
    for _ in range(draws.draw(st.integers(1, 4))):
        data[draws.draw(st.integers(0, len(data) - 1))] = draws.draw(st.integers(0, 255))
    assert unpack_file(pack_file(bytes(data), "f"))[1] == data


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0", "x" * 256, "\ud800"])
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(CodecError, match="name"):
        pack_file(b"", name)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_form_restores_what_it_was_made_of(draws: st.DataObject) -> None:
    type = draws.draw(st.sampled_from(TYPES))
    count = draws.draw(st.integers(1, 60))
    half = type in (Type.INT4, Type.UINT4)
    size = (count + 1) // 2 if half else count * type.width
    content = st.one_of(
        st.binary(min_size=size, max_size=size),
        st.binary(min_size=type.width, max_size=type.width).map(lambda item: (item * size)[:size]),
    )
    data, old = draws.draw(content), draws.draw(content)
    piece = Range(0, size, type, (count,), Link.OLD, 0)
    found = [forms.choose(piece, data, old), forms.choose(piece, data, None), forms._planes(Form.PLANES, piece, data)]
    if not half:
        found += [
            forms._difference(piece, data, old),
            forms._planes(Form.EXCLUSIVE, piece, forms._exclusive(data, old)),
        ]
    for parts in found:
        head = BitWriter()
        forms.write(head, piece, parts)
        again = forms.read(BitReader(head.to_bytes()), piece)
        assert (again.form, again.planes, again.palette) == (parts.form, parts.planes, parts.palette)
        assert [array.shape for array in parts.arrays] == forms.shapes(piece, again)
        assert len(parts.raw) == forms.raw_size(piece, again)
        again.arrays, again.raw = [array.reshape(-1) for array in parts.arrays], parts.raw
        assert forms.restore(piece, again, old) == data


def test_shared_weights_become_places_around_zero() -> None:
    generator = np.random.default_rng(3)
    values = np.array([-0.5, -0.25, -0.0, 0.0, 0.125, 3e38], np.float32)
    data = generator.choice(values, (40, 50)).astype("<f4").tobytes()
    parts = forms.choose(Range(0, len(data), Type.FLOAT32, (40, 50)), data, None)
    assert parts.form is Form.PALETTE
    assert sorted(set(parts.arrays[0].reshape(-1).tolist())) == [-3, -2, -1, 0, 1, 2]
    weights = np.frombuffer(data, "<f4").reshape(40, 50)
    assert np.array_equal(parts.arrays[0] == 0, (weights == 0) & ~np.signbit(weights))


def test_noise_is_kept_as_bytes() -> None:
    data = np.random.default_rng(4).standard_normal(20_000).astype("<f4").tobytes()
    parts = forms.choose(Range(0, len(data), Type.FLOAT32, (200, 100)), data, None)
    assert parts.form is Form.PLANES and parts.planes == [True, True, True, False]


def test_general_coders_do_what_they_do_better() -> None:
    """A basis of cosines repeats itself: LZMA finds that, planes of bytes do not."""
    basis = np.cos(2 * np.pi * np.outer(np.arange(64), np.arange(128)) / 64).astype(np.float32)
    graph = helper.make_graph([], "g", [], [], initializer=[numpy_helper.from_array(basis, "basis")])
    data: bytes = helper.make_model(graph).SerializeToString()
    assert len(pack_file(data, "m.onnx")) < 1.02 * len(lzma.compress(data, lzma.FORMAT_ALONE)) < 0.2 * len(data)


def test_blocks_of_noise_cost_a_few_bytes_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "BLOCK", 1 << 16)
    data = random.Random(2).randbytes(200_000)
    blob = pack_file(data, "noise")
    assert unpack_file(blob)[1] == data
    assert len(data) < len(blob) < len(data) + 40


def test_a_file_that_is_too_large_is_refused() -> None:
    with pytest.raises(CodecError, match="file_bytes"):
        pack_file(bytes(9), "f", limits=CodecLimits(file_bytes=8))
    blob = pack_file(bytes(9), "f")
    for limits in (CodecLimits(file_bytes=8), CodecLimits(decoded_bytes=8)):
        with pytest.raises(CodecError):
            if limits.decoded_bytes == 8:
                unpack_file(blob, limits=limits)
            else:
                unpack_stream(io.BytesIO(blob), FileOutput(io.BytesIO()), limits=limits)


def test_memory_is_that_of_a_group_however_large_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = 1 << 16
    for module in (pieces, pack):
        monkeypatch.setattr(module, "GROUP_SYMBOLS", symbols)
    monkeypatch.setattr(sections, "BLOCK", 1 << 16)
    generator = np.random.default_rng(5)
    tensors = [generator.standard_normal((100, 1000)).astype(np.float32) for _ in range(4)]
    path, packed, back = tmp_path / "m.npz", tmp_path / "m.sndl", tmp_path / "m2.npz"
    np.savez(path, *tensors)
    size = path.stat().st_size
    assert size > 20 * symbols
    tracemalloc.start()
    try:
        with path.open("rb") as file, packed.open("wb") as into:
            pack_stream(file, "m.npz", into)
        packing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with packed.open("rb") as file, back.open("w+b") as into:
            unpack_stream(file, FileOutput(into))
        unpacking = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert back.read_bytes() == path.read_bytes()
    assert packing < 130 * symbols + (2 << 20) and unpacking < 100 * symbols + (1 << 20)


def test_sources_read_anywhere() -> None:
    data = random.Random(3).randbytes(100_000)
    source = Source(data)
    assert source.size == len(data)
    for at in (0, 99_999, 16_383, 16_384, 50_000, 7):
        assert source.byte(at) == data[at]
        assert source.small(max(0, at - 9), 9) == data[max(0, at - 9) :][:9]
        assert source.number(min(at, 99_992), 8) == int.from_bytes(data[min(at, 99_992) :][:8], "little")
    with pytest.raises(CodecError, match="cut off"):
        source.read(99_999, 2)
