"""The health child: tries a downloaded model before the device switches to it.

It loads it, predicts one sample and a batch within a time limit, looks whether it takes what the present model takes,
and compares both on the release's anchor set. A model that aborts the runtime kills only this process.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from sanderling.codec.messages import Accuracy
from sanderling.engine.memory import peak_resident_bytes

from . import children
from .anchor import Anchor, read_anchor
from .errors import AgentError, ServingError
from .jobs import HealthDone, HealthJob
from .limits import LIMITS
from .runtime import Runtime, load, sample_batch


def check(job: HealthJob) -> HealthDone:
    """The verdict; nothing is raised for a bad model."""
    seconds, accuracy, reason = 0.0, None, ""
    try:
        runtime = load(Path(job.model))
        seconds = _try(runtime)
        present = load(Path(job.present)) if job.present else None
        if present is not None:
            _same_interface(present, runtime)
        if job.anchor:
            anchor = read_anchor(Path(job.anchor))
            accuracy = anchor.accuracy(runtime)
            if present is not None:
                _not_worse(anchor, present, accuracy, job.anchor_drop)
    except AgentError as error:
        reason = str(error)
    return HealthDone(not reason, reason, seconds, peak_resident_bytes(), accuracy)


def _try(runtime: Runtime) -> float:
    begin = time.perf_counter()
    one = runtime.run(sample_batch(runtime, 1))
    seconds = time.perf_counter() - begin
    if seconds > LIMITS.prediction_seconds:
        raise ServingError(f"one prediction takes {seconds:.1f} s, at most {LIMITS.prediction_seconds:.0f} are allowed")
    if all(tensor.shape and tensor.shape[0] == -1 for tensor in runtime.inputs):
        runtime.run(sample_batch(runtime, 8))
    for name, array in one.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ServingError(f"output {name} is not finite for an input of zeros")
    return seconds


def _same_interface(present: Runtime, candidate: Runtime) -> None:
    old = {(tensor.name, tensor.dtype, tensor.shape[1:]) for tensor in present.inputs}
    new = {(tensor.name, tensor.dtype, tensor.shape[1:]) for tensor in candidate.inputs}
    if old != new:
        raise ServingError("it takes other inputs than the present model; release it under another model name")


def _not_worse(anchor: Anchor, present: Runtime, accuracy: Accuracy, drop: float) -> None:
    before = anchor.accuracy(present)
    if accuracy.value < before.value - drop:
        raise ServingError(
            f"on its own anchor set it is right for {accuracy.value:.3f} of {accuracy.count}, "
            f"the present model for {before.value:.3f}: more than the {drop:.3f} that may be lost"
        )


if __name__ == "__main__":
    children.work(HealthJob, check)
