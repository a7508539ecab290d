"""The commands, as real processes where that is the point: what they write, what they say, and that nothing is left
behind by what fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sanderling.cli import main
from sanderling.codec import durable, encode_delta, encode_integers
from sanderling.codec.files import pack

from .test_codec_files import archive, model
from .test_codec_find import TFLITE, tflite_model
from .test_codec_patch import network, trained

DOCS = Path(__file__).parent.parent.parent / "docs" / "reference" / "commands.md"


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sanderling", *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=cwd
    )


def test_pack_and_unpack(tmp_path: Path) -> None:
    source, packed = tmp_path / "m.onnx", tmp_path / "m.sndl"
    source.write_bytes(model())
    done = run("pack", source, "-o", packed)
    assert done.returncode == 0 and "packed into" in done.stdout and not done.stderr
    assert packed.stat().st_size < source.stat().st_size
    done = run("unpack", packed)  # its own name is taken
    assert done.returncode == 1 and "--force" in done.stderr and "Traceback" not in done.stderr
    source.unlink()
    assert run("unpack", packed).returncode == 0
    assert source.read_bytes() == model()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.sndl"]


def test_names_of_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.npz"
    source.write_bytes(archive())
    assert main(["pack", str(source)]) == 0
    packed = tmp_path / "a.npz.sndl"
    assert main(["unpack", str(packed), "-o", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other").read_bytes() == archive()
    assert main(["pack", str(source)]) == 1 and main(["pack", str(source), "-f"]) == 0
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(("suffix", "make"), [("onnx", network), ("tflite", lambda: tflite_model(TFLITE))])
def test_diff_and_apply(tmp_path: Path, suffix: str, make: Callable[[], bytes]) -> None:
    old, new = tmp_path / f"v1.{suffix}", tmp_path / f"v2.{suffix}"
    changes, result = tmp_path / "changes.sndl", tmp_path / f"v3.{suffix}"
    old.write_bytes(make())
    new.write_bytes(trained(make(), 1e-3) if suffix == "onnx" else make().replace(bytes(range(30)), bytes(30)))
    done = run("diff", old, new, "-o", changes)
    assert done.returncode == 0 and "bit for bit" in done.stdout, done.stderr
    assert changes.stat().st_size < 0.7 * new.stat().st_size
    assert run("apply", old, changes, "-o", result).returncode == 0
    assert result.read_bytes() == new.read_bytes()
    done = run("apply", new, changes, "-o", tmp_path / "none")
    assert done.returncode == 1 and "give the version that it was made from" in done.stderr
    assert not (tmp_path / "none").exists()
    done = run("apply", old, changes)  # its own name is taken: by NEW
    assert done.returncode == 1 and "--force" in done.stderr


def test_diff_with_a_quality_says_what_it_costs(tmp_path: Path) -> None:
    old, new, changes, result = (tmp_path / name for name in ("old", "new", "changes", "result"))
    old.write_bytes(network())
    new.write_bytes(trained(network(), 1e-2))
    done = run("diff", old, new, "-o", changes, "--quality", 0.9)
    assert done.returncode == 0
    stated = re.search(r"about: ([\d,]+) bytes will differ", done.stdout)
    assert stated is not None
    assert run("apply", old, changes, "-o", result).returncode == 0
    different = np.frombuffer(result.read_bytes(), np.uint8) != np.frombuffer(new.read_bytes(), np.uint8)
    assert int(stated[1].replace(",", "")) == np.count_nonzero(different)
    assert run("diff", old, new, "-o", tmp_path / "none", "-q", 2).returncode == 1
    assert run("diff", old, new).returncode == 2


def test_weights_in_other_files_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensor = numpy_helper.from_array(np.zeros((30, 30), np.float32), "w")
    found = helper.make_model(helper.make_graph([], "g", [], [], initializer=[tensor]))
    onnx.save_model(found, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert main(["pack", str(tmp_path / "m.onnx")]) == 0
    assert "m.data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("m.onnx", model, "ONNX model"),
        ("m.tflite", lambda: tflite_model(TFLITE), "TFLite model"),
        ("a.npz", archive, "npz model"),
        ("i.sndl", lambda: encode_integers({"w": np.eye(30, dtype=np.int8), "e": np.zeros(0, np.int16)}), "integers"),
        ("d.sndl", lambda: encode_delta({"w": np.linspace(-1, 1, 99, dtype=np.float32)})[0], "delta"),
        ("p.sndl", lambda: pack.pack_file(model(), "m.onnx"), "packed file 'm.onnx'"),
        ("c.sndl", lambda: patch_of(None), "changes to 'new.onnx'"),
        ("l.sndl", lambda: patch_of(0.9), "changes to 'new.onnx'"),
        ("t.txt", lambda: b"nothing to see", "no tensors"),
        ("empty", lambda: b"", "no tensors"),
    ],
)
def test_inspect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, make: Callable[[], bytes], kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(make())
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert kind in text.splitlines()[-1]
    assert main(["inspect", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert kind in found["kind"] and found["bytes"] == path.stat().st_size
    tensors = found["tensors"]
    assert bool(tensors) == (kind != "no tensors")
    assert len(text.splitlines()) == 3 + len(tensors) + len(found["others"])
    others = sum(other["bytes"] for other in found["others"])
    if all(tensor["coded"] is not None for tensor in tensors):  # then all bytes are accounted for
        coded = sum(tensor["coded"] * tensor["items"] for tensor in tensors) / 8
        assert abs(coded + others - found["coded_bytes"]) < 0.01 * found["coded_bytes"] + 16
    assert list(tmp_path.iterdir()) == [path]


def patch_of(quality: float | None) -> bytes:
    from sanderling.codec import make_patch

    return make_patch(network(), trained(network(), 1e-2), "new.onnx", quality)


def test_inspect_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.array([0] * 96 + [1] * 16 + [2] * 16, np.float32)
    tensors = [numpy_helper.from_array(values, "w"), helper.make_tensor("s", TensorProto.INT32, [2], [0, 5])]
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors)).SerializeToString())
    assert main(["inspect", str(path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["tensors"]
    assert (first["name"], first["shape"], first["type"], first["zeros"]) == ("w", [128], "float32", 96)
    assert first["mode"].startswith("1 class") or first["form"] == "general"
    assert first["entropy"] == pytest.approx(1.0613, abs=1e-4) and first["form"] in ("palette of 3", "general")
    assert (second["items"], second["zeros"], second["entropy"]) == (2, 1, 1.0)


def test_commands_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing, text, damaged = tmp_path / "nothing", tmp_path / "text", tmp_path / "damaged"
    text.write_text("hello")
    damaged.write_bytes(pack.pack_file(model(), "m.onnx")[:-9] + bytes(9))
    for arguments, reason in (
        (["pack", nothing], "does not exist"),
        (["pack", tmp_path], "directory"),
        (["unpack", text], "not a sanderling blob"),
        (["unpack", damaged], "checksum"),
        (["inspect", damaged], "checksum"),
        (["inspect", nothing], "does not exist"),
        (["pack", text, "-o", tmp_path / "no" / "folder"], "does not exist"),
        (["pack", text, "-o", tmp_path], "folder"),
        (["diff", text, nothing, "-o", tmp_path / "x"], "does not exist"),
        (["apply", text, text, "-o", tmp_path / "x"], "not a sanderling blob"),
        (["apply", text, damaged, "-o", tmp_path / "x"], "checksum"),
    ):
        assert main([str(argument) for argument in arguments]) == 1
        error = capsys.readouterr().err
        assert reason in error.lower() and error.startswith(f"sanderling {arguments[0]}: ")
        assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "text"]


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_text("old")
    with pytest.raises(RuntimeError), durable.written(target, force=True) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_text() == "old"
    with pytest.raises(FileExistsError), durable.written(tmp_path / "g") as file:
        file.write(b"mine")
        (tmp_path / "g").write_text("somebody else's")
    assert (tmp_path / "g").read_text() == "somebody else's"
    with durable.written(target, force=True) as file:
        file.write(b"new")
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == (tmp_path / "g").stat().st_mode & 0o777
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "g"]


def test_the_examples_of_the_reference_page_run(tmp_path: Path) -> None:
    """Lines that begin with a dollar sign are commands, run in order in one folder with two versions of a model."""
    (tmp_path / "v1.onnx").write_bytes(network())
    (tmp_path / "v2.onnx").write_bytes(trained(network(), 1e-3))
    commands = re.findall(r"^\$ sanderling (.+)$", DOCS.read_text(), re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"pack", "unpack", "inspect", "diff", "apply"}
    for command in commands:
        done = run(*command.split(), cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "v2.onnx").read_bytes()


def test_every_option_is_on_the_reference_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS.read_text()
    for command in ("pack", "unpack", "inspect", "diff", "apply"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        for option in re.findall(r"--[a-z-]+", capsys.readouterr().out):
            assert f"`{option}" in page or option == "--help", (command, option)
