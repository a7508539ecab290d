"""Measuring in a fresh process: what importing costs, and what a plan really takes.

Strategy: the child is this module, started with `-m`; it prints one number. Nothing of the caller's memory counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from .errors import ExecutionError, MemoryLimitError
from .memory import LEAN_ENVIRONMENT, peak_resident_bytes
from .plan import TrainingPlan, load_plan

_STEPS = 6
_SECONDS = 600


def _child(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        capture_output=True, text=True, timeout=_SECONDS, check=False, env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        if "MemoryLimitError" in last[0] or "MemoryError" in last[0]:
            raise MemoryLimitError(f"a trial run of the plan ran out of the machine's memory: {last[0]}")
        raise ExecutionError(f"a trial run of the plan failed: {last[0]}")
    return int(done.stdout)


@lru_cache(maxsize=1)
def measure_baseline(model: bytes) -> int:
    """Peak resident bytes of a process that has imported what training needs and run a small model (without inputs).

    The first session of a process costs far more than its tensors: program text, tables of operators.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        path.write_bytes(model)
        return _child("baseline", str(path))


def measure_peak(plan: TrainingPlan) -> int:
    """Peak resident bytes of a process that loads a plan and takes a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plan")
        plan.save(path)
        return _child("plan", str(path))


def run_steps(plan: TrainingPlan, steps: int = _STEPS) -> None:
    """Take steps on noise, with a learning rate of zero."""
    from .trainer import Trainer

    trainer = Trainer(plan, learning_rate=0.0)
    noise = np.random.default_rng(0)
    batch = plan.info.batch
    inputs = {
        t.name: np.zeros((batch, *t.shape[1:]), t.dtype) if t.dtype.startswith(("int", "uint", "bool"))
        else noise.standard_normal((batch, *t.shape[1:]), np.float32).astype(t.dtype)
        for t in plan.info.inputs
    }  # fmt: skip
    targets = {
        t.name.rpartition(".")[2]: np.zeros((batch, *t.shape[1:]), t.dtype) for t in plan.info.targets
        if not t.name.endswith("sample_weight")
    }  # fmt: skip
    for _ in range(steps):
        trainer.step(inputs, targets)


def main(arguments: list[str]) -> None:
    """Child: `baseline MODEL` or `plan PATH`."""
    from . import runtime, trainer

    if arguments[0] == "plan":
        run_steps(load_plan(arguments[1]))
    else:
        runtime.session(arguments[1]).run(None, {})
        assert trainer  # imported for its weight
    print(peak_resident_bytes())


if __name__ == "__main__":
    main(sys.argv[1:])
