"""How much of what was held out a model gets right, counted in a process of its own.

Strategy: predicting needs other code of the runtime than training, and memory that would stay with the process that
trains. So this module is started with `-m`, told what to do on standard input, and answers on standard output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from .data import open_samples, split
from .errors import EngineError
from .inference import Predictor
from .memory import LEAN_ENVIRONMENT

#: Exit status of the child when memory ran out.
_NO_MEMORY = 3


class Question(msgspec.Struct, frozen=True):
    """Which model, on which share of which data (see `data.split`); `output`: which one has the logits."""

    model: str
    data: str
    inputs: list[str]
    fraction: float
    seed: int
    batch: int
    output: str


def measure(question: Question) -> float | None:
    """The share of right answers, 0 to 1, from a child; None where the outputs are not [N, classes], or where
    predicting needs more memory than the hard limit that a child inherits.

    Raises EngineError with what else went wrong in the child.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=msgspec.json.encode(question), capture_output=True, check=False,
        env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip
    if done.returncode == _NO_MEMORY:
        return None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise EngineError(f"predicting what was held out failed: {' '.join(last) or f'status {done.returncode}'}")
    return msgspec.json.decode(done.stdout, type=float | None)


def answer(question: Question) -> float | None:
    """The same, here."""
    samples = open_samples(question.data, question.inputs, ["labels"])
    _, held_out = split(len(samples), question.fraction, question.seed)
    predictor = Predictor(Path(question.model))
    name = question.output if question.output in predictor.output_names else predictor.output_names[0]
    right = 0
    for at in range(0, len(held_out), question.batch):
        inputs, targets = samples.batch(held_out[at : at + question.batch])
        logits, labels = predictor(inputs, question.batch)[name], targets["labels"]
        if logits.ndim != 2 or labels.ndim != 1:
            return None
        right += int((logits.argmax(axis=1) == labels).sum())
    return right / len(held_out)


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    try:
        share = answer(asked)
    except (EngineError, MemoryError) as error:
        if isinstance(error, MemoryError) or "memory ran out" in str(error):
            raise SystemExit(_NO_MEMORY) from error
        raise
    sys.stdout.buffer.write(msgspec.json.encode(share))
