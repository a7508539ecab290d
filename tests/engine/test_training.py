"""Whole models: gradients against PyTorch however training is cut; resuming; losses; weights."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.engine import (
    DataError,
    EngineError,
    PlanError,
    Trainer,
    compile,
    evaluate,
    export_model,
    gradcheck,
    load_plan,
    models,
    onnxio,
    predict,
    read_weights,
)
from sanderling.engine.graph import Array, Builder, TensorType

torch = pytest.importorskip("torch", reason="PyTorch is not installed: whole models are compared with it")
nn = torch.nn


class Residual(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A branch around its inside, so that a tensor is used on both sides of a cut."""

    def __init__(self, inside: Any) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Any) -> Any:
        """x + inside(x)"""
        return x + self.inside(x)


def mlp() -> Any:
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 5))


def wrist() -> Any:
    return nn.Sequential(
        nn.Conv1d(6, 8, 5, 2, 2), nn.ReLU(), nn.Conv1d(8, 8, 5, 2, 2, groups=8), nn.Conv1d(8, 16, 1), nn.ReLU(),
        nn.Conv1d(16, 16, 5, 1, 2, groups=16), nn.Conv1d(16, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(16, 7),
    )  # fmt: skip


def mobile() -> Any:
    block = nn.Sequential(
        nn.Conv2d(8, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Hardswish(), nn.Conv2d(16, 8, 1)
    )
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(), Residual(block), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=2),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


SHAPES: dict[Any, tuple[tuple[int, ...], int]] = {mlp: ((10,), 5), wrist: ((6, 40), 7), mobile: ((3, 24, 24), 5)}


def export(net: Any, shape: tuple[int, ...]) -> bytes:
    """The TorchScript exporter keeps parameter names where it folds nothing."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        torch.onnx.export(
            net.eval(), (torch.zeros(2, *shape),), buffer, input_names=["x"], output_names=["logits"],
            dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}}, dynamo=False, opset_version=17,
        )  # fmt: skip
    return buffer.getvalue()


def noise(shape: tuple[int, ...], classes: int, samples: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((samples, *shape)).astype(np.float32), rng.integers(0, classes, samples)


def reference(net: Any, x: Array, y: Array) -> tuple[float, dict[str, Array]]:
    net.zero_grad()
    loss = nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y))
    loss.backward()
    return loss.item(), {n: p.grad.numpy() for n, p in net.named_parameters()}


@pytest.mark.parametrize("make", SHAPES, ids=lambda m: m.__name__)
@pytest.mark.parametrize("how", [{}, {"micro_batch": 2}, {"segments": 2}, {"segments": 3, "micro_batch": 4}], ids=str)
def test_gradients_are_pytorch_s(make: Any, how: dict[str, int]) -> None:
    torch.manual_seed(1)
    net, (shape, classes) = make(), SHAPES[make]
    x, y = noise(shape, classes, 7)
    loss, wanted = reference(net, x, y)
    plan = compile(export(net, shape), batch=8, **how)  # type: ignore[arg-type]
    for name, value in how.items():
        assert getattr(plan, name) == value
    given_loss, given = Trainer(plan).gradients(x, y)
    assert given_loss == pytest.approx(loss, rel=1e-5)
    # parameters of products are renamed when the exporter transposes them: match those by shape and value
    assert len(given) == len(wanted)
    for name, gradient in wanted.items():
        candidates = [given[name]] if name in given else [g for g in given.values() if g.T.shape == gradient.shape]
        errors = [
            np.abs(c - gradient).max() if c.shape == gradient.shape and name in given else np.abs(c.T - gradient).max()
            for c in candidates
        ]
        assert min(errors) <= 2e-5 * max(np.abs(gradient).max(), 1e-2), name


class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Embedding, one block of self-attention, mean: batched products, Gather, layer normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 5)
        self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, tokens: Any) -> Any:
        """[N, 6] -> [N, 5]"""
        x = self.embed(tokens)
        q, k, v = self.mix(self.before(x)).reshape(x.shape[0], 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        x = x + mixed.transpose(1, 2).reshape(x.shape[0], 6, 8)
        return self.out(self.after(x).mean(1))


@pytest.mark.parametrize("segments", [1, 3])
def test_attention_and_weights_that_are_shared_across_segments(segments: int) -> None:
    torch.manual_seed(0)
    net = Attention()
    tokens, y = np.random.default_rng(0).integers(0, 20, (4, 6)), np.arange(4)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (torch.tensor(tokens),), buffer, input_names=["x"], dynamic_axes={"x": {0: "N"}},
            dynamo=False, opset_version=17,
        )  # fmt: skip
    loss, wanted = reference(net, tokens, y)
    given_loss, given = Trainer(compile(buffer.getvalue(), batch=4, segments=segments)).gradients(tokens, y)
    assert given_loss == pytest.approx(loss, rel=1e-5)
    # the exporter merges equal weights (the ones and zeros of both normalizations): their gradients add up
    wanted["before.weight"] = wanted["before.weight"] + wanted.pop("after.weight")
    wanted["before.bias"] = wanted["before.bias"] + wanted.pop("after.bias")
    compared = wanted.keys() & given.keys()
    assert compared >= {"embed.weight", "mix.bias", "before.weight", "before.bias", "out.bias"}
    for name in compared:
        np.testing.assert_allclose(given[name], wanted[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_the_cnn_for_images_has_the_weights_it_says_and_learns() -> None:
    trainer = Trainer(compile(models.cnn_2d(), batch=16), 1e-3)
    assert sum(value.size for value in trainer.weights().values()) == 55_338
    rng = np.random.default_rng(0)
    x, y = rng.random((16, 1, 28, 28), np.float32), rng.integers(0, 10, 16)
    losses = [trainer.step(x, y) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    odd = models.cnn_2d(channels=3, size=13, classes=4, widths=(4,), hidden=5, kernel=5)
    logits = predict(odd, np.zeros((2, 3, 13, 13), np.float32))
    assert isinstance(logits, np.ndarray) and logits.shape == (2, 4)


def test_a_single_segment_recomputes_nothing_and_several_do() -> None:
    model = models.depthwise_cnn_1d()
    assert compile(model, segments=1).recompute_ratio == 0
    assert 0 < compile(model, segments=4).recompute_ratio < 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_follows_pytorch(optimizer: str) -> None:
    torch.manual_seed(0)
    net = wrist()
    x, y = noise((6, 40), 7, 8)
    trainer = Trainer(compile(export(net, (6, 40)), batch=8, optimizer=optimizer), learning_rate=0.01)
    other: Any = (
        torch.optim.Adam(net.parameters(), lr=0.01)
        if optimizer == "adam"
        else torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    )
    for _ in range(10):
        loss, _ = reference(net, x, y)
        other.step()
        assert trainer.step(x, y) == pytest.approx(loss, rel=2e-3)


def test_training_learns_and_exports(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((7, 6, 100)).astype(np.float32)
    y = rng.integers(0, 7, 96)
    x = (centers[y] + 0.5 * rng.standard_normal((96, 6, 100))).astype(np.float32)
    model = models.depthwise_cnn_1d()
    trainer = Trainer(compile(model, batch=16), learning_rate=3e-3)
    for _ in range(12):
        for start in range(0, 96, 16):
            trainer.step(x[start : start + 16], y[start : start + 16])
    trainer.export(tmp_path / "new.onnx")
    assert evaluate(model, x, y) < 0.5
    assert evaluate(tmp_path / "new.onnx", x, y) > 0.9
    exported = read_weights(tmp_path / "new.onnx")
    assert all(np.array_equal(exported[n], v) for n, v in trainer.weights().items())


def test_frozen_weights_stay() -> None:
    model = models.depthwise_cnn_1d()
    x, y = noise((6, 100), 7, 4)
    before = read_weights(model)
    for trainable, moved in (("last", {"head.weight", "head.bias"}), (["stem.*"], {"stem.weight", "stem.bias"})):
        trainer = Trainer(compile(model, batch=4, trainable=trainable))
        trainer.step(x, y)
        assert {n for n, v in trainer.weights().items() if not np.array_equal(v, before[n])} == moved
    for count in (2, 3, 99):
        chosen = compile(model, batch=4, trainable=f"last-{count}").info.trainable
        layers = ["stem", *(f"block{b}.{half}" for b in range(3) for half in ("depthwise", "pointwise")), "head"]
        assert set(chosen) == {f"{layer}.{kind}" for layer in layers[-count:] for kind in ("weight", "bias")}
    for bad in ("last-0", "last-", "first"):
        with pytest.raises(EngineError, match="last-3"):
            compile(model, trainable=bad)
    biases = compile(model, trainable="bias").info.trainable
    assert biases and all(name.endswith("bias") for name in biases)


def test_saving_resumes_bit_for_bit(tmp_path: Path) -> None:
    x, y = noise((6, 100), 7, 16)
    for segments in (1, 3):
        trainer = Trainer(
            compile(models.depthwise_cnn_1d(), batch=16, segments=segments), learning_rate=0.01, beta1=0.8
        )
        trainer.step(x, y)
        trainer.save(tmp_path / "trainer")
        losses = [trainer.step(x, y) for _ in range(3)]
        resumed = Trainer.load(tmp_path / "trainer")
        assert [resumed.step(x, y) for _ in range(3)] == losses
        assert all(np.array_equal(v, resumed.weights()[n]) for n, v in trainer.weights().items())


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(compile(models.mlp(4, [3], 2)))
    trainer.save(tmp_path / "trainer")
    old = (tmp_path / "trainer").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save(tmp_path / "trainer")
    monkeypatch.undo()
    assert (tmp_path / "trainer").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["trainer"]


def test_a_plan_survives_its_file_and_damage_does_not(tmp_path: Path) -> None:
    plan = compile(models.mlp(4, [3], 2), segments=2)
    plan.save(tmp_path / "plan")
    loaded = load_plan(tmp_path / "plan")
    assert (loaded.info, loaded.models, loaded.model) == (plan.info, plan.models, plan.model)
    data = bytearray((tmp_path / "plan").read_bytes())
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 60):
        changed = bytearray(data)
        changed[position] ^= 0x55
        (tmp_path / "bad").write_bytes(changed)
        try:
            again = load_plan(tmp_path / "bad")
        except PlanError:
            continue
        # what the archive does not protect (time stamps) must not matter
        assert (again.info, again.models, again.model) == (plan.info, plan.models, plan.model)
    for junk in (b"", b"PK\x05\x06" + bytes(18), bytes(data[: len(data) // 2]), b"junk" * 100):
        (tmp_path / "bad").write_bytes(junk)
        with pytest.raises(PlanError, match="bad"):
            load_plan(tmp_path / "bad")
        with pytest.raises(PlanError, match="bad"):
            Trainer.load(tmp_path / "bad")


def test_mse_and_distillation_are_pytorch_s() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 4)).astype(np.float32)
    model = models.mlp(4, [6], 3)
    weights = {n: torch.tensor(v, requires_grad=True) for n, v in read_weights(model).items()}
    hidden = torch.relu(torch.tensor(x) @ weights["hidden0.weight"].T + weights["hidden0.bias"])
    logits = hidden @ weights["head.weight"].T + weights["head.bias"]
    wanted = rng.standard_normal((5, 3)).astype(np.float32)
    loss, _ = Trainer(compile(model, loss="mse", batch=5)).gradients(x, wanted)
    assert loss == pytest.approx(nn.functional.mse_loss(logits, torch.tensor(wanted)).item(), rel=1e-5)
    y = rng.integers(0, 3, 5)
    soft = nn.functional.kl_div(
        torch.log_softmax(logits / 3, 1),
        torch.log_softmax(torch.tensor(wanted) / 3, 1),
        log_target=True,
        reduction="batchmean",
    )
    total = 0.75 * 9 * soft + 0.25 * nn.functional.cross_entropy(logits, torch.tensor(y))
    total.backward()
    options = {"temperature": 3.0, "hard_weight": 0.25}
    trainer = Trainer(compile(model, loss="distillation", batch=5, micro_batch=2, loss_options=options))
    loss, gradients = trainer.gradients(x, {"labels": y, "teacher": wanted})
    assert loss == pytest.approx(total.item(), rel=1e-5)
    for name, value in weights.items():
        np.testing.assert_allclose(gradients[name], value.grad.numpy(), rtol=1e-3, atol=1e-6)
    assert trainer.gradients(x, (y, wanted))[0] == loss


def test_a_final_softmax_is_seen_through() -> None:
    b = Builder("h")
    w = b.constant(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))
    b.op("Softmax", b.op("MatMul", "x", w, name="z"), name="p")
    outputs = {"p": TensorType("float32", (1, 3))}
    model = onnxio.to_bytes(b.nodes, {"x": TensorType("float32", (1, 4))}, outputs, b.constants, 18, free_batch=True)
    x, y = noise((4,), 3, 6)
    loss = Trainer(compile(model)).loss(x, y)
    assert loss == pytest.approx(-np.log(predict(model, x)[np.arange(6), y]).mean(), rel=1e-5)  # type: ignore[index]


def test_gradcheck_of_a_whole_model() -> None:
    model = models.depthwise_cnn_1d(widths=(8, 16), length=20)
    x, _ = noise((6, 20), 7, 2)
    assert gradcheck(model, {"x": x}, directions=1) < 2e-3


def test_export_model_replaces_weights_only() -> None:
    model = models.mlp(4, [3], 2)
    weights = read_weights(model)
    changed = export_model(model, {"head.bias": np.array([1, 2], np.float32)})
    after = read_weights(changed)
    assert after["head.bias"].tolist() == [1, 2]
    assert all(np.array_equal(after[n], v) for n, v in weights.items() if n != "head.bias")
    with pytest.raises(DataError, match="no weight 'nothing'"):
        export_model(model, {"nothing": np.zeros(2, np.float32)})
    with pytest.raises(DataError, match="shape"):
        export_model(model, {"head.bias": np.zeros(3, np.float32)})
