"""Patches: the new file to the byte, from the old one and little else; refused on any other file."""

from __future__ import annotations

import io
import random
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from sanderling.codec import CodecError, CodecLimits, decode_integers, encode_integers
from sanderling.codec.files import pack, patch, pieces, sections
from sanderling.codec.files.pack import FileOutput, pack_file
from sanderling.codec.files.patch import apply_patch, apply_stream, make_patch

from .test_codec_files import archive, model
from .test_codec_find import TFLITE, tflite_model

VECTORS = Path(__file__).parent.parent / "vectors"


def trained(data: bytes, scale: float, seed: int = 1) -> bytes:
    """The model after a little training: floats of initializers moved by `scale` of their deviation."""
    generator = np.random.default_rng(seed)
    found = onnx.load_from_string(data)
    for tensor in found.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and tensor.raw_data:
            step = generator.standard_normal(array.shape) * scale * array.std()
            tensor.raw_data = (array + step).astype(np.float32).tobytes()
    result: bytes = found.SerializeToString()
    return result


def network(seed: int = 0) -> bytes:
    generator = np.random.default_rng(seed)
    tensors = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), f"layer{i}")
        for i, shape in enumerate([(40, 30), (40,), (30, 40, 3), (7, 40), (7,)])
    ]
    nodes = [helper.make_node("Relu", [f"x{i}"], [f"x{i + 1}"], name=f"relu {i} of a long name") for i in range(30)]
    data: bytes = helper.make_model(helper.make_graph(nodes, "g", [], [], initializer=tensors)).SerializeToString()
    return data


@pytest.mark.parametrize(("scale", "share"), [(0.0, 0.01), (1e-5, 0.45), (1e-3, 0.65), (1e-1, 0.85)])
def test_a_trained_model_comes_back_to_the_bit(scale: float, share: float) -> None:
    old = network()
    new = trained(old, scale)
    found = make_patch(old, new, "new.onnx")
    assert apply_patch(old, found) == ("new.onnx", new)
    assert len(found) < share * len(new)
    assert len(found) < len(pack_file(new, "new.onnx"))


@pytest.mark.parametrize("quality", [0.5, 0.9, 0.99])
def test_with_a_quality_it_comes_back_about(quality: float) -> None:
    old = network()
    new = trained(old, 1e-2)
    found = make_patch(old, new, "new.onnx", quality)
    name, result = apply_patch(old, found)
    assert name == "new.onnx" and result != new and len(found) < 0.25 * len(make_patch(old, new, "new.onnx"))
    arrays = [
        {t.name: numpy_helper.to_array(t).astype(float) for t in onnx.load_from_string(data).graph.initializer}
        for data in (old, new, result)
    ]
    for key, before in arrays[0].items():
        after, about = arrays[1][key], arrays[2][key]
        assert ((after - about) ** 2).sum() <= (1 - quality + 1e-3) * ((after - before) ** 2).sum()
    assert apply_patch(old, make_patch(old, old, "same", quality)) == ("same", old)


def test_what_is_not_finite_is_exact_in_a_lossy_patch_too() -> None:
    def with_values(values: list[float]) -> bytes:
        tensors = [numpy_helper.from_array(np.array(values * 20, np.float32), "w")]
        data: bytes = helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors)).SerializeToString()
        return data

    for values in ([1.0, float("nan")], [float("inf"), 1.0], [3e38, -3e38]):
        old, new = with_values([1.0, -3e38]), with_values(values)
        assert apply_patch(old, make_patch(old, new, "n", 0.9)) == ("n", new)


def test_changes_of_the_structure() -> None:
    old = network()
    found = onnx.load_from_string(trained(old, 1e-3))
    found.graph.node[7].name = "another name"
    found.graph.node.insert(3, helper.make_node("Identity", ["a"], ["b"]))
    del found.graph.initializer[4]
    found.graph.initializer[1].name = "renamed"
    found.graph.initializer.append(numpy_helper.from_array(np.arange(400, dtype=np.int16), "more"))
    new = found.SerializeToString()
    coded = make_patch(old, new, "new.onnx")
    assert apply_patch(old, coded) == ("new.onnx", new)
    assert len(coded) < 0.8 * len(pack_file(new, "new.onnx"))


@pytest.mark.parametrize("outside", [False, True])
def test_tflite(outside: bool) -> None:
    source = random.Random(1)
    tensors = [(name, kind, shape, data and source.randbytes(len(data))) for name, kind, shape, data in TFLITE]
    changed = [
        (name, kind, shape, bytes(b ^ (i % 9 == 0) for i, b in enumerate(data))) for name, kind, shape, data in tensors
    ]
    old, new = tflite_model(tensors, outside), tflite_model(changed, outside)
    found = make_patch(old, new, "n.tflite")
    assert apply_patch(old, found) == ("n.tflite", new)
    assert len(found) < 0.6 * len(pack_file(new, "n.tflite"))
    assert apply_patch(old, make_patch(old, new, "n.tflite", 0.9))[0] == "n.tflite"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_two_files(draws: st.DataObject) -> None:
    files = st.one_of(st.binary(max_size=300), st.sampled_from([model(), model(2), archive(), network()]))
    old, new = draws.draw(files), bytearray(draws.draw(files))
    for _ in range(draws.draw(st.integers(0, 4))):
        at = draws.draw(st.integers(0, len(new)))
        new[at : at + draws.draw(st.integers(0, 9))] = draws.draw(st.binary(max_size=9))
    found = make_patch(old, bytes(new), "n")
    assert apply_patch(old, found) == ("n", bytes(new))
    assert len(found) < 1.02 * len(pack_file(bytes(new), "n")) + 150


def test_several_groups_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pieces, pack, patch):
        monkeypatch.setattr(module, "GROUP_SYMBOLS", 1500)
    monkeypatch.setattr(sections, "BLOCK", 700)
    for old, new in ((model(), trained(model(), 1e-3)), (network(), trained(network(), 0.1)), (model(), model(3))):
        assert apply_patch(old, make_patch(old, new, "n"))[1] == new


def test_a_patch_on_the_wrong_file_is_refused() -> None:
    old, new = network(), trained(network(), 1e-3)
    found = make_patch(old, new, "n")
    for wrong in (new, old + b"\0", old[:-1] + b"x", b""):
        output = io.BytesIO()
        with pytest.raises(CodecError, match=r"another old file.*give the version"):
            apply_stream(io.BytesIO(wrong), io.BytesIO(found), FileOutput(output))
        assert not output.getvalue()
    with pytest.raises(CodecError, match="holds patch"):
        pack.unpack_file(found)
    with pytest.raises(CodecError, match="expected patch"):
        apply_patch(old, pack_file(new, "n"))
    with pytest.raises(CodecError, match="holds patch"):
        decode_integers(found)
    with pytest.raises(CodecError, match="expected patch"):
        apply_patch(old, encode_integers({}))


def test_wrong_arguments_are_refused() -> None:
    old, new = network(), trained(network(), 1e-3)
    with pytest.raises(CodecError, match="quality"):
        make_patch(old, new, "n", 1.5)
    with pytest.raises(CodecError, match="name"):
        make_patch(old, new, "a/n")
    with pytest.raises(CodecError, match="file_bytes"):
        make_patch(old, new, "n", limits=CodecLimits(file_bytes=len(new) - 1))
    with pytest.raises(CodecError):
        apply_patch(old, make_patch(old, new, "n"), limits=CodecLimits(decoded_bytes=len(new) - 1))


@pytest.mark.parametrize("quality", [None, 0.9])
def test_damaged_patches(quality: float | None) -> None:
    old, new = model(), trained(model(), 1e-2)
    found = make_patch(old, new, "n", quality)
    result = apply_patch(old, found)
    source = random.Random(2)
    for _ in range(150):
        damaged = bytearray(found)
        for _ in range(source.choice([1, 1, 2, 8])):
            reach = source.choice([60, 200, len(found)])
            damaged[source.randrange(5, min(reach, len(found) - 4))] ^= 1 << source.randrange(8)
        damaged[-4:] = zlib.crc32(damaged[:-4]).to_bytes(4, "little")
        try:
            assert apply_patch(old, bytes(damaged), limits=CodecLimits(decoded_bytes=1 << 20))[1] == result[1]
        except CodecError as error:
            assert str(error)
    for size in range(0, len(found), 97):
        with pytest.raises(CodecError):
            apply_patch(old, found[:size])
