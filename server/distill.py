"""Teach the aggregate what the devices' models and the previous release know, on the proxy samples.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), with an ensemble of teachers as in FedDF
(Lin et al., 2020): the student starts from the aggregate and is trained by our engine on the ensemble's softened
probabilities, mixed with the proxy data's own labels where it has them. The order of samples is drawn from a generator
with a fixed seed: the same merge gives the same student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sanderling.engine import Trainer, compile
from sanderling.engine.memory import parse_size

from .aggregate import Weights
from .config import DistillSection
from .datasets import Samples


def distill(
    model: bytes,
    start: Mapping[str, npt.NDArray[np.float32]],
    samples: Samples,
    teacher: npt.NDArray[np.float32],
    settings: DistillSection,
    seed: int = 0,
) -> Weights:
    """The student's weights. `teacher`: logits [samples, classes] that its softmax at the temperature should meet.

    Raises `EngineError` (not trainable, limit too small, diverged).
    """
    hard = settings.hard_weight if samples.labels is not None else 0.0
    batch = min(settings.batch, len(samples))
    plan = compile(
        model,
        loss="distillation",
        loss_options={"temperature": settings.temperature, "hard_weight": hard},
        batch=batch,
        memory_limit=parse_size(settings.memory_limit),
        optimizer="adam",
    )
    trainer = Trainer(plan, learning_rate=settings.learning_rate)
    trainer.set_weights(dict(start))
    generator = np.random.default_rng(seed)
    for _ in range(settings.epochs):
        order = generator.permutation(len(samples))
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            inputs = {name: array[chosen] for name, array in samples.inputs.items()}
            targets: dict[str, npt.NDArray[Any]] = {"teacher": teacher[chosen]}
            if hard and samples.labels is not None:
                targets["labels"] = samples.labels[chosen]
            trainer.step(inputs, targets)
    return trainer.weights()
