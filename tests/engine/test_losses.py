"""Every loss against PyTorch: value and gradients, in any micro-batches, for a batch that does not divide evenly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.engine import DataError, EngineError, ModelError, Trainer, compile, models, onnxio
from sanderling.engine.graph import Array, Builder, TensorType
from sanderling.engine.losses import LOSSES

torch = pytest.importorskip("torch", reason="PyTorch is not installed: losses are compared with its own")
functional = torch.nn.functional

SAMPLES, CLASSES = 7, 5
WAYS: list[dict[str, int]] = [{}, {"micro_batch": 3}, {"segments": 2, "micro_batch": 2}]


def model(kind: str, tail: str = "") -> tuple[bytes, tuple[int, ...], tuple[int, ...]]:
    """A linear model, its input's and its output's sample shapes: flat [C], sequence [T, C], or image [C, H, W]."""
    rng = np.random.default_rng(0)
    b = Builder("h")
    shape: tuple[int, ...]
    out: tuple[int, ...]
    if kind == "image":
        shape, out = (3, 4, 6), (CLASSES, 4, 6)
        y = b.op("Conv", "x", "w", kernel_shape=[1, 1])
        weight = rng.standard_normal((CLASSES, 3, 1, 1))
    else:
        shape, out = ((4,), (CLASSES,)) if kind == "flat" else ((6, 4), (6, CLASSES))
        y = b.op("MatMul", "x", "w")
        weight = rng.standard_normal((4, CLASSES))
    if tail == "Softmax":
        y = b.op(tail, y, axis=1 if kind == "image" else -1)
    elif tail:
        y = b.op(tail, y)
    b.op("Identity", y, name="y")
    kinds = {"x": TensorType("float32", (1, *shape))}, {"y": TensorType("float32", (1, *out))}
    values = {"w": weight.astype(np.float32), **b.constants}
    return onnxio.to_bytes(b.nodes, *kinds, values, 18, free_batch=True), shape, out


def forward(kind: str, x: Array, weight: Any) -> Any:
    x = torch.tensor(x)
    return functional.conv2d(x, weight) if kind == "image" else x @ weight


def compare(
    kind: str, loss: str, options: dict[str, Any], make_targets: Callable[[Any, tuple[int, ...]], Any],
    theirs: Callable[[Any, Any], Any], tail: str = "",
) -> None:  # fmt: skip
    data, shape, out = model(kind, tail)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((SAMPLES, *shape)).astype(np.float32)
    targets = make_targets(rng, (SAMPLES, *out))
    results = []
    for way in WAYS:
        trainer = Trainer(compile(data, loss=loss, loss_options=options, batch=4, **way))  # type: ignore[arg-type]
        value, gradients = trainer.gradients(x, targets)
        results.append((value, gradients["w"]))
        assert trainer.loss(x, targets) == pytest.approx(value, rel=1e-6)
    weight = torch.tensor(trainer.weights()["w"], requires_grad=True)
    wanted = theirs(forward(kind, x, weight), targets)
    wanted.backward()
    reference = weight.grad.numpy()
    for value, gradient in results:
        assert value == pytest.approx(wanted.item(), rel=1e-5)
        assert np.abs(gradient - reference).max() <= 1e-5 * np.abs(reference).max()


def labels_for(kind: str, ignored: float = 0.0, marker: int = -100) -> Callable[[Any, tuple[int, ...]], Array]:
    def make(rng: Any, out: tuple[int, ...]) -> Array:
        places = (out[0], *out[2:]) if kind == "image" else out[:-1]
        labels = np.asarray(rng.integers(0, CLASSES, places))
        labels[rng.random(places) < ignored] = marker
        if ignored:
            labels[0] = marker  # one sample counts nothing at all
        return labels

    return make


CLASS_WEIGHTS = [0.5, 1.0, 2.0, 0.0, 3.0]


@pytest.mark.parametrize("kind", ["flat", "sequence", "image"])
@pytest.mark.parametrize("options", [
    {}, {"label_smoothing": 0.1}, {"class_weights": CLASS_WEIGHTS},
    {"label_smoothing": 0.2, "class_weights": CLASS_WEIGHTS, "ignore_index": 3}, {"ignore_index": -1},
], ids=str)  # fmt: skip
def test_cross_entropy(kind: str, options: dict[str, Any]) -> None:
    marker = options.get("ignore_index", -100)

    def theirs(logits: Any, labels: Array) -> Any:
        logits = logits.movedim(-1, 1) if kind == "sequence" else logits
        given = dict(options)
        if "class_weights" in given:
            given["weight"] = torch.tensor(given.pop("class_weights"))
        return functional.cross_entropy(logits, torch.tensor(labels), **given)

    ignored = 0.0 if not options else 0.3
    compare(kind, "cross_entropy", options, labels_for(kind, ignored, marker), theirs)


@pytest.mark.parametrize("kind", ["flat", "sequence", "image"])
def test_cross_entropy_sees_through_a_softmax(kind: str) -> None:
    def theirs(logits: Any, labels: Array) -> Any:
        return functional.cross_entropy(logits.movedim(-1, 1) if kind == "sequence" else logits, torch.tensor(labels))

    compare(kind, "cross_entropy", {}, labels_for(kind), theirs, tail="Softmax")


def test_the_axis_of_the_classes_may_be_named() -> None:
    """[N, 6, 5]: by default classes are last behind a product; here the 6 are."""

    def theirs(logits: Any, labels: Array) -> Any:
        return functional.cross_entropy(logits, torch.tensor(labels))

    compare("sequence", "cross_entropy", {"axis": 1}, lambda rng, out: rng.integers(0, 6, (out[0], out[2])), theirs)
    data, _, _ = model("flat")
    for axis in (2, -2, 0.5):
        with pytest.raises(EngineError, match="axis"):
            compile(data, loss_options={"axis": axis})


@pytest.mark.parametrize("tail", ["", "Sigmoid"])
@pytest.mark.parametrize("options", [{}, {"pos_weight": 3.0}, {"pos_weight": [0.5, 1, 2, 3, 4]}], ids=str)
@pytest.mark.parametrize("kind", ["flat", "image"])
def test_binary_cross_entropy(kind: str, options: dict[str, Any], tail: str) -> None:
    def theirs(logits: Any, targets: Array) -> Any:
        weight = np.atleast_1d(np.array(options.get("pos_weight", 1.0), np.float32))
        if kind == "image":
            weight = weight.reshape(-1, 1, 1)
        return functional.binary_cross_entropy_with_logits(
            logits, torch.tensor(targets), pos_weight=torch.tensor(weight)
        )

    compare(
        kind, "binary_cross_entropy", options,
        lambda rng, out: np.where(rng.random(out) < 0.5, rng.integers(0, 2, out), rng.random(out)).astype(np.float32),
        theirs, tail,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["flat", "sequence", "image"])
@pytest.mark.parametrize(("loss", "options", "theirs"), [
    ("mse", {}, functional.mse_loss),
    ("l1", {}, functional.l1_loss),
    ("huber", {}, functional.huber_loss),
    ("huber", {"delta": 0.3}, lambda y, t: functional.huber_loss(y, t, delta=0.3)),
    ("huber", {"delta": 0.5}, lambda y, t: 0.5 * functional.smooth_l1_loss(y, t, beta=0.5)),
], ids=str)  # fmt: skip
def test_distances(kind: str, loss: str, options: dict[str, Any], theirs: Any) -> None:
    compare(
        kind, loss, options, lambda rng, out: rng.standard_normal(out).astype(np.float32),
        lambda y, t: theirs(y, torch.tensor(t)),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["flat", "sequence", "image"])
@pytest.mark.parametrize("hard_weight", [0.0, 0.25, 1.0])
def test_distillation(kind: str, hard_weight: float) -> None:
    axis = -1 if kind == "sequence" else 1

    def make(rng: Any, out: tuple[int, ...]) -> dict[str, Array]:
        teacher = rng.standard_normal(out).astype(np.float32)
        labels = labels_for(kind)(rng, out)
        return {"teacher": teacher} if hard_weight == 0 else {"labels": labels, "teacher": teacher}

    def theirs(logits: Any, targets: dict[str, Array]) -> Any:
        soft = functional.kl_div(
            torch.log_softmax(logits / 3, axis), torch.log_softmax(torch.tensor(targets["teacher"]) / 3, axis),
            log_target=True, reduction="sum",
        )  # fmt: skip
        total = (1 - hard_weight) * 9 * soft / (logits.numel() / CLASSES)
        if hard_weight:
            moved = logits.movedim(-1, 1) if kind == "sequence" else logits
            total = total + hard_weight * functional.cross_entropy(moved, torch.tensor(targets["labels"]))
        return total

    compare(kind, "distillation", {"temperature": 3.0, "hard_weight": hard_weight}, make, theirs)


def test_far_logits_neither_overflow_nor_vanish() -> None:
    x = np.array([[200.0], [-200.0], [0.0]], np.float32)
    b = Builder("h")
    b.op("MatMul", "x", "w", name="y")
    kinds = {"x": TensorType("float32", (1, 1))}, {"y": TensorType("float32", (1, 1))}
    data = onnxio.to_bytes(b.nodes, *kinds, {"w": np.ones((1, 1), np.float32)}, 18, free_batch=True)
    trainer = Trainer(compile(data, loss="binary_cross_entropy", batch=3))
    loss, gradients = trainer.gradients(x, np.array([0, 1, 1], np.float32))  # [N] for [N, 1]
    assert loss == pytest.approx((400 + np.log(2)) / 3, rel=1e-6)
    assert gradients["w"].item() == pytest.approx(400 / 3, rel=1e-6)


def test_collecting_batches_with_ignored_labels_is_one_batch() -> None:
    data, shape, _ = model("image")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, *shape)).astype(np.float32)
    labels = labels_for("image", 0.4)(rng, (6, CLASSES, 4, 6))
    options = {"class_weights": CLASS_WEIGHTS}
    one, several = (
        Trainer(compile(data, loss_options=options, batch=2, optimizer="sgd"), learning_rate=0.1) for _ in range(2)
    )
    one.step(x, labels)
    for start in (0, 2, 4):
        several.accumulate(x[start : start + 2], labels[start : start + 2])
    several.apply()
    np.testing.assert_allclose(one.weights()["w"], several.weights()["w"], rtol=1e-5, atol=1e-6)


MLP = models.mlp(4, [3], 3)
REFUSED: list[tuple[dict[str, Any], Any, str]] = [
    ({}, np.array([0, 1, 3, 0]), "labels run from 0 to 3"),
    ({}, np.full(4, -100), "no label counts"),
    ({"loss_options": {"class_weights": [1, 1, 0]}}, np.full(4, 2), "no label counts"),
    ({"loss_options": {"ignore_index": 7}}, np.array([0, 7, -100, 0]), "labels run from -100"),
    ({"loss": "distillation"}, (np.full(4, -100), np.zeros((4, 3), np.float32)), "labels run from -100"),
    ({"loss": "binary_cross_entropy"}, np.full((4, 3), 1.5, np.float32), "0 .no. to 1 .yes."),
    ({"loss": "binary_cross_entropy"}, np.full((4, 3), np.nan, np.float32), "0 .no. to 1 .yes."),
    ({"loss": "l1"}, np.zeros((4, 2), np.float32), r"\[N, 3\]"),
    ({"loss": "huber"}, np.zeros((3, 3), np.float32), "3 samples"),
]


@pytest.mark.parametrize(("how", "targets", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_targets_that_are_refused_change_nothing(how: Any, targets: Any, message: str) -> None:
    trainer = Trainer(compile(MLP, **how))
    before = trainer.weights()
    for call in (trainer.step, trainer.accumulate, trainer.gradients, trainer.loss):
        with pytest.raises(DataError, match=message):
            call(np.zeros((4, 4), np.float32), targets)
    assert trainer.steps == 0
    assert all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())


def test_the_reference_page_names_every_loss_and_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "losses.md").read_text()
    for name, loss in LOSSES.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
        for option, default in loss.defaults.items():
            text = "none" if default == () else f"{default:g}"
            assert f"`{option}` ({text})" in row


@pytest.mark.parametrize(("loss", "options"), [
    ("cross_entropy", {"label_smoothing": 1.5}), ("cross_entropy", {"class_weights": [-1, 1, 1]}),
    ("cross_entropy", {"class_weights": [1, 1]}), ("cross_entropy", {"label_smoothing": [0.1, 0.2]}),
    ("cross_entropy", {"axis": 3}), ("cross_entropy", {"temperature": 2}), ("huber", {"delta": 0}),
    ("cross_entropy", {"class_weights": [0, 0, 0]}), ("binary_cross_entropy", {"pos_weight": [1, 2]}),
    ("binary_cross_entropy", {"pos_weight": -1}), ("distillation", {"temperature": 0}), ("hinge", {}),
    ("mse", {"delta": 1}), ("cross_entropy", {"class_weights": ["a"]}), ("cross_entropy", {"ignore_index": None}),
], ids=str)  # fmt: skip
def test_options_that_make_no_sense(loss: str, options: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        compile(MLP, loss=loss, loss_options=options)
    with pytest.raises(ModelError, match="use binary_cross_entropy"):
        compile(models.mlp(4, [3], 1))
