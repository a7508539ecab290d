"""Binary cross-entropy on logits: each output is a yes or no of its own. Targets: numbers from 0 to 1 of the output's
shape.

Strategy: written with Softplus, which neither overflows nor loses small numbers; a final Sigmoid is seen through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..errors import DataError, EngineError, ModelError
from ..graph import Array
from .table import TARGETS, Loss, Options, OptionValue, Writer, before_activation, several


class BinaryCrossEntropy(Loss):
    """The mean of softplus(x) - t x over everything.

    `pos_weight`: what a yes weighs, one number or one per output along axis 1.
    """

    defaults: ClassVar[Options] = {"pos_weight": 1.0}

    def check_options(self, options: Options) -> None:
        """Weights are finite and not negative."""
        if not all(0 <= p < float("inf") for p in several(options, "pos_weight")):
            raise EngineError("binary_cross_entropy: pos_weight must be finite and at least 0")

    def write(self, w: Writer, output: str, options: Options) -> str:
        """Mean per sample."""
        x = before_activation(w, output, "Sigmoid")
        shape, positive = w.shape(x), several(options, "pos_weight")
        targets = w.input(TARGETS, shape)
        if positive == (1.0,):
            values = w.op("Sub", shape, w.op("Softplus", shape, x), w.op("Mul", shape, x, targets))
            return w.mean_per_sample(values)
        if len(positive) > 1 and (len(shape) < 2 or len(positive) != shape[1]):
            raise ModelError(
                f"{w.graph.source}: pos_weight has {len(positive)} numbers, output {output!r} has shape {list(shape)}"
            )
        extra = np.array(positive, np.float32).reshape((-1,) + (1,) * (len(shape) - 2)) - 1
        # (1 - t) x + (1 + (p - 1) t) softplus(-x)
        factor = w.op("Add", shape, w.op("Mul", shape, targets, w.constant(extra)), w.scalar(1.0))
        part = w.op("Mul", shape, factor, w.op("Softplus", shape, w.op("Neg", shape, x)))
        rest = w.op("Mul", shape, w.op("Sub", shape, w.scalar(1.0), targets), x)
        return w.mean_per_sample(w.op("Add", shape, part, rest))

    def prepare(self, targets: dict[str, Array], options: Mapping[str, OptionValue], classes: int) -> float:
        """Targets are within 0 and 1."""
        wanted = targets[TARGETS]
        if wanted.size and not (wanted.min() >= 0 and wanted.max() <= 1):
            raise DataError(
                f"targets run from {wanted.min()} to {wanted.max()}; binary_cross_entropy needs 0 (no) to 1 (yes)"
            )
        return super().prepare(targets, options, classes)
