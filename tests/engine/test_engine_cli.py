"""`sanderling train` and `sanderling plan`, as a person starts them; data files that are not what they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.engine import DataError, evaluate, load_dataset, load_plan, models, parse_size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((7, 6, 100)).astype(np.float32)
    y = rng.integers(0, 7, 200)
    x = (centers[y] + rng.standard_normal((200, 6, 100))).astype(np.float32)
    (tmp_path / "model.onnx").write_bytes(models.depthwise_cnn_1d())
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return tmp_path


def sanderling(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sanderling", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_train_fine_tunes_inside_the_limit(folder: Path) -> None:
    done = sanderling(
        folder, "train", "model.onnx", "--data", "data.npz", "--memory-limit", "128MiB", "--out", "new.onnx",
        "--epochs", "8", "--validation", "0.2", "--learning-rate", "0.003", "--json", "figures.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "predicted peak" in done.stdout and "measured peak" in done.stdout
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["measured_peak_bytes"] <= parse_size("128MiB")
    assert figures["validation_after"] > figures["validation_before"] + 0.3
    data = load_dataset(folder / "data.npz")
    assert evaluate(folder / "new.onnx", data.inputs, data.targets) > 0.8


def test_plan_shows_a_table(folder: Path) -> None:
    done = sanderling(folder, "plan", "model.onnx", "--memory-limit", "100MiB", "--batch", "8", "--save", "plan")
    assert done.returncode == 0, done.stderr
    assert "peak memory" in done.stdout and "micro-batches" in done.stdout
    assert load_plan(folder / "plan").peak_bytes <= parse_size("100MiB")


FAILURES: list[tuple[list[str], str]] = [
    (["train", "model.onnx", "--data", "data.npz", "--out", "n", "--memory-limit", "30MiB"], "at least"),
    (["train", "none.onnx", "--data", "data.npz", "--out", "n"], "none.onnx: cannot be read"),
    (["train", "model.onnx", "--data", "none.npz", "--out", "n"], "none.npz"),
    (["train", "model.onnx", "--data", "model.onnx", "--out", "n"], "not a readable .npz"),
    (["plan", "data.npz"], "not an ONNX model"),
]


@pytest.mark.parametrize(("arguments", "message"), FAILURES, ids=[f[1] for f in FAILURES])
def test_failures_say_what_and_how(folder: Path, arguments: list[str], message: str) -> None:
    done = sanderling(folder, *arguments)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "n").exists()


BAD_DATA: list[tuple[dict[str, Any], str]] = [
    ({"x": np.zeros((3, 2))}, "no array 'y'"),
    ({"y": np.zeros(3)}, "no inputs"),
    ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, "'x' has shape"),
    ({"x": np.array([[np.nan]]), "y": np.zeros(1)}, "NaN"),
    ({"x": np.array([["a"]]), "y": np.zeros(1)}, "numbers are needed"),
    ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "no samples"),
    ({"a": np.zeros((1, 2)), "b": np.zeros((1, 2)), "y": np.zeros(1)}, "the model has x"),
    ({"x": np.array([None]), "y": np.zeros(1)}, "not a readable"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_DATA, ids=[b[1] for b in BAD_DATA])
def test_bad_data_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "data.npz", ["x"])
