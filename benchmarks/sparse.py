"""A sparse update under a tight limit against training the last layer at the same limit. Prints JSON.

    python benchmarks/sparse.py [--seeds N] [--rounds N]

The tasks of `lowbit.py` with wider models, so that weights are what takes the memory: digits with an MLP of 1.3 million
weights, the wrist recordings with a depthwise separable CNN of 0.5 million. A model that has seen a quarter of the data
for three rounds trains on all of it under a limit two fifths of the way from what the last layer alone needs to what
all weights need: `trainable="auto"` (judged on a batch of the data) and `trainable="last"`; beside them all weights,
without a limit. `difference` is the mean over seeds of auto minus last, in points, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.lowbit import TASKS, Task, known
from sanderling.engine import Trainer, TrainingPlan, compile, evaluate, models
from sanderling.engine.schedules import Cosine

WIDE: dict[str, Callable[[int], bytes]] = {
    "mnist": lambda seed: models.mlp(784, [1024, 512], 10, seed=seed),
    "wrist": lambda seed: models.depthwise_cnn_1d(widths=(256, 384, 512, 512), seed=seed),
}
SHARE = 0.4


def accuracy(task: Task, plan: TrainingPlan, seed: int, rounds: int) -> float:
    """What training by a plan reaches on unseen samples, in %."""
    split = task.data(seed)
    steps = rounds * math.ceil(len(split.y) / task.batch)
    trainer = Trainer(plan, Cosine(task.learning_rate, steps, warmup=steps // 20))
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        order = rng.permutation(len(split.y))
        for begin in range(0, len(order), task.batch):
            chosen = order[begin : begin + task.batch]
            trainer.step(split.x[chosen], split.y[chosen])
    return 100 * evaluate(trainer.export_bytes(), split.unseen_x, split.unseen_y, 256)


def compare(task: Task, seeds: int, rounds: int) -> dict[str, Any]:
    """All three ways, over seeds."""
    found: dict[str, list[float]] = {"before": [], "last": [], "auto": [], "all": []}
    told: dict[str, Any] = {}
    for seed in range(seeds):
        split = task.data(seed)
        start = known(task.model(seed), split)
        found["before"].append(100 * evaluate(start, split.unseen_x, split.unseen_y, 256))
        everything = compile(start, batch=task.batch, trial=True)
        least = compile(start, batch=task.batch, trainable="last", trial=True).peak_bytes
        limit = round(least + SHARE * (everything.peak_bytes - least))
        samples = (split.x[: task.batch], split.y[: task.batch])
        plans = {
            "last": compile(start, batch=task.batch, trainable="last", memory_limit=limit),
            "auto": compile(start, batch=task.batch, trainable="auto", memory_limit=limit, samples=samples),
            "all": everything,
        }
        for name, plan in plans.items():
            found[name].append(accuracy(task, plan, seed, rounds))
        told = {
            "limit_mib": round(limit / 2**20, 1),
            "peak_mib": {n: round(p.peak_bytes / 2**20, 1) for n, p in plans.items()},
            "trained_weights": {n: count(p) for n, p in plans.items()},
        }
    gaps = [a - b for a, b in zip(found["auto"], found["last"], strict=True)]
    return {
        **told,
        "accuracy": {name: round(statistics.mean(values), 2) for name, values in found.items()},
        "difference": round(statistics.mean(gaps), 2),
        "standard_error": round(statistics.stdev(gaps) / math.sqrt(len(gaps)), 2) if seeds > 1 else None,
        "every_seed_better": min(gaps) > 0,
    }


def count(plan: TrainingPlan) -> int:
    """Numbers that are trained."""
    trained = set(plan.info.trainable)
    return sum(math.prod(t.shape) for t in plan.info.weights if t.name in trained)


def main() -> None:
    """Compare on both tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    results = {
        name: compare(replace(task, model=WIDE[name]), options.seeds, options.rounds) for name, task in TASKS.items()
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
