"""Losses inside the model: ONNX's loss operators, and outputs that are themselves what is made small."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest

from sanderling.engine import DataError, EngineError, ModelError, Trainer, compile, onnxio
from sanderling.engine.checker import pull_back
from sanderling.engine.graph import Array, Builder, TensorType

torch = pytest.importorskip("torch", reason="PyTorch is not installed: whole models are compared with it")
F = torch.nn.functional
torch.set_num_threads(1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("space", [(), (4,)], ids=["", "space"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("ignored", [None, 1, -100, -1], ids=str)
@pytest.mark.parametrize("op", ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"])
def test_gradients_are_pytorch_s(
    op: str, reduction: str, space: tuple[int, ...], weighted: bool, ignored: int | None
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 5, *space)).astype(np.float32)
    labels = rng.integers(0, 5, (6, *space))
    if ignored is not None and ignored < 0:
        labels.reshape(-1)[::3] = ignored
    b = Builder("m")
    weights = rng.uniform(0.5, 2, 5).astype(np.float32)
    inputs = ["x", b.constant(labels), *([b.constant(weights)] if weighted else [])]
    more: dict[str, Any] = {} if ignored is None else {"ignore_index": ignored}
    softmax = op.startswith("Softmax")
    names = b.multi(op, inputs, 2 if softmax else 1, "loss", reduction=reduction, **more)
    kinds = {"x": TensorType("float32", x.shape)}
    proto, name = onnxio.load_model(onnxio.to_bytes(b.nodes, kinds, dict.fromkeys(names), b.constants, 18))
    graph = onnxio.to_graph(proto, None, frozenset(), name)
    tensor = torch.tensor(x, requires_grad=True)
    options = {"reduction": reduction, "weight": torch.tensor(weights) if weighted else None} | more
    results = [(F.cross_entropy if softmax else F.nll_loss)(tensor, torch.tensor(labels), **options)]
    if softmax:
        results.append(F.log_softmax(tensor, 1))
    seeds = {n: rng.standard_normal(tuple(r.shape)).astype(np.float32) for n, r in zip(names, results, strict=True)}
    sum((r * torch.tensor(s)).sum() for r, s in zip(results, seeds.values(), strict=True)).backward()
    given = pull_back(graph, {"x": x}, seeds, ["x"])["x"]
    np.testing.assert_allclose(given, tensor.grad.numpy(), atol=2e-6)


class Inside(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A classifier that ends in its own loss."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)), how

    def forward(self, x: Any, labels: Any) -> Any:
        """[N, 4], [N] -> a number, or [N]."""
        logits = self.body(x)
        if self.how == "spelled":
            picked = torch.log_softmax(logits, 1).gather(1, labels[:, None])
            return (-picked).mean() + 0.01 * logits.square().sum()
        if self.how == "contrast":  # every sample depends on all others
            unit = F.normalize(logits, dim=1)
            near, same = unit @ unit.T / 0.5, (labels[:, None] == labels[None]).float()
            return (torch.logsumexp(near, 1) - (near * same).sum(1) / same.sum(1)).mean()
        if self.how == "weighted":
            return F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 2.0, 0.5]), ignore_index=1)
        return F.cross_entropy(logits, labels, reduction=self.how)


def export(net: Any, dynamo: bool = False) -> bytes:
    buffer = io.BytesIO()
    given = torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = {"x": {0: torch.export.Dim("N")}, "labels": {0: torch.export.Dim("N")}}
            torch.onnx.export(net.eval(), given, dynamo=True, dynamic_shapes=shapes, verbose=False).save(buffer)
        else:
            torch.onnx.export(
                net.eval(), given, buffer, dynamo=False, opset_version=17, input_names=["x", "labels"],
                dynamic_axes={"x": {0: "N"}, "labels": {0: "N"}},
            )  # fmt: skip
    return buffer.getvalue()


def noise(samples: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(samples)
    return rng.standard_normal((samples, 4)).astype(np.float32), rng.integers(0, 3, samples)


def check(net: Any, trainer: Trainer, samples: int) -> None:
    x, labels = noise(samples)
    net.zero_grad()
    wanted = net(torch.tensor(x), torch.tensor(labels)).mean()
    wanted.backward()
    loss, given = trainer.gradients({"x": x, "labels": labels})
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    weights = trainer.weights()
    for name, parameter in net.named_parameters():
        value, slope = parameter.detach().numpy(), parameter.grad.numpy()
        found = next(n for n in given if any(np.array_equal(w, value) for w in (weights[n], weights[n].T)))
        gradient = given[found] if np.array_equal(weights[found], value) else given[found].T
        np.testing.assert_allclose(gradient, slope, atol=1e-5 * max(np.abs(slope).max(), 0.01), err_msg=name)


@pytest.mark.parametrize(("how", "dynamo"), [
    *((how, False) for how in ("mean", "sum", "weighted", "spelled", "contrast")), ("weighted", True),
], ids=str)  # fmt: skip
def test_one_number_for_the_batch(how: str, dynamo: bool) -> None:
    torch.manual_seed(1)
    net = Inside(how)
    plan = compile(export(net, dynamo), loss="output", batch=6)
    assert plan.micro_batch == 6
    trainer = Trainer(plan, learning_rate=0.05)
    check(net, trainer, 6)
    x, labels = noise(6)
    losses = [trainer.step({"x": x, "labels": labels}) for _ in range(30)]
    assert losses[-1] < losses[0]
    with pytest.raises(DataError, match=r"4 samples and must have 6.*one number for the whole batch"):
        trainer.step(dict(zip(("x", "labels"), noise(4), strict=True)))


@pytest.mark.parametrize("how", [{}, {"micro_batch": 2}, {"segments": 2}], ids=str)
@pytest.mark.parametrize("samples", [6, 5, 9])
def test_numbers_per_sample_take_any_batch(how: dict[str, int], samples: int) -> None:
    torch.manual_seed(1)
    net = Inside("none")
    check(net, Trainer(compile(export(net), loss="output", batch=6, **how)), samples)  # type: ignore[arg-type]


def test_targets_and_other_outputs_are_refused() -> None:
    data = export(Inside("mean"))
    trainer = Trainer(compile(data, loss="output", batch=4))
    x, labels = noise(4)
    with pytest.raises(DataError, match="computes its loss itself"):
        trainer.step({"x": x, "labels": labels}, labels)
    with pytest.raises(EngineError, match="cannot go through 2 at a time, as the loss"):
        compile(data, loss="output", batch=4, micro_batch=2)
    with pytest.raises(ModelError, match="is not the batch"):
        compile(data, loss="mse", batch=4)
    with pytest.raises(DataError, match="needs targets"):
        Trainer(compile(export(Inside("none")), loss="mse", batch=4)).step({"x": x, "labels": labels})
