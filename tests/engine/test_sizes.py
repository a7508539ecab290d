"""Models whose inputs leave more than the batch free: fixed for training, free again in what is exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sanderling.cli import main
from sanderling.engine import ModelError, Trainer, compile, predict
from sanderling.engine.data import sample_sizes
from sanderling.engine.models import depthwise_cnn_1d

X = np.random.default_rng(0).normal(size=(24, 6, 40)).astype(np.float32)
Y = np.arange(24) % 7


@pytest.fixture
def free_length(tmp_path: Path) -> Path:
    """The wrist CNN with a length that is not fixed."""
    model = onnx.load_from_string(depthwise_cnn_1d(seed=0))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "length"
    path = tmp_path / "free.onnx"
    onnx.save(model, path)
    return path


def test_without_sizes_the_refusal_names_dimension_and_remedy(free_length: Path) -> None:
    with pytest.raises(ModelError, match=r"dimension 2 of input 'x' is not fixed.*`sizes`"):
        compile(free_length, batch=4)


def test_gradients_are_those_of_the_fixed_model(free_length: Path) -> None:
    free = Trainer(compile(free_length, batch=8, sizes={"x": (6, 40)}))
    fixed = Trainer(compile(depthwise_cnn_1d(length=40, seed=0), batch=8))
    loss, gradients = free.gradients({"x": X[:8]}, Y[:8])
    expected_loss, expected = fixed.gradients({"x": X[:8]}, Y[:8])
    assert loss == expected_loss
    for name, value in expected.items():
        np.testing.assert_array_equal(gradients[name], value)


def test_export_keeps_the_length_free(free_length: Path, tmp_path: Path) -> None:
    trainer = Trainer(compile(free_length, batch=8, sizes={"x": (6, 40)}))
    trainer.step({"x": X[:8]}, Y[:8])
    trainer.export(tmp_path / "out.onnx")
    logits = predict(tmp_path / "out.onnx", {"x": X[:2, :, :30]})
    assert isinstance(logits, np.ndarray) and logits.shape == (2, 7)


def test_train_takes_the_sizes_from_the_data(
    free_length: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "d.npz", tmp_path / "o.onnx"
    np.savez(data, x=X, y=Y)
    assert sample_sizes(data) == {"x": (6, 40), "y": ()}
    assert main(["train", str(free_length), "--data", str(data), "--out", str(out), "--epochs", "1"]) == 0
    assert "measured peak" in capsys.readouterr().out
    assert main(["plan", str(free_length), "--sizes", "x=6,40"]) == 0
    assert "segments" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "x=", "x=a", "x=0,3", "x=3,-1"])
def test_sizes_that_are_none_are_refused(text: str, free_length: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(free_length), "--sizes", text])
    assert "x=3,48,192" in capsys.readouterr().err


def test_sizes_of_unreadable_files_are_none(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    for content in (b"", b"PK", b"\x93NUMPY"):
        path.write_bytes(content)
        assert sample_sizes(path) == {}
