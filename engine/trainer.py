"""`Trainer`: steps of training, from arrays to new weights. Needs no `onnx`.

Strategy: everything is checked before anything changes; a batch of any size passes through in micro-batches, the last
one filled up with samples of weight 0; gradients are applied group by group as they arrive when there is a single
micro-batch, and added up first when there are several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..host.files import write_durably
from .batches import Batch, check_batch
from .checkpoint import State, read_checkpoint, write_checkpoint
from .errors import NonFiniteError
from .executor import Executor, FloatArray
from .graph import Array
from .optimizers import make_optimizer
from .plan import TrainingPlan
from .weights import check_weights, patch, view_weights

Inputs = Array | Mapping[str, Array]
Targets = Array | Mapping[str, Array] | tuple[Array, Array]


class Trainer:
    """Trains the model of a plan.

    `learning_rate` and the options of the optimizer (sgd: momentum=0.9, weight_decay=0; adam: beta1=0.9, beta2=0.999,
    epsilon=1e-8, weight_decay=0) may be changed at any time through `learning_rate`, else they stay.
    Raises EngineError for options that do not exist.

    Inputs are {input name: array [N, ...]}, or the array itself when the model has one input. Targets are, by loss:
    cross_entropy: integer labels [N]; mse: float32 of the output's shape; distillation: (labels [N], teacher logits
    [N, C]) or {"labels": ..., "teacher": ...} (labels may be left out when hard_weight is 0).
    N may be any number of samples; the loss is their mean.
    """

    def __init__(self, plan: TrainingPlan, learning_rate: float = 1e-3, **options: float) -> None:
        self.plan = plan
        self._options = options
        self._optimizer = make_optimizer(plan.info.optimizer, learning_rate, options)
        names = [t.name for t in plan.info.weights]
        self._executor = Executor(plan, view_weights(plan.model, names))
        self._state = {
            i: np.zeros((self._optimizer.rows, g.size), np.float32) for i, g in self._executor.groups.items()
        }
        self._steps = 0

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._steps

    @property
    def learning_rate(self) -> float:
        """Step size of the optimizer; may be set between steps."""
        return self._optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._optimizer = make_optimizer(self.plan.info.optimizer, value, self._options)

    def gradients(self, inputs: Inputs, targets: Targets) -> tuple[float, dict[str, FloatArray]]:
        """The mean loss of a batch and its gradient for every trained weight. Changes nothing.

        Raises DataError, NonFiniteError, MemoryLimitError.
        """
        batch = check_batch(self.plan.info, inputs, targets)
        loss, sums = self._accumulate(batch)
        result: dict[str, FloatArray] = {}
        for index, group in self._executor.groups.items():
            result |= group.views(sums[index])
        return loss, result

    def step(self, inputs: Inputs, targets: Targets) -> float:
        """Train on one batch; returns the mean loss before the step.

        Raises DataError, MemoryLimitError, NonFiniteError. After a loss that is not finite all weights are as they
        were; after such a gradient too, unless the plan has several segments and one micro-batch: then segments
        behind the one named have taken their (finite) step.
        """
        batch = check_batch(self.plan.info, inputs, targets)
        if batch.parts > 1:
            loss, sums = self._accumulate(batch)
            self._steps += 1
            for index, gradient in sums.items():
                self._apply(index, gradient)
            return loss
        batch.fill(0, self._executor.inputs)
        loss = math.nan
        counted = False
        for item in self._executor.run():
            if isinstance(item, float):
                loss = self._finite(item)
                continue
            index, gradient = item
            self._check_gradient(index, gradient, counted)
            if not counted:
                self._steps += 1
                counted = True
            self._apply(index, gradient)
        return loss

    def loss(self, inputs: Inputs, targets: Targets) -> float:
        """The mean loss of a batch (computes the gradient as well, and drops it)."""
        return self._accumulate(check_batch(self.plan.info, inputs, targets))[0]

    def _accumulate(self, batch: Batch) -> tuple[float, dict[int, FloatArray]]:
        total = 0.0
        sums: dict[int, FloatArray] = {}
        for part in range(batch.parts):
            batch.fill(part, self._executor.inputs)
            for item in self._executor.run():
                if isinstance(item, float):
                    total += self._finite(item)
                    continue
                index, gradient = item
                if index in sums:
                    sums[index] += gradient
                else:
                    sums[index] = gradient.copy()
        for index, gradient in sums.items():
            self._check_gradient(index, gradient)
        return total, sums

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss} at step {self._steps + 1}: training diverged or the inputs are not finite; lower "
                "the learning rate; the last good weights are kept"
            )
        return loss

    def _check_gradient(self, index: int, gradient: FloatArray, stepped: bool = False) -> None:
        if not math.isfinite(float(np.dot(gradient, gradient))) and not np.isfinite(gradient).all():
            names = self._executor.groups[index].views(gradient)
            bad = [n for n, v in names.items() if not np.isfinite(v).all()]
            step, kept = self._steps + 1, "the last good weights are kept"
            if stepped:  # holding all gradients back until the last is known would cost their memory
                step, kept = self._steps, "segments behind had stepped already (finitely): go back to the last save"
            raise NonFiniteError(
                f"the gradient of {', '.join(bad)} is not finite at step {step}; lower the learning rate; {kept}"
            )

    def _apply(self, index: int, gradient: FloatArray) -> None:
        self._optimizer.update(self._executor.flat[index], gradient, self._state[index], self._steps)

    def weights(self) -> dict[str, FloatArray]:
        """Copies of all weights, trained or not: {initializer name: float32 array}."""
        return {t.name: self._executor.weights[t.name].copy() for t in self.plan.info.weights}

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Replace some weights or all; the optimizer's state stays. Raises DataError, and then changes nothing."""
        check_weights(weights, {t.name: t.shape for t in self.plan.info.weights})
        for name, value in weights.items():
            self._executor.weights[name][...] = value

    def reset_optimizer(self) -> None:
        """Forget the optimizer's running means, as at the start."""
        for state in self._state.values():
            state[...] = 0
        self._steps = 0

    def export(self, path: str | Path) -> None:
        """Write an inference model with the present weights: whole or not at all. Raises OSError."""
        write_durably(Path(path), self.export_bytes())

    def export_bytes(self) -> bytes:
        """An inference model with the present weights."""
        return patch(self.plan.model, self._executor.weights)

    def save(self, path: str | Path) -> None:
        """Write plan, weights and optimizer state as one file: whole or not at all. Raises OSError."""
        state = State(self._steps, self._optimizer.learning_rate, dict(self._options))
        write_checkpoint(Path(path), self.plan, state, self._executor.flat, self._state)

    @classmethod
    def load(cls, path: str | Path) -> Trainer:
        """Continue where `save` left off, bit for bit. Raises PlanError."""
        plan, state, arrays = read_checkpoint(Path(path))
        trainer = cls(plan, state.learning_rate, **state.options)
        arrays.into(trainer._executor.flat, trainer._state)
        trainer._steps = state.steps
        return trainer
