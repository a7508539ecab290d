"""Ways to take a step: collected over calls, clipped, decayed, scheduled; each against PyTorch or one large step."""

from __future__ import annotations

import dataclasses
import inspect
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.engine import DataError, EngineError, NonFiniteError, Trainer, compile, models
from sanderling.engine.adapters import Wish
from sanderling.engine.graph import Array
from sanderling.engine.optimizers import STATE_FORMATS
from sanderling.engine.schedules import Constant, Cosine, Linear, OneCycle, Steps

MODEL = models.mlp(6, [16, 12], 4)


def data(samples: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((samples, 6)).astype(np.float32), rng.integers(0, 4, samples)


def equal(a: Trainer, b: Trainer, tolerance: float = 0.0) -> bool:
    return all(np.abs(v - b.weights()[n]).max() <= tolerance for n, v in a.weights().items())


@pytest.mark.parametrize("how", [{"segments": 1}, {"segments": 3}, {"micro_batch": 4}], ids=str)
def test_collected_gradients_are_those_of_one_batch(how: dict[str, int]) -> None:
    x, y = data(23)
    one = Trainer(compile(MODEL, batch=8, **how), learning_rate=0.01)  # type: ignore[arg-type]
    several = Trainer(compile(MODEL, batch=8, **how), learning_rate=0.01)  # type: ignore[arg-type]
    for _ in range(3):
        one.step(x, y)
        losses = [several.accumulate(x[a:b], y[a:b]) * (b - a) for a, b in ((0, 8), (8, 11), (11, 23))]
        several.apply()
    assert several.steps == 3
    assert one.loss(x, y) < sum(losses) / 23 * 1.01
    assert equal(one, several, 2e-6)


def test_collecting_survives_saving_and_bad_batches(tmp_path: Path) -> None:
    x, y = data(12)
    trainer = Trainer(compile(MODEL, batch=4, segments=2), learning_rate=0.01)
    trainer.accumulate(x[:4], y[:4])
    with pytest.raises(DataError):
        trainer.accumulate(x[:4], y[:3])
    with pytest.raises(EngineError, match="apply"):
        trainer.step(x, y)
    trainer.save(tmp_path / "t")
    trainer.accumulate(x[4:], y[4:])
    trainer.apply()
    resumed = Trainer.load(tmp_path / "t")
    resumed.accumulate(x[4:], y[4:])
    resumed.apply()
    assert equal(trainer, resumed)
    whole = Trainer(compile(MODEL, batch=4, segments=2), learning_rate=0.01)
    whole.step(x, y)
    assert equal(trainer, whole, 2e-6)
    for drop in (trainer.discard, lambda: trainer.accumulate(np.full((8, 6), np.nan, np.float32), y[:8])):
        trainer.accumulate(x, y)
        with suppress(NonFiniteError):
            drop()
        with pytest.raises(EngineError, match="no gradients to apply"):
            trainer.apply()


def test_collecting_needs_room_under_a_limit() -> None:
    x, y = data(4)
    limit = 400 * 2**20
    tight = Trainer(compile(MODEL, batch=4, micro_batch=4, memory_limit=limit, trial=False))
    with pytest.raises(EngineError, match="hold_gradients=True"):
        tight.accumulate(x, y)
    held = compile(MODEL, batch=4, micro_batch=4, memory_limit=limit, trial=False, hold_gradients=True)
    assert held.peak_bytes > tight.plan.peak_bytes
    Trainer(held).accumulate(x, y)


@pytest.mark.parametrize("how", [
    {}, {"segments": 3}, {"micro_batch": 2}, {"segments": 3, "micro_batch": 8, "memory_limit": 2**30, "trial": False},
    {"segments": 3, "hold_gradients": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("clip", [{"clip_norm": 0.05}, {"clip_norm": 1e6}, {"clip_value": 0.01}], ids=str)
def test_clipping_is_pytorch_s(how: Any, clip: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: clipping is compared with its own")
    x, y = data(8)
    trainer = Trainer(compile(MODEL, batch=8, optimizer="sgd", **how), learning_rate=0.5, momentum=0.0, **clip)
    _, gradients = trainer.gradients(x, y)
    parameters = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in trainer.weights().items()}
    for name, parameter in parameters.items():
        parameter.grad = torch.tensor(gradients[name])
    if "clip_norm" in clip:
        torch.nn.utils.clip_grad_norm_(parameters.values(), clip["clip_norm"])
    else:
        torch.nn.utils.clip_grad_value_(parameters.values(), clip["clip_value"])
    torch.optim.SGD(parameters.values(), lr=0.5).step()
    trainer.step(x, y)
    for name, value in trainer.weights().items():
        np.testing.assert_allclose(value, parameters[name].detach().numpy(), rtol=1e-5, atol=1e-7)


def test_clipping_by_norm_with_and_without_room_is_the_same() -> None:
    x, y = data(8)
    room: dict[str, Any] = {"segments": 3, "micro_batch": 8, "batch": 8}
    one = Trainer(compile(MODEL, **room), clip_norm=0.1)
    two = Trainer(compile(MODEL, memory_limit=2**30, trial=False, **room), clip_norm=0.1)
    for _ in range(3):
        assert one.step(x, y) == two.step(x, y)
    assert equal(one, two, 1e-7)


def test_decay_may_leave_out_biases() -> None:
    x, y = data(4)
    for decay, kept in (("all", False), ("matrices", True)):
        trainer = Trainer(
            compile(MODEL, batch=4, optimizer="sgd"), learning_rate=0.1, decay=decay, weight_decay=0.5, momentum=0.0
        )
        trainer.set_weights({n: np.ones_like(v) for n, v in trainer.weights().items() if n.endswith("bias")})
        before, (_, gradients) = trainer.weights(), trainer.gradients(x, y)
        trainer.step(x, y)
        for name, value in trainer.weights().items():
            share = 1.0 if kept and name.endswith("bias") else 0.95
            np.testing.assert_allclose(value, share * before[name] - 0.1 * gradients[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "schedule", [Linear(0.02, 8, warmup=3), Cosine(0.02, 9), Steps(0.02, 2), OneCycle(0.05, 8)], ids=lambda s: str(s)
)
def test_schedules_set_the_rate_and_resume(schedule: Any, tmp_path: Path) -> None:
    x, y = data(8)
    scheduled = Trainer(compile(MODEL), learning_rate=schedule)
    by_hand = Trainer(compile(MODEL))
    for step in range(1, 5):
        by_hand.learning_rate = schedule.rate(step)
        assert scheduled.learning_rate == schedule.rate(step)
        assert scheduled.step(x, y) == by_hand.step(x, y)
    scheduled.save(tmp_path / "t")
    resumed = Trainer.load(tmp_path / "t")
    for step in range(5, 8):
        by_hand.learning_rate = schedule.rate(step)
        assert resumed.step(x, y) == by_hand.step(x, y) == scheduled.step(x, y)
    assert equal(resumed, by_hand) and equal(resumed, scheduled)


@pytest.mark.parametrize("options", [
    {"clip_norm": 0.0}, {"clip_value": float("nan")}, {"decay": "none"}, {"learning_rate": -1.0},
], ids=str)  # fmt: skip
def test_what_a_trainer_refuses(options: Any) -> None:
    with pytest.raises(EngineError):
        Trainer(compile(MODEL), **options)


def test_a_gradient_that_is_not_finite_keeps_all_weights_when_gradients_are_held() -> None:
    x, y = data(4)
    trainer = Trainer(compile(MODEL, batch=4, segments=3, hold_gradients=True), learning_rate=0.1)
    huge = {n: v * np.float32(1e19) for n, v in trainer.weights().items() if n == "hidden1.weight"}
    trainer.set_weights(huge)
    before = trainer.weights()
    with pytest.raises(NonFiniteError):
        for _ in range(3):
            trainer.step(x * 1e19, y)
    assert equal(trainer, trainer) and all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())
    assert trainer.steps == 0


def test_the_reference_page_shows_what_there_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "training.md").read_text()
    for name in STATE_FORMATS:
        assert f"`{name}`" in page
    for schedule in (Constant, Linear, Cosine, Steps, OneCycle):
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{schedule.__name__}(")]
        fields = schedule.__struct_fields__[1:]
        defaults = dict(zip(fields[::-1], schedule.__struct_defaults__[::-1], strict=False))
        for name in fields:
            assert name in row
            given = re.search(rf"{name}=([0-9.e]+)", row)
            assert (None if given is None else float(given[1])) == defaults.get(name)
    for option, default in ((f.name, f.default) for f in dataclasses.fields(Wish)):
        shown = "none" if default is None else str(default)
        assert f"| `{option}` | {shown} |" in page
    parameters = inspect.signature(Trainer).parameters
    assert {n for n in parameters if n not in ("plan", "options")} == {
        "learning_rate", "clip_norm", "clip_value", "decay", "seed",
    }  # fmt: skip
