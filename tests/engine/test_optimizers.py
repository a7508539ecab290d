"""Optimizers on flat arrays: against PyTorch, in few bytes, and what they leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sanderling.codec.formats import number_format
from sanderling.engine import EngineError, Trainer, compile, models
from sanderling.engine.optimizers import STATE_FORMATS, OptimizerState, Slot, make_optimizer, state_bytes
from sanderling.engine.optimizers.state import PIECE, SMALL

torch = pytest.importorskip("torch", reason="PyTorch is not installed: optimizers are compared with its own")

LARGE, TINY = 3 * PIECE + 77, 40
SLOTS = [Slot(0, TINY), Slot(48, LARGE), Slot(48 + LARGE + 3, 33, decays=False)]
SIZE = 48 + LARGE + 48


def run(name: str, precision: str, steps: int = 5, **options: float) -> tuple[Any, OptimizerState]:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(SIZE).astype(np.float32)
    state = OptimizerState(name, precision, SLOTS)
    optimizer = make_optimizer(name, 0.01, options)
    for step in range(1, steps + 1):
        gradient = np.zeros(SIZE, np.float32)
        for slot in SLOTS:
            gradient[slot.offset : slot.offset + slot.count] = rng.standard_normal(slot.count) * 0.1
        before = gradient.copy()
        state.apply(optimizer, weights, gradient, step)
        assert np.array_equal(gradient, before)
    return weights, state


def reference(name: str, steps: int = 5, weight_decay: float = 0.0) -> Any:
    rng = np.random.default_rng(0)
    start = rng.standard_normal(SIZE).astype(np.float32)
    parameters = [torch.nn.Parameter(torch.tensor(start[s.offset : s.offset + s.count])) for s in SLOTS]
    groups = [
        {"params": [p], "weight_decay": weight_decay if s.decays else 0.0}
        for p, s in zip(parameters, SLOTS, strict=True)
    ]
    adam = name == "adam"
    optimizer = torch.optim.AdamW(groups, lr=0.01) if adam else torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.tensor((rng.standard_normal(len(parameter)) * 0.1).astype(np.float32))
        optimizer.step()
    return [p.detach().numpy() for p in parameters]


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adam", 0.1), ("sgd", 0.0)])
def test_float32_is_pytorch_s(name: str, decay: float) -> None:
    weights, _ = run(name, "float32", weight_decay=decay)
    for slot, wanted in zip(SLOTS, reference(name, weight_decay=decay), strict=True):
        np.testing.assert_allclose(weights[slot.offset : slot.offset + slot.count], wanted, rtol=1e-5, atol=1e-6)


def test_decoupled_decay_of_sgd() -> None:
    state = OptimizerState("sgd", "float32", [Slot(0, 2)])
    weights = np.array([1, -2], np.float32)
    state.apply(make_optimizer("sgd", 0.1, {"weight_decay": 0.5}), weights, np.zeros(2, np.float32), 1)
    assert weights == pytest.approx([0.95, -1.9])


@pytest.mark.parametrize("precision", [p for p in STATE_FORMATS if p != "float32"])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_state_in_bytes_stays_near_and_small_tensors_are_exact(name: str, precision: str) -> None:
    exact, _ = run(name, "float32")
    given, state = run(name, precision)
    for slot in (SLOTS[0], SLOTS[2]):
        part = slice(slot.offset, slot.offset + slot.count)
        assert np.array_equal(given[part], exact[part])
    start = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    large = slice(SLOTS[1].offset, SLOTS[1].offset + LARGE)
    moved, off = np.abs(exact - start)[large], np.abs(given - exact)[large]
    allowed = {"dynamic8": 0.02, "fixed8": 0.05, "e4m3": 0.05, "e5m2": 0.1}[precision]
    assert 0 < off.mean() < allowed * moved.mean()
    means = 2 if name == "adam" else 1
    assert state.nbytes / means == pytest.approx(LARGE * (1 + 4 / 256) + 4 * (TINY + 33), abs=16)


def test_bytes_are_as_announced() -> None:
    shapes = [(64, 64), (SMALL - 1,), (100, 300), (7,)]
    offsets = np.cumsum([0, *(-(-int(np.prod(s)) // 16) * 16 for s in shapes)])
    slots = [Slot(int(o), int(np.prod(s))) for o, s in zip(offsets, shapes, strict=False)]
    for name in ("adam", "sgd"):
        for precision in STATE_FORMATS:
            state = OptimizerState(name, precision, slots)
            assert 0 <= state.nbytes - state_bytes(name, precision, shapes) <= 2 * 4 * 16 * len(shapes)
    assert state_bytes("adam", "dynamic8", [(1000, 1024)]) / 1_024_000 == pytest.approx(2.03, abs=2e-3)
    assert state_bytes("sgd", "dynamic8", [(1000, 1024)]) / 1_024_000 == pytest.approx(1.016, abs=1e-3)


def test_state_is_what_its_arrays_say() -> None:
    _, state = run("adam", "dynamic8")
    copies = [a.copy() for a in state.arrays()]
    other = OptimizerState("adam", "dynamic8", SLOTS)
    for array, copy in zip(other.arrays(), copies, strict=True):
        array[...] = copy
    weights = [np.zeros(SIZE, np.float32) for _ in range(2)]
    for s, w in zip((state, other), weights, strict=True):
        s.apply(make_optimizer("adam", 0.1, {}), w, np.full(SIZE, 0.5, np.float32), 6)
    assert np.array_equal(weights[0], weights[1])
    state.reset()
    assert not any(a.any() for a in state.arrays())


def test_a_mean_of_squares_never_becomes_a_zero_to_divide_by() -> None:
    state = OptimizerState("adam", "dynamic8", [Slot(0, SMALL)])
    weights = np.zeros(SMALL, np.float32)
    gradient = np.full(SMALL, 1e-7, np.float32)
    gradient[::256] = 10.0  # every block has one that makes the rest tiny
    for step in range(1, 4):
        state.apply(make_optimizer("adam", 0.01, {}), weights, gradient, step)
    assert np.abs(weights).max() <= 0.04


def test_gradients_beyond_what_can_be_squared_are_refused() -> None:
    trainer = Trainer(compile(models.mlp(4, [3], 2), loss="mse"), learning_rate=0.0)
    before = trainer.weights()
    with pytest.raises(EngineError, match="not finite"):
        trainer.step(np.full((2, 4), 1e30, np.float32), np.zeros((2, 2), np.float32))
    assert all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())


def test_trainers_learn_with_every_state() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 64)).astype(np.float32)
    y = (x @ rng.standard_normal((64, 5))).argmax(1)
    losses = {}
    for precision in STATE_FORMATS:
        plan = compile(models.mlp(64, [96], 5), batch=64, optimizer_state=precision)
        assert precision in plan.describe()
        trainer = Trainer(plan, learning_rate=3e-3)
        for _ in range(30):
            losses[precision] = trainer.step(x, y)
    assert losses["float32"] < 0.3
    assert losses == pytest.approx(dict.fromkeys(losses, losses["float32"]), rel=0.15)


def test_what_is_refused() -> None:
    for name, options in (("adam", {"beta1": 1.0}), ("sgd", {"momentum": -0.1}), ("adam", {"epsilon": float("nan")})):
        with pytest.raises(EngineError, match="makes no sense"):
            make_optimizer(name, 0.1, options)
    with pytest.raises(EngineError, match="no optimizer 'rmsprop'"):
        compile(models.mlp(4, [3], 2), optimizer="rmsprop")
    with pytest.raises(EngineError, match=r"no optimizer state in 'int3'.*dynamic8"):
        compile(models.mlp(4, [3], 2), optimizer_state="int3")
    assert number_format("dynamic8") is number_format("dynamic8")


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_means_of_gradients_that_stay_away_do_not_become_subnormal(name: str) -> None:
    state = OptimizerState(name, "float32", [Slot(0, 100)])
    optimizer = make_optimizer(name, 0.01, {"beta2": 0.9} if name == "adam" else {})
    weights = np.zeros(100, np.float32)
    state.apply(optimizer, weights, np.linspace(-1e-8, 1, 100, dtype=np.float32), 1)
    for step in range(2, 2000):
        before = weights.copy()
        state.apply(optimizer, weights, np.zeros(100, np.float32), step)
        for mean in state.arrays():
            assert not ((mean != 0) & (np.abs(mean) < np.finfo(np.float32).tiny)).any()
    assert np.array_equal(before, weights) and np.isfinite(weights).all()


def test_without_momentum_is_pytorch_s() -> None:
    weights = np.linspace(-1, 1, 64, dtype=np.float32)
    parameter = torch.nn.Parameter(torch.tensor(weights.copy()))
    reference, state = torch.optim.SGD([parameter], lr=0.1), OptimizerState("sgd", "float32", [Slot(0, 64)])
    for step in range(1, 4):
        gradient = np.sin(weights * step).astype(np.float32)
        parameter.grad = torch.tensor(gradient)
        reference.step()
        state.apply(make_optimizer("sgd", 0.1, {"momentum": 0.0}), weights, gradient, step)
    np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=1e-6)
