"""Sparse updates: which weights are trained when not all fit."""

from __future__ import annotations

import numpy as np
import pytest

from sanderling.engine import MemoryLimitError, Trainer, compile, models, parse_size
from sanderling.engine.drafts import Drafts
from sanderling.engine.graph import Array
from sanderling.engine.sparse import contributions

MIB = 2**20


def wide_mlp() -> bytes:
    """1.6 million weights, most of them in the first layer."""
    return models.mlp(1024, [1024, 512, 64], 10)


def data(samples: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, samples)
    x = 0.3 * rng.standard_normal((samples, 1024)).astype(np.float32)
    x[np.arange(samples), y] += 4
    return x, y


def test_everything_is_trained_where_it_fits() -> None:
    plan = compile(wide_mlp(), trainable="auto", memory_limit=parse_size("200MiB"), trial=False)
    assert len(plan.info.trainable) == len(plan.info.weights)
    assert compile(wide_mlp(), trainable="auto").info.trainable == plan.info.trainable


def test_contributions_are_gradients() -> None:
    x, y = data(8)
    model = wide_mlp()
    drafts = Drafts(model, "cross_entropy", {}, 8, "adam", "all", None, 1, {})
    _, gradients = Trainer(compile(model, batch=8)).gradients(x, y)
    given = contributions(drafts, (x, y))
    assert given == pytest.approx({n: np.abs(g).sum(dtype=float) for n, g in gradients.items()}, rel=1e-4)
    drafts.optimizer = "sgd"
    given = contributions(drafts, (x, y))
    assert given == pytest.approx({n: np.square(g).sum(dtype=float) for n, g in gradients.items()}, rel=1e-3)


def smallest(trainable: str) -> int:
    """The smallest limit for training these weights, in bytes."""
    with pytest.raises(MemoryLimitError) as caught:
        compile(wide_mlp(), trainable=trainable, batch=8, memory_limit=MIB)
    return caught.value.smallest


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_tight_limit_trains_what_fits_and_learns(share: float) -> None:
    x, y = data(64)
    least, most = smallest("last"), smallest("all")
    limit = round(least + share * (most - least))
    plan = compile(wide_mlp(), trainable="auto", batch=8, memory_limit=limit, samples=(x, y))
    assert 0 < len(plan.info.trainable) < len(plan.info.weights)
    assert plan.peak_bytes <= limit
    trainer = Trainer(plan, learning_rate=3e-3)
    before = trainer.weights()
    first = trainer.loss(x, y)
    for _ in range(6):
        for start in range(0, 64, 8):
            trainer.step(x[start : start + 8], y[start : start + 8])
    assert trainer.loss(x, y) < 0.7 * first
    moved = {n for n, v in trainer.weights().items() if not np.array_equal(v, before[n])}
    assert moved == set(plan.info.trainable)


def test_samples_decide() -> None:
    x, y = data(64)
    dead = x.copy()
    dead[:] = 0  # nothing in the first layer's weights can lower the loss
    plan = compile(wide_mlp(), trainable="auto", memory_limit=74 * MIB, samples=(dead, y), trial=False)
    assert "hidden0.weight" not in plan.info.trainable
