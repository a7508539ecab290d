"""Files come back byte for byte, weights are found where they are, and the commands say what is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sanderling.cli import main
from sanderling.codec import CodecError
from sanderling.codec.files import pack, typed
from sanderling.codec.files.pack import pack_file, unpack_file


def model() -> bytes:
    """Weights as raw data, as float_data, in a Constant and in a branch; int8, float16 and int64 among them."""
    generator = np.random.default_rng(0)

    def normal(count: int, dtype: type[np.generic]) -> onnx.TensorProto:
        return numpy_helper.from_array(
            (generator.standard_normal(count) * 20).astype(dtype), f"{dtype.__name__}{count}"
        )

    constant = helper.make_node("Constant", [], ["k"], value=normal(301, np.float32))
    branch = helper.make_graph([constant], "branch", [], [])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=helper.make_graph([], "else", [], []))
    packed = helper.make_tensor("packed", TensorProto.FLOAT, [50], np.linspace(0, 1, 50).tolist())
    tensors = [normal(4000, np.float32), normal(2000, np.int8), normal(500, np.float16), normal(90, np.int64), packed]
    tensors += [normal(3, np.float32), normal(40, np.float64)]
    graph = helper.make_graph([choice], "g", [], [], initializer=tensors)
    data: bytes = helper.make_model(graph).SerializeToString()
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


def test_tensors_of_a_model_are_found_wherever_they_are() -> None:
    found = typed.find(model())
    assert sorted((item.size, item.width, item.floating) for item in found) == sorted(
        [
            (16000, 4, True),
            (1204, 4, True),
            (2000, 1, False),
            (1000, 2, True),
            (720, 8, False),
            (200, 4, True),
            (320, 8, True),
        ]
    )
    ends = [0, *(item.start + item.size for item in found)]
    assert all(item.start >= end for item, end in zip(found, ends[:-1], strict=True))


def test_arrays_of_an_archive_are_found() -> None:
    assert sorted((item.size, item.width, item.floating) for item in typed.find(archive())) == [
        (140, 2, True), (4800, 4, True), (16000, 8, False),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "share"), [("m.onnx", model, 0.88), ("a.npz", archive, 0.35)])
def test_models_and_archives_come_back_and_are_smaller(name: str, make: object, share: float) -> None:
    assert callable(make)
    data = make()
    blob = pack_file(data, name)
    assert unpack_file(blob) == (name, data)
    assert len(blob) < share * len(data)
    assert len(blob) < len(pack._lzma(data)) and len(blob) < len(pack._deflate(data))


def test_a_file_of_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_BATCH", 1500)
    for data in (model(), archive()):
        assert unpack_file(pack_file(data, "f"))[1] == data


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.binary(), st.binary(max_size=300).map(lambda tail: model()[:3000] + tail)))
def test_any_file_comes_back(data: bytes) -> None:
    assert unpack_file(pack_file(data, "any.bin")) == ("any.bin", data)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_damaged_models_and_archives_are_files_like_any_other(draws: st.DataObject) -> None:
    data = bytearray(archive() if draws.draw(st.booleans()) else model())
    for _ in range(draws.draw(st.integers(1, 4))):
        data[draws.draw(st.integers(0, len(data) - 1))] = draws.draw(st.integers(0, 255))
    for item in typed.find(bytes(data)):
        assert 0 <= item.start < item.start + item.size <= len(data)
    assert unpack_file(pack_file(bytes(data), "f"))[1] == data


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0", "x" * 256, "\ud800"])
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(CodecError, match="name"):
        pack_file(b"", name)


def test_commands_pack_and_unpack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, packed = tmp_path / "m.onnx", tmp_path / "m.sndl"
    source.write_bytes(model())
    assert main(["pack", str(source), "-o", str(packed)]) == 0
    assert "packed into" in capsys.readouterr().out
    assert packed.stat().st_size < source.stat().st_size
    assert main(["unpack", str(packed)]) == 1  # its own name is taken
    assert "--force" in capsys.readouterr().err
    source.unlink()
    assert main(["unpack", str(packed)]) == 0
    assert source.read_bytes() == model()
    assert main(["unpack", str(packed), "-o", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other").read_bytes() == model()
    assert main(["pack", str(source)]) == 0
    assert (tmp_path / "m.onnx.sndl").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_commands_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing, text = tmp_path / "nothing", tmp_path / "text"
    text.write_text("hello")
    for arguments, reason in (
        (["pack", str(nothing)], "does not exist"),
        (["pack", str(tmp_path)], "directory"),
        (["unpack", str(text)], "not a Sanderling blob"),
        (["pack", str(text), "-o", str(tmp_path / "no" / "folder")], "does not exist"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert reason in error.lower() or reason in error
        assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]
