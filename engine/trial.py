"""Measuring in a fresh process: what importing costs, and what a plan really takes.

Strategy: the child is this module, started with `-m`; it prints JSON. Nothing of the caller's memory counts. A plan
with a limit is tried under that limit as a hard one, so that what passes here passes on the device's trainer as well.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from .errors import ExecutionError, MemoryLimitError
from .graph import Array
from .memory import LEAN_ENVIRONMENT, enforce_limit, peak_resident_bytes, resident_bytes
from .plan import TrainingPlan, load_plan

if TYPE_CHECKING:
    from .trainer import Trainer

_STEPS = 4
_SECONDS = 600
#: By these the standard error of a child tells that memory ran out, in lower case: Python, C++, the runtime, the C
#: library.
_NO_MEMORY = (
    "memorylimiterror", "memoryerror", "bad_alloc", "failed to allocate memory", "cannot allocate memory",
    "can't start new thread",
)  # fmt: skip
#: By these signals a process ends in which an allocation failed where nobody looks.
_ENDED = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
_INTERVAL = 0.001  # seconds between two looks at resident memory


class Trial(msgspec.Struct, frozen=True):
    """What a trial run measured: the peak in bytes, and seconds of a step.

    With a curve: [seconds, resident bytes] from before the trainer was made, and for the first step, by the same
    clock, [seconds, session, whether it began or ended]; `began` and `ended` are the step's own times.
    """

    peak: int
    seconds: float
    curve: list[tuple[float, int]] = []
    sessions: list[tuple[float, int, bool]] = []
    began: float = 0.0
    ended: float = 0.0


def _child(*arguments: str, limited: bool = False) -> Trial:
    done = subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        capture_output=True, text=True, timeout=_SECONDS, check=False, env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        # where an allocation fails deep in the runtime or the C library, the process may end without a word of it
        ended = limited and done.returncode in _ENDED
        if ended or any(phrase in done.stderr.lower() for phrase in _NO_MEMORY):
            raise MemoryLimitError(f"a trial run of the plan ran out of memory: {last[0]}")
        raise ExecutionError(f"a trial run of the plan failed: {last[0]}")
    return msgspec.json.decode(done.stdout, type=Trial)


@lru_cache(maxsize=1)
def measure_baseline(model: bytes) -> int:
    """Peak resident bytes of a process that has imported what training needs and run a small model (without inputs).

    The first session of a process costs far more than its tensors: program text, tables of operators.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        path.write_bytes(model)
        return _child("baseline", str(path)).peak


def try_plan(plan: TrainingPlan, limit: int | None = None, curve: bool = False) -> Trial:
    """A process that loads a plan and takes a few steps, under a hard limit if there is one.

    Raises MemoryLimitError when the limit (in bytes) was reached, ExecutionError for anything else that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plan")
        plan.save(path)
        return _child("plan", str(path), str(limit or 0), str(int(curve)), limited=bool(limit))


def measure_peak(plan: TrainingPlan) -> int:
    """Peak resident bytes of a process that loads a plan and takes a few steps."""
    return try_plan(plan).peak


def run_steps(plan: TrainingPlan, steps: int = _STEPS, watch: _Watch | None = None) -> list[float]:
    """Take steps on noise, with a learning rate of zero; the seconds of each. `watch` is told of the first."""
    from .trainer import Trainer

    trainer = Trainer(plan, learning_rate=0.0)
    if watch is not None:
        watch.follow(trainer)
    batch = plan.info.batch
    inputs = {
        t.name: np.zeros((batch, *t.shape[1:]), t.dtype) if t.dtype.startswith(("int", "uint", "bool"))
        else _noise((batch, *t.shape[1:])).astype(t.dtype)
        for t in plan.info.inputs
    }  # fmt: skip
    targets = {
        t.name.rpartition(".")[2]: np.zeros((batch, *t.shape[1:]), t.dtype) for t in plan.info.targets
        if not t.name.endswith("sample_weight")
    }  # fmt: skip
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        trainer.step(inputs, targets)
        times.append(time.perf_counter() - start)
        if watch is not None:
            watch.leave(trainer)
    return times


def _noise(shape: tuple[int, ...]) -> Array:
    """Numbers between -1 and 1 without a pattern that matters (numpy's generators take 6 MB to import)."""
    count = math.prod(shape)
    noise: Array = np.sin(np.arange(1, count + 1, dtype=np.float32) * np.float32(12.9898)).reshape(shape)
    return noise


class _Watch:
    """Looks at resident memory while something runs."""

    def __init__(self) -> None:
        self.curve: list[tuple[float, int]] = []
        self.sessions: list[tuple[float, int, bool]] = []
        self.began = self.ended = 0.0
        self._start = time.perf_counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _now(self) -> float:
        return round(time.perf_counter() - self._start, 6)

    def _look(self) -> None:
        while not self._done.wait(_INTERVAL):
            self.curve.append((self._now(), resident_bytes()))

    def follow(self, trainer: Trainer) -> None:
        """The first step is about to begin."""
        trainer.watch(lambda index, begins: self.sessions.append((self._now(), index, begins)))
        self.began = self._now()

    def leave(self, trainer: Trainer) -> None:
        """A step has ended."""
        trainer.watch(None)
        self.ended = self.ended or self._now()


def main(arguments: list[str]) -> None:
    """Child: `baseline MODEL`, or `plan PATH LIMIT CURVE`."""
    from . import runtime, trainer

    seconds, watch = 0.0, _Watch()
    if arguments[0] == "plan":
        if limit := int(arguments[2]):
            enforce_limit(limit)
        plan = load_plan(arguments[1])
        if int(arguments[3]):
            with watch:
                times = run_steps(plan, watch=watch)
        else:
            times = run_steps(plan)
        seconds = min(times[1:])
    else:
        runtime.open_arena(2**20)
        runtime.step_session(Path(arguments[1]).read_bytes()).run(None, {})
        assert trainer  # imported for its weight
    found = Trial(peak_resident_bytes(), seconds, watch.curve, watch.sessions, watch.began, watch.ended)
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main(sys.argv[1:])
