"""`sanderling train` and `sanderling plan`, as a person starts them; data files that are not what they should be."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.engine import (
    DataError,
    Trainer,
    compile,
    evaluate,
    load_dataset,
    load_plan,
    models,
    parse_size,
    read_weights,
)
from sanderling.engine.data import open_samples, shuffled, split
from sanderling.engine.schedules import Cosine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((7, 6, 100)).astype(np.float32)
    y = rng.integers(0, 7, 200)
    x = (centers[y] + rng.standard_normal((200, 6, 100))).astype(np.float32)
    (tmp_path / "model.onnx").write_bytes(models.depthwise_cnn_1d())
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return tmp_path


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sanderling", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip


def sanderling(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with command(folder, *arguments) as process:
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


TRAIN = ("train", "model.onnx", "--data", "data.npz", "--out", "new.onnx", "--no-cache")


def test_train_fine_tunes_inside_the_limit(folder: Path) -> None:
    done = sanderling(
        folder, "train", "model.onnx", "--data", "data.npz", "--memory-limit", "128MiB", "--out", "new.onnx",
        "--epochs", "8", "--validation", "0.2", "--learning-rate", "0.003", "--json", "figures.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "predicted peak" in done.stdout and "measured peak" in done.stdout
    assert len(done.stderr.splitlines()) == 8  # one for each epoch where nobody watches
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["measured_peak_bytes"] <= parse_size("128MiB")
    assert figures["measured_peak_bytes"] == pytest.approx(figures["predicted_peak_bytes"], rel=0.1)
    assert figures["validation_after"] > figures["validation_before"] + 0.3
    assert figures["held_out_loss_after"] < figures["held_out_loss_before"] / 2
    data = load_dataset(folder / "data.npz")
    assert evaluate(folder / "new.onnx", data.inputs, data.targets) > 0.8


def test_training_that_goes_on_meets_the_batches_that_it_would_have_met(folder: Path) -> None:
    """Stopped in the middle of an epoch and resumed: the same model, bit for bit."""
    more = ("--epochs", "3", "--seed", "5", "--schedule", "cosine", "--warmup", "4", "--weight-decay", "0.01")
    assert sanderling(folder, *TRAIN, *more).returncode == 0
    whole = (folder / "new.onnx").read_bytes()
    steps = -(-200 // 16)
    plan = compile(folder / "model.onnx", batch=16)
    schedule = Cosine(1e-3, 3 * steps, 4)
    samples, rows = load_dataset(folder / "data.npz"), split(200, 0.0, 5)[0]
    trainer = Trainer(plan, schedule, weight_decay=0.01, seed=5)
    order = rows[shuffled(200, 6 * 1_000_003)]
    for at in range(7):
        which = order[16 * at : 16 * (at + 1)]
        trainer.step(samples.inputs["x"][which], samples.targets[which])
    trainer.save(folder / "half")
    done = sanderling(folder, *TRAIN, *more, "--resume", "half", "--save", "end")
    assert done.returncode == 0, done.stderr
    assert (folder / "new.onnx").read_bytes() == whole
    assert Trainer.load(folder / "end").steps == 3 * steps


def test_an_interrupt_ends_politely(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(folder / "many.npz", x=rng.standard_normal((60_000, 6, 100), np.float32), y=rng.integers(0, 7, 60_000))
    arguments = ("train", "model.onnx", "--data", "many.npz", "--out", "new.onnx", "--save", "half", "--epochs", "99")
    with command(folder, *arguments, "--save-every", "20", "--json", "figures.json") as process:
        end = time.monotonic() + 60
        while not (folder / "half").exists() and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "interrupted" in out
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["interrupted"] and 20 <= figures["steps"] < 99 * 60_000 // 16
    trainer = Trainer.load(folder / "half")
    assert trainer.steps == figures["steps"]
    assert trainer.export_bytes() == (folder / "new.onnx").read_bytes()


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(folder: Path) -> None:
    done = sanderling(folder, *TRAIN, "--learning-rate", "1e30", "--optimizer", "sgd", "--epochs", "3")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "not finite" in done.stderr or "the loss is nan" in done.stderr
    assert "the weights of step" in done.stderr
    assert all(np.isfinite(w).all() for w in read_weights(folder / "new.onnx").values())


def test_data_is_read_row_by_row(folder: Path) -> None:
    """A file much larger than the limit leaves room for training."""
    rng = np.random.default_rng(0)
    samples = 45_000
    x, y = np.empty((samples, 6, 100), np.float32), rng.integers(0, 7, samples)
    x[...] = rng.standard_normal((7, 6, 100), np.float32)[y]
    np.savez(folder / "large.npz", x=x, y=y)
    assert (folder / "large.npz").stat().st_size > parse_size("100MiB")
    done = sanderling(
        folder, "train", "model.onnx", "--data", "large.npz", "--memory-limit", "90MiB", "--out", "new.onnx",
        "--epochs", "1", "--batch", "1024", "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["measured_peak_bytes"] <= parse_size("90MiB")


def test_the_limit_holds_for_large_weights_with_held_out_data(tmp_path: Path) -> None:
    """Predicting and exporting hold the model too; neither may show in the peak."""
    (tmp_path / "model.onnx").write_bytes(models.mlp(600, [1500, 1200], 7))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((120, 600), np.float32), y=rng.integers(0, 7, 120))
    failed = sanderling(tmp_path, *TRAIN, "--memory-limit", "80MiB", "--validation", "0.3", "--optimizer", "sgd")
    needed = re.search(r"needs ([0-9.]+) MiB at least", failed.stderr)
    assert needed is not None, failed.stderr
    limit = f"{float(needed[1]) + 1}MiB"
    done = sanderling(
        tmp_path, *TRAIN, "--memory-limit", limit, "--validation", "0.3", "--optimizer", "sgd", "--epochs", "1",
        "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["measured_peak_bytes"] <= parse_size(limit)


def test_many_wishes_reach_the_plan(folder: Path) -> None:
    done = sanderling(
        folder, *TRAIN, "--epochs", "1", "--accumulate", "3", "--clip-norm", "1", "--decay", "matrices",
        "--adapters", "2", "--adapter-alpha", "4", "--adapter-target", "head.weight", "--loss-option",
        "label_smoothing=0.1", "--schedule", "steps", "--drop-every", "2", "--save", "trainer", "--optimizer", "sgd",
        "--momentum", "0.5", "--micro-batch", "4", "--precision", "float32", "--segments", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trainer = Trainer.load(folder / "trainer")
    info = trainer.plan.info
    assert trainer.steps == -(-13 // 3)
    assert info.loss_options["label_smoothing"] == 0.1 and info.micro_batch == 4 and info.segments == 2
    assert [(a.weight, a.rank, a.scale) for a in info.adapters] == [("head.weight", 2, 2.0)]
    assert info.hold_gradients and info.optimizer == "sgd"


def test_plan_shows_tables_and_draws(folder: Path) -> None:
    done = sanderling(
        folder, "plan", "model.onnx", "--memory-limit", "100MiB", "--batch", "8", "--save", "plan", "--segments", "2",
        "--picture", "memory.png", "--json", "figures.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "peak memory" in done.stdout and "inside sessions" in done.stdout and "stored at its end" in done.stdout
    assert "\x1b" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    plan = load_plan(folder / "plan")
    assert plan.describe() in done.stdout
    assert plan.peak_bytes <= parse_size("100MiB")
    assert (folder / "memory.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["segments"] == 2 and len(figures["curve"]) > 5
    assert len(list((folder / "cache" / "sanderling" / "plans").glob("*.plan"))) == 1


FAILURES: list[tuple[list[str], str]] = [
    (["train", "model.onnx", "--data", "data.npz", "--out", "n", "--memory-limit", "30MiB"], "at least"),
    (["train", "none.onnx", "--data", "data.npz", "--out", "n"], "none.onnx: cannot be read"),
    (["train", "model.onnx", "--data", "none.npz", "--out", "n"], "none.npz"),
    (["train", "model.onnx", "--data", "model.onnx", "--out", "n"], "not a readable .npz"),
    (["plan", "data.npz"], "not an ONNX model"),
    (["train", "model.onnx", "--data", "data.npz", "--out", "n", "--save-every", "3"], "--save-every needs --save"),
    (["train", "model.onnx", "--data", "data.npz", "--out", "n", "--resume", "model.onnx"], "model.onnx: is not a"),
    (["plan", "model.onnx", "--picture", "no/where.png"], "there is no directory"),
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
    if any(a.ndim and a.dtype != object for a in arrays.values()):
        with pytest.raises(DataError, match=message):
            open_samples(tmp_path / "data.npz", ["x"], ["labels"])


@pytest.mark.parametrize("compressed", [False, True])
def test_samples_are_those_of_the_file(tmp_path: Path, compressed: bool) -> None:
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {
        "a": rng.standard_normal((9, 3, 4)), "b": np.asfortranarray(rng.integers(0, 9, (9, 2))),
        "y": rng.integers(0, 3, 9), "teacher": rng.standard_normal((9, 3), np.float32).astype(">f4"),
    }  # fmt: skip
    (np.savez_compressed if compressed else np.savez)(tmp_path / "data.npz", **arrays)
    samples = open_samples(tmp_path / "data.npz", ["a", "b"], ["labels", "teacher"])
    assert len(samples) == 9
    which = np.array([7, 0, 0, 3])
    inputs, targets = samples.batch(which)
    for name, found in {**inputs, **targets}.items():
        expected = arrays[{"labels": "y"}.get(name, name)]
        np.testing.assert_array_equal(found, expected[which].astype(found.dtype), err_msg=name)
    assert inputs["a"].dtype == np.float32 or compressed
