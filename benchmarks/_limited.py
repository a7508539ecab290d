"""A lean process that trains under a limit, as a device's trainer does: what `limit.py` measures.

    python benchmarks/_limited.py PLAN LIMIT STEPS

Prints its peak resident memory as the operating system says it (VmHWM: what `/usr/bin/time -v` prints of a process
that a small one started), whether training succeeded or not.
"""

from __future__ import annotations

import sys

import numpy as np

from sanderling.engine import Trainer, TrainingPlan, enforce_limit, load_plan, peak_resident_bytes
from sanderling.engine.graph import Array


def noise(plan: TrainingPlan) -> tuple[dict[str, Array], Array]:
    """A batch for a plan, without numpy's generators, which a lean process does without."""
    batch = plan.info.batch
    inputs: dict[str, Array] = {}
    for tensor in plan.info.inputs:
        shape = (batch, *tensor.shape[1:])
        wave = np.sin(np.arange(1, int(np.prod(shape)) + 1, dtype=np.float32) * np.float32(12.9898)).reshape(shape)
        inputs[tensor.name] = wave.astype(tensor.dtype)
    target = plan.info.targets[0]
    return inputs, np.zeros((batch, *target.shape[1:]), target.dtype)


def main(path: str, limit: int, steps: int) -> None:
    """Train on noise."""
    try:
        enforce_limit(limit)
        plan = load_plan(path)
        trainer = Trainer(plan)
        inputs, targets = noise(plan)
        for _ in range(steps):
            trainer.step(inputs, targets)
    finally:
        print(peak_resident_bytes())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
