"""Batch normalization in training mode: gradients, running statistics, what a batch may be, and the exported model."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sanderling.engine import (
    DataError,
    EngineError,
    NonFiniteError,
    Trainer,
    UnsupportedOperatorError,
    compile,
    onnxio,
    predict,
)  # fmt: skip
from sanderling.engine.batchnorm import spell_out
from sanderling.engine.checker import pull_back
from sanderling.engine.graph import Array, Builder, TensorType
from sanderling.engine.plan import UPDATE
from sanderling.engine.runtime import run_once

torch = pytest.importorskip("torch", reason="PyTorch is not installed: whole models are compared with it")
F = torch.nn.functional
torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_gradients_and_running_statistics_are_pytorch_s(shape: tuple[int, ...], momentum: float) -> None:
    rng = np.random.default_rng(1)
    x = (3 * rng.standard_normal(shape) + 1).astype(np.float32)
    scale, bias, seed = (rng.standard_normal(s).astype(np.float32) for s in ((3,), (3,), shape))
    mean, variance = rng.standard_normal(3).astype(np.float32), rng.uniform(1, 2, 3).astype(np.float32)
    b = Builder("m")
    inputs = ["x", "scale", "bias", b.constant(mean), b.constant(variance)]
    b.multi("BatchNormalization", inputs, 3, "y", epsilon=1e-3, momentum=momentum, training_mode=1)
    given = {"x": x, "scale": scale, "bias": bias}
    kinds = {n: TensorType("float32", v.shape) for n, v in given.items()}
    proto, name = onnxio.load_model(onnxio.to_bytes(b.nodes, kinds, {"y": None}, b.constants, 18))
    graph = onnxio.to_graph(onnxio.normalize(proto, name), None, frozenset(), name)
    spell_out(graph)
    found = pull_back(graph, given, {"y": seed}, list(given))
    tensors = {n: torch.tensor(v, requires_grad=True) for n, v in given.items()}
    running = torch.tensor(mean), torch.tensor(variance)
    y = F.batch_norm(tensors["x"], *running, tensors["scale"], tensors["bias"], True, 1 - momentum, 1e-3)
    (y * torch.tensor(seed)).sum().backward()
    for name, tensor in tensors.items():
        wanted = tensor.grad.numpy()
        np.testing.assert_allclose(found[name], wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=name)
    graph.outputs = [UPDATE + i for i in inputs[3:]]
    data = onnxio.to_bytes(graph.nodes, kinds, dict.fromkeys(graph.outputs), graph.constants, 18)
    for new, wanted in zip(run_once(data, given, graph.outputs), running, strict=True):
        np.testing.assert_allclose(new, wanted.numpy(), rtol=1e-5)


def make(shared: bool = False, dropout: float | None = None) -> Any:
    """Convolutions with batch normalization in training mode; one of them twice if `shared`."""
    nn = torch.nn
    torch.manual_seed(2)
    middle = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16, momentum=0.3), nn.Hardtanh())
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), middle, *([middle] if shared else []), nn.AvgPool2d(2),
        nn.Flatten(), *([] if dropout is None else [nn.Dropout(dropout)]), nn.Linear(144, 4), nn.BatchNorm1d(4),
    ).train()  # fmt: skip


def export(net: Any, free: bool = True) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "N"}} if free else None
        torch.onnx.export(
            net, (torch.zeros(8, 3, 8, 8),), buffer, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes=axes, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
        )  # fmt: skip
    return buffer.getvalue()


def batch(samples: int = 8) -> tuple[Array, Array]:
    rng = np.random.default_rng(samples)
    return (2 * rng.standard_normal((samples, 3, 8, 8)) + 1).astype(np.float32), rng.integers(0, 4, samples)


@pytest.mark.parametrize("how", [{}, {"segments": 2}, {"segments": 3}, {"hold_gradients": True}], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
def test_steps_are_pytorch_s(how: dict[str, Any], shared: bool) -> None:
    net = make(shared)
    plan = compile(export(net), batch=8, optimizer="sgd", **how)
    assert plan.micro_batch == 8
    trainer = Trainer(plan, learning_rate=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = batch()
    before = trainer.weights()
    # exporting in training mode ran the model, which moved its statistics
    net.load_state_dict({n: torch.tensor(v) for n, v in before.items()}, strict=False)
    trainer.gradients(x, y)
    trainer.loss(x, y)
    assert all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())
    for _ in range(4):
        loss = trainer.step(x, y)
        optimizer.zero_grad()
        wanted = F.cross_entropy(net(torch.tensor(x)), torch.tensor(y))
        wanted.backward()
        optimizer.step()
        assert loss == pytest.approx(wanted.item(), rel=1e-4)
    given = trainer.weights()
    state = {n: v.numpy() for n, v in net.state_dict().items() if "tracked" not in n}
    assert {n for n in given if n in state} == set(state) - {n for n in state if n not in given}
    assert sum("running" in n for n in given) == 6
    for name in given:
        np.testing.assert_allclose(
            given[name], state[name], atol=2e-4 * max(np.abs(state[name]).max(), 0.1), err_msg=name
        )


def test_the_export_is_the_inference_form_with_the_new_statistics(tmp_path: Path) -> None:
    net = make()
    trainer = Trainer(compile(export(net), batch=8, optimizer="sgd"), learning_rate=0.05)
    x, y = batch()
    for _ in range(3):
        trainer.step(x, y)
    trainer.save(tmp_path / "saved")
    trainer.export(tmp_path / "new.onnx")
    written = onnx.load(tmp_path / "new.onnx")
    onnx.checker.check_model(written)
    nodes = [n for n in written.graph.node if n.op_type == "BatchNormalization"]
    assert len(nodes) == 3
    assert all(len(n.output) == 1 and not any(a.name == "training_mode" for a in n.attribute) for n in nodes)
    net.load_state_dict({n: torch.tensor(v) for n, v in trainer.weights().items()}, strict=False)
    few = x[:3]  # any number of samples: nothing depends on the batch now
    wanted = net.eval()(torch.tensor(few)).detach().numpy()
    np.testing.assert_allclose(np.asarray(predict(tmp_path / "new.onnx", {"x": few})), wanted, atol=1e-4)
    again = Trainer.load(tmp_path / "saved")
    assert again.step(x, y) == trainer.step(x, y)
    assert all(np.array_equal(v, again.weights()[n]) for n, v in trainer.weights().items())


def test_only_whole_batches_are_exact_and_others_are_refused() -> None:
    data = export(make())
    trainer = Trainer(compile(data, batch=8))
    for samples in (5, 16):
        with pytest.raises(DataError, match=rf"{samples} samples and must have 8.*BatchNormalization .*training mode"):
            trainer.step(*batch(samples))
    assert trainer.steps == 0
    with pytest.raises(EngineError, match=r"cannot go through 4 at a time.*BatchNormalization.*batch=4"):
        compile(data, batch=8, micro_batch=4)
    with pytest.raises(EngineError, match="one value per channel"):
        compile(data, batch=1)
    with pytest.raises(EngineError, match="cannot go through 8 at a time"):
        compile(export(make(), free=False), batch=4)


def test_what_is_not_finite_leaves_the_statistics_alone() -> None:
    trainer = Trainer(compile(export(make()), batch=8))
    before = trainer.weights()
    x, y = batch()
    with pytest.raises(NonFiniteError):
        trainer.step(x * np.inf, y)
    assert all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())


def test_dropout_in_training_mode_is_refused_wherever_it_is() -> None:
    data = export(make(dropout=0.5))
    for trainable in ("all", "last"):
        with pytest.raises(UnsupportedOperatorError, match=r"Dropout .*training mode.*dropout layers off"):
            compile(data, batch=8, trainable=trainable)


def test_dropout_that_drops_nothing_is_fine() -> None:
    net, plain = make(dropout=0.0), make()
    x, y = batch()
    losses = [Trainer(compile(export(n), batch=8, optimizer="sgd")).step(x, y) for n in (net, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
