"""Low-rank adapters: gradients against PyTorch, export merged, and which weights can have one."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sanderling.engine import EngineError, Trainer, compile, load_plan, models, onnxio, predict, read_weights
from sanderling.engine.adapters import _noise
from sanderling.engine.graph import Array, Builder, TensorType

torch = pytest.importorskip("torch", reason="PyTorch is not installed: adapters are compared with it")
nn = torch.nn


def export(net: Any, shape: tuple[int, ...], dynamo: bool = False) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters announce each other
        free: Any = {"dynamic_axes": {"x": {0: "N"}}, "opset_version": 17}
        if dynamo:
            free = {"dynamic_shapes": [{0: torch.export.Dim("N", min=1)}], "opset_version": 18, "verbose": False}
        torch.onnx.export(
            net.eval(), (torch.zeros(2, *shape),), buffer, input_names=["x"], output_names=["y"], dynamo=dynamo, **free
        )
    return buffer.getvalue()


class Sequence(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A product over three axes, two layers with one weight, a product with a turned weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 12, bias=False)

    def forward(self, x: Any) -> Any:
        """[N, 5, 6] -> [N, 12]"""
        x = torch.tanh(self.a(x))
        x = torch.tanh(self.b(torch.tanh(self.b(x))))
        return self.out(x.mean(1))


def image() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.Conv2d(12, 16, 1), nn.ReLU(),
        nn.Conv2d(16, 12, 3, padding=2, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 12),
    )  # fmt: skip


CASES: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "sequence": (Sequence, (5, 6), 3), "image": (image, (3, 12, 10), 4), "signal": (
        lambda: nn.Sequential(nn.Conv1d(6, 16, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(160, 12)), (6, 20), 2),
}  # fmt: skip


def noise(shape: tuple[int, ...], samples: int = 7) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((samples, *shape)).astype(np.float32), rng.integers(0, 12, samples)


@pytest.mark.parametrize(("dynamo", "how"), [
    (False, {}), (False, {"segments": 2, "micro_batch": 3}), (True, {"segments": 2}),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", CASES)
def test_training_and_merged_export(name: str, dynamo: bool, how: Any, tmp_path: Path) -> None:
    make, shape, able = CASES[name]
    torch.manual_seed(0)
    model = export(make(), shape, dynamo)
    x, y = noise(shape)
    whole = Trainer(compile(model, batch=8))
    wish = {"rank": 3, "alpha": 6.0, "target": "*"}
    plan = compile(model, batch=8, adapters=wish, **how)
    assert len(plan.info.adapters) == able and len(plan.info.trainable) == 2 * able
    plan.save(tmp_path / "plan")
    trainer = Trainer(load_plan(tmp_path / "plan"), learning_rate=0.03)
    before = trainer.merged_weights()
    assert trainer.loss(x, y) == pytest.approx(whole.loss(x, y), rel=1e-5)
    assert all(np.array_equal(v, before[n]) for n, v in read_weights(model).items())
    for _ in range(3):
        trainer.step(x, y)
    # gradients of the factors follow from those of the merged weights
    whole.set_weights(trainer.merged_weights())
    loss, gradients = trainer.gradients(x, y)
    full_loss, full = whole.gradients(x, y)
    assert loss == pytest.approx(full_loss, rel=1e-5)
    for adapter in plan.info.adapters:
        down, up = (trainer.weights()[n].astype(float) for n in (adapter.down, adapter.up))
        g = full[adapter.weight].astype(float)
        if adapter.rows:
            wanted = adapter.scale * g @ up.T, adapter.scale * down.T @ g
        else:
            flat, rank = g.reshape(len(g), -1), adapter.rank
            wanted = (
                adapter.scale * up.reshape(-1, rank).T @ flat, adapter.scale * flat @ down.reshape(rank, -1).T
            )  # fmt: skip
        for factor, value in zip((adapter.down, adapter.up), wanted, strict=True):
            given = gradients[factor].reshape(value.shape)
            assert np.abs(given - value).max() <= 2e-5 * np.abs(value).max(), factor
    # the base is as it was, the exported model is the trained one in the old structure
    exported = trainer.export_bytes()
    old, new = onnxio.normalize(*onnxio.load_model(model)), onnx.load_model_from_string(exported)
    assert [(n.op_type, n.input, n.output) for n in new.graph.node] == [
        (n.op_type, n.input, n.output) for n in old.graph.node
    ]
    assert {t.name for t in new.graph.initializer} == {t.name for t in old.graph.initializer}
    again = Trainer(compile(exported, batch=8))
    assert again.loss(x, y) == pytest.approx(loss, rel=1e-5)
    moved = {n for n, v in trainer.merged_weights().items() if not np.array_equal(v, before[n])}
    assert moved == {a.weight for a in plan.info.adapters}
    assert all(np.array_equal(trainer.weights()[n], v) for n, v in before.items())
    # saved and continued
    trainer.save(tmp_path / "t")
    resumed = Trainer.load(tmp_path / "t")
    assert [resumed.step(x, y) for _ in range(2)] == [trainer.step(x, y) for _ in range(2)]
    assert not np.array_equal(predict(exported, x), predict(model, x))  # type: ignore[arg-type]


def test_adapters_learn_and_are_small() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 32)).astype(np.float32)
    y = (x @ rng.standard_normal((32, 4))).argmax(1)
    model = models.mlp(32, [64, 64], 4)
    plan = compile(model, batch=64, adapters={"rank": 4})
    assert {a.weight for a in plan.info.adapters} == {"hidden0.weight", "hidden1.weight"}  # the head is too narrow
    trainer = Trainer(plan, learning_rate=0.01)
    first = trainer.step(x, y)
    for _ in range(60):
        last = trainer.step(x, y)
    assert last < first / 4
    assert trainer.state_bytes < Trainer(compile(model, batch=64)).state_bytes / 5


def test_what_trains_beside_adapters_and_seeds() -> None:
    model = models.mlp(32, [64], 4)
    plan = compile(model, adapters={"rank": 2, "seed": 1}, trainable="bias")
    assert set(plan.info.trainable) >= {"hidden0.bias", "head.bias", "hidden0.weight/adapter.down"}
    starts = [Trainer(compile(model, adapters={"rank": 2, "seed": s})).weights() for s in (0, 1, 1)]
    name = "hidden0.weight/adapter.down"
    assert np.array_equal(starts[1][name], starts[2][name]) and not np.array_equal(starts[0][name], starts[1][name])


def test_the_noise_is_even_and_of_its_own() -> None:
    noise = _noise(100_000, 3, "w")
    assert noise.dtype == np.float32 and -1 <= noise.min() < -0.999 and 0.999 < noise.max() < 1
    assert abs(noise.mean()) < 0.01 and noise.std() == pytest.approx(1 / np.sqrt(3), rel=0.01)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.01
    for other in (_noise(100_000, 4, "w"), _noise(100_000, 3, "v")):
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.01
    assert _noise(3, 0, "hidden0.weight").tolist() == [-0.07464540004730225, -0.814171314239502, -0.8150151968002319]


def test_weights_that_cannot_have_one_are_named() -> None:
    b = Builder("h")
    x = b.op("MatMul", "x", "w")
    x = b.op("Add", x, b.op("MatMul", "x", b.op("Mul", "w", "w")))  # w is read in a second way
    b.op("MatMul", x, "v", name="y")
    kinds = {"x": TensorType("float32", (1, 8))}, {"y": TensorType("float32", (1, 8))}
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal((8, 8)).astype(np.float32) for n in "wv"}
    model = onnxio.to_bytes(b.nodes, *kinds, values, 18, free_batch=True)
    assert [a.weight for a in compile(model, adapters={"rank": 1}).info.adapters] == ["v"]
    with pytest.raises(EngineError, match="matches 'w'; these can: v"):
        compile(model, adapters={"rank": 1, "target": ["w"]})
    refused: list[tuple[dict[str, Any], str]] = [
        ({"rank": 8}, "lower the rank"), ({"rank": 0}, "rank=0"), ({"alpha": -1.0}, "alpha"),
        ({"size": 3}, "no option"),
    ]  # fmt: skip
    for wish, message in refused:
        with pytest.raises(EngineError, match=message):
            compile(model, adapters=wish)
