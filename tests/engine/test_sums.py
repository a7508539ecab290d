"""Sums of gradients, exact and in a byte per number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.engine import EngineError, MemoryLimitError, NonFiniteError, Trainer, compile, models
from sanderling.engine.optimizers import STATE_FORMATS, Slot
from sanderling.engine.optimizers.state import PIECE
from sanderling.engine.sums import GradientSum

LARGE = 2 * PIECE + 300
SLOTS = [Slot(0, 40), Slot(48, LARGE), Slot(48 + LARGE + 4, 33), Slot(48 + LARGE + 48, 5000)]
SIZE = 48 + LARGE + 48 + 5008


def gradients(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        gradient = np.zeros(SIZE, np.float32)
        for slot in SLOTS:
            gradient[slot.offset : slot.offset + slot.count] = rng.standard_normal(slot.count)
        found.append(gradient)
    return found


@pytest.mark.parametrize("precision", STATE_FORMATS)
def test_sums_are_near_and_small_tensors_exact(precision: str) -> None:
    total = GradientSum(SLOTS, precision)
    for _ in range(2):  # the second time in the same memory
        parts = gradients(6)
        for part in parts:
            total.add(part)
        wanted = np.sum(parts, axis=0, dtype=np.float64)
        given = total.flat(SIZE)
        large = np.zeros(SIZE, bool)
        for slot in (SLOTS[1], SLOTS[3]):
            large[slot.offset : slot.offset + slot.count] = True
        assert np.abs(given - wanted)[~large].max() < 1e-5
        off = np.abs(given - wanted)[large].mean() / np.abs(wanted).mean()
        if precision == "float32":
            assert off < 1e-6
        else:
            assert 1e-4 < off < {"dynamic8": 0.03, "fixed8": 0.05, "e4m3": 0.08, "e5m2": 0.15}[precision]
        assert total.square == pytest.approx(float(given.astype(float) @ given), rel=1e-5)
        # any piece, across tensors and blocks, scaled and cut off
        for start, stop in ((0, 100), (30, PIECE + 30), (PIECE - 7, 2 * PIECE - 7), (SIZE - 5100, SIZE - 8)):
            assert np.array_equal(total[start:stop], given[start:stop])
        total.scale(0.5, 0.25)
        assert np.array_equal(total[30:PIECE], np.clip(given[30:PIECE] * np.float32(0.5), -0.25, 0.25))
        total.clear()
        assert not total.flat(SIZE).any()


def noise(samples: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((samples, 64)).astype(np.float32), rng.integers(0, 10, samples)


@pytest.mark.parametrize("segments", [1, 2])
def test_training_with_packed_sums(segments: int, tmp_path: Path) -> None:
    model, (x, y) = models.mlp(64, [128], 10), noise(24)
    how: Any = {"batch": 24, "micro_batch": 6, "segments": segments}
    exact = Trainer(compile(model, **how), learning_rate=0.01, clip_norm=0.5, clip_value=0.02)
    plan = compile(model, gradient_sums="dynamic8", **how)
    assert plan.info.footprint.gradients < exact.plan.info.footprint.gradients / 2
    packed = Trainer(plan, learning_rate=0.01, clip_norm=0.5, clip_value=0.02)
    for _ in range(15):
        wanted, given = exact.step(x, y), packed.step(x, y)
        assert given == pytest.approx(wanted, rel=0.03)
    assert given < 1.0
    packed.accumulate(x[:9], y[:9])
    packed.save(tmp_path / "t")
    resumed = Trainer.load(tmp_path / "t")
    for trainer in (packed, resumed):
        trainer.accumulate(x[9:], y[9:])
        trainer.apply()
    assert all(np.array_equal(v, resumed.weights()[n]) for n, v in packed.weights().items())


@pytest.mark.parametrize("precision", ["float32", "dynamic8"])
def test_what_is_not_finite_is_named_and_changes_nothing(precision: str) -> None:
    x, y = noise(8)
    trainer = Trainer(compile(models.mlp(64, [128], 10), batch=8, micro_batch=4, gradient_sums=precision))
    trainer.set_weights({"hidden0.weight": np.full((128, 64), 1e15, np.float32)})
    before = trainer.weights()
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            trainer.step(x * np.float32(1e12), y)
    assert trainer.steps == 0
    assert all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())
    with pytest.raises(EngineError, match="int3"):
        compile(models.mlp(4, [3], 2), gradient_sums="int3")


def test_the_planner_packs_sums_only_where_nothing_exacter_fits() -> None:
    model = models.mlp(256, [512, 512], 10)
    how: Any = {"batch": 512, "trial": False}

    def smallest(**wishes: Any) -> int:
        with pytest.raises(MemoryLimitError) as refused:
            compile(model, memory_limit=2**20, **how, **wishes)
        return refused.value.smallest

    exact, packed = smallest(gradient_sums="float32"), smallest()
    assert packed < exact
    assert compile(model, memory_limit=(packed + exact) // 2, **how).info.gradient_sums == "dynamic8"
    assert compile(model, memory_limit=exact, **how).info.gradient_sums == "float32"
    assert compile(model, memory_limit=packed, **how).peak_bytes <= packed
