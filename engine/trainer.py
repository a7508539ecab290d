"""`Trainer`: steps of training, from arrays to new weights. Needs no `onnx`.

Strategy: everything is checked before anything changes; a batch of any size passes through in micro-batches, the last
one filled up with samples of weight 0. Gradients are applied group by group as they arrive where nothing forbids it;
they are added up first when there are several micro-batches, when they are collected over several calls
(`accumulate`), and when they are to be clipped by their norm, which is known last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..host.files import open_durably
from .adapters import Adapted, Merged, initial
from .batches import Batch, check_batch
from .checkpoint import Settings, State, open_checkpoint, write_checkpoint
from .clipping import check_clipping, norm_factor, squared_norm
from .errors import EngineError, NonFiniteError
from .executor import Executor, FloatArray
from .graph import Array
from .members import release
from .optimizers import OptimizerState, Scratch, Slot, make_optimizer
from .plan import TrainingPlan
from .quantized import quantize
from .schedules import Schedule, as_schedule
from .storage import Group
from .sums import GradientSum
from .weights import check_weights, patched, raw_tensors, real_values, view_weights

Inputs = Array | Mapping[str, Array]
Targets = Array | Mapping[str, Array] | tuple[Array, Array]

#: Bytes of a model that are written at once.
_PIECE = 1 << 20
#: What `decay` may be.
_DECAY = ("all", "matrices")


class Trainer:
    """Trains the model of a plan.

    `learning_rate`: a number, or a schedule (`schedules`); may be changed at any time. `options` of the optimizer:
    sgd: momentum=0.9, weight_decay=0; adam: beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0. Weight decay is
    decoupled; `decay="matrices"` leaves out biases and the scales of normalizations (tensors with fewer than two
    dimensions above 1). `clip_value`: no number of a gradient is larger; `clip_norm`: nor the Euclidean length of
    all gradients together. `seed`: of everything random. Raises EngineError for what does not exist.

    Inputs are {input name: array [N, ...]}, or the array itself when the model has one input. Targets are described
    with each loss (docs/reference/losses.md). N may be any number of samples; the loss is their mean.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        learning_rate: float | Schedule = 1e-3,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay: str = "all",
        seed: int = 0,
        **options: float,
    ) -> None:
        self.plan = plan
        schedule = as_schedule(learning_rate)
        make_optimizer(plan.info.optimizer, schedule.rate(1), options)
        check_clipping(clip_norm, clip_value)
        if decay not in _DECAY:
            raise EngineError(f"decay={decay!r}: choose one of {', '.join(_DECAY)}")
        self._settings = Settings(schedule, options, clip_norm, clip_value, decay, seed)
        # only rounding of integer weights is random, and importing the generators takes 6 MB
        self._random = np.random.default_rng(seed) if plan.info.quantized else None
        self._quantized = {how.weight: how for how in plan.info.quantized}
        shapes = {t.name: t.shape for t in plan.info.weights}
        added: dict[str, Array] = {}
        for adapter in plan.info.adapters:
            added |= initial(adapter, shapes[adapter.weight])
        model = plan.view_model()
        self._places = raw_tensors(model)
        values = view_weights(model, [n for n in shapes if n not in added])
        self._executor = Executor(plan, values | added, self._random, partial(release, model))
        scratch = Scratch()
        self._states = {
            i: OptimizerState(plan.info.optimizer, plan.info.optimizer_state, _slots(g, decay), scratch)
            for i, g in self._executor.groups.items()
        }
        self._steps = 0
        self._pending = 0.0
        scratch = Scratch()
        self._sums = {
            i: GradientSum(_slots(g, decay), plan.info.gradient_sums, scratch) for i, g in self._executor.groups.items()
        }
        self._checks_early = plan.info.gradient_sums != "float32"  # there is no code for NaN

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._steps

    @property
    def collected(self) -> float:
        """The weight (for most losses the number) of the samples that `accumulate` has collected; 0 for none."""
        return self._pending

    @property
    def learning_rate(self) -> float:
        """Step size of the next step; setting it to a number or a schedule replaces the schedule."""
        return self._settings.schedule.rate(self._steps + 1)

    @learning_rate.setter
    def learning_rate(self, value: float | Schedule) -> None:
        s = self._settings
        self._settings = Settings(as_schedule(value), s.options, s.clip_norm, s.clip_value, s.decay, s.seed)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are held: one for an int8 weight, four for a float32 one."""
        return sum(array.nbytes for array in self._executor.weights.values())

    @property
    def state_bytes(self) -> int:
        """Bytes of the optimizer's running means."""
        return sum(state.nbytes for state in self._states.values())

    def watch(self, watch: Callable[[int, bool], None] | None) -> None:
        """Have sessions reported: their number when they begin (True) and when they have ended (False)."""
        self._executor.watch = watch

    def gradients(self, inputs: Inputs, targets: Targets | None = None) -> tuple[float, dict[str, FloatArray]]:
        """The mean loss of a batch and its gradient for every trained weight. Changes nothing.

        Raises DataError, NonFiniteError, MemoryLimitError.
        """
        batch = check_batch(self.plan.info, inputs, targets)
        sums: dict[int, FloatArray] = {}

        def add(index: int, gradient: FloatArray) -> None:
            if index in sums:
                sums[index] += gradient
            else:
                sums[index] = gradient.copy()

        loss = sum(self._passes(batch, 1 / batch.weight, add))
        for index, gradient in sums.items():
            self._check_gradient(index, gradient)
        result: dict[str, FloatArray] = {}
        for index, group in self._executor.groups.items():
            result |= group.views(sums[index])
        return loss, result

    def loss(self, inputs: Inputs, targets: Targets | None = None) -> float:
        """The mean loss of a batch (computes the gradient as well, and drops it)."""
        batch = check_batch(self.plan.info, inputs, targets)
        return sum(self._passes(batch, 1 / batch.weight, None))

    def step(self, inputs: Inputs, targets: Targets | None = None) -> float:
        """Train on one batch; returns the mean loss before the step.

        Raises DataError, MemoryLimitError, NonFiniteError. After a loss that is not finite all weights are as they
        were; after such a gradient too, unless gradients are applied as they arrive (several segments, one
        micro-batch, no clipping by norm, a plan without `hold_gradients`): then segments behind the one named have
        taken their (finite) step.
        """
        if self._pending:
            raise EngineError("gradients are being accumulated: apply() them, or discard() them, before a whole step")
        batch = check_batch(self.plan.info, inputs, targets)
        alone = batch.parts == 1 and len(self._executor.groups) == 1
        clip = self._settings.clip_norm
        if not alone and (batch.parts > 1 or self.plan.info.hold_gradients or (clip is not None and self._may_hold)):
            self._forget_sums()
            loss = self._add(batch, 1 / batch.weight)
            self._apply_sums(1.0)
            self._executor.update()
            return loss
        factor = 1.0
        if clip is not None and not alone:
            # no room to hold all gradients: one pass for their norm, another to apply them (as LOMO does)
            batch.fill(0, self._executor.inputs, 1 / batch.weight)
            squares = [self._check_gradient(*i) for i in self._executor.run() if not isinstance(i, float)]
            factor = norm_factor(sum(squares), clip)
        return self._step_as_they_arrive(batch, factor, clip if alone else None)

    def _step_as_they_arrive(self, batch: Batch, factor: float, clip: float | None) -> float:
        batch.fill(0, self._executor.inputs, 1 / batch.weight)
        loss = math.nan
        counted = False
        for item in self._executor.run():
            if isinstance(item, float):
                loss = self._finite(item)
                continue
            index, gradient = item
            square = self._check_gradient(index, gradient, counted)
            if clip is not None:
                factor = norm_factor(square, clip)
            if not counted:
                self._steps += 1
                counted = True
            self._apply(index, gradient, factor)
        self._executor.update()
        return loss

    def accumulate(self, inputs: Inputs, targets: Targets | None = None) -> float:
        """Add the gradients of one batch to those collected so far; returns the mean loss of this batch.

        What `apply` then does is the step on all these samples as one batch. Raises DataError, and EngineError where
        the plan has no room for it; what was collected stays. Raises NonFiniteError, MemoryLimitError; what was
        collected is dropped then.
        """
        if not self._may_hold:
            raise EngineError(
                "the plan applies gradients as they arrive and has no room under its limit to collect them: make it "
                "with compile(..., hold_gradients=True)"
            )
        batch = check_batch(self.plan.info, inputs, targets)
        if not self._pending:
            self._forget_sums()
        collected, self._pending = self._pending, 0.0
        loss = self._add(batch, 1.0)
        self._executor.update()
        self._pending = collected + batch.weight
        return loss / batch.weight

    def apply(self) -> None:
        """Take one step with the gradients that `accumulate` collected. Raises EngineError when there are none."""
        if not self._pending:
            raise EngineError("there are no gradients to apply: accumulate() some first")
        total, self._pending = self._pending, 0.0
        self._apply_sums(1 / total)

    def discard(self) -> None:
        """Forget the gradients that `accumulate` collected."""
        self._pending = 0.0
        self._forget_sums()

    @property
    def _may_hold(self) -> bool:
        """Whether all gradients at once are within the plan's memory."""
        info = self.plan.info
        return info.hold_gradients or info.memory_limit is None or info.micro_batch < info.batch

    def _forget_sums(self) -> None:
        for total in self._sums.values():
            total.clear()

    def _add(self, batch: Batch, weight: float) -> float:
        """Add the gradients of a batch, each sample at `weight`, to the sums. Returns the weighted sum of the losses.

        After an error the sums are empty: a copy to go back to would cost their memory.
        """

        def add(index: int, gradient: FloatArray) -> None:
            if self._checks_early:
                self._check_gradient(index, gradient)
            self._sums[index].add(gradient)

        try:
            return sum(self._passes(batch, weight, add))
        except BaseException:
            self._forget_sums()
            raise

    def _passes(self, batch: Batch, weight: float, add: Callable[[int, FloatArray], None] | None) -> list[float]:
        """The weighted loss of each micro-batch; gradients are given to `add`."""
        losses = []
        for part in range(batch.parts):
            batch.fill(part, self._executor.inputs, weight)
            for item in self._executor.run():
                if isinstance(item, float):
                    losses.append(self._finite(item))
                elif add is not None:
                    add(*item)
        return losses

    def _apply_sums(self, factor: float) -> None:
        """One step with all gradients at once; they are forgotten."""
        s = self._settings
        try:
            square = sum(total.square for total in self._sums.values())
            if not math.isfinite(square):
                for index, total in self._sums.items():
                    self._check_gradient(index, total.flat(self._executor.groups[index].size))
            if s.clip_norm is not None:
                factor *= norm_factor(square * factor**2, s.clip_norm)
            self._steps += 1
            for index, total in self._sums.items():
                total.scale(factor, s.clip_value)
                self._update(index, total)
        finally:
            self._forget_sums()

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss} at step {self._steps + 1}: training diverged or the inputs are not finite; lower "
                "the learning rate; the last good weights are kept"
            )
        return loss

    def _check_gradient(self, index: int, gradient: FloatArray, stepped: bool = False) -> float:
        """The squared norm of a group's gradient. Raises NonFiniteError if it is not finite."""
        square = squared_norm(gradient)
        if math.isfinite(square):
            return square
        names = self._executor.groups[index].views(gradient)
        bad = [n for n, v in names.items() if not math.isfinite(squared_norm(v.reshape(-1)))]
        step, kept = self._steps + 1, "the last good weights are kept"
        if stepped:  # holding all gradients back until the last is known would cost their memory
            step, kept = self._steps, (
                "segments behind had stepped already (finitely): go back to the last save; a plan made with "
                "hold_gradients=True keeps all weights instead"
            )  # fmt: skip
        raise NonFiniteError(
            f"the gradient of {', '.join(bad)} is not finite at step {step}; lower the learning rate; {kept}"
        )

    def _apply(self, index: int, gradient: FloatArray, factor: float = 1.0) -> None:
        """One step of a group, the one just counted. `gradient` is used up."""
        if factor != 1:
            gradient *= np.float32(factor)
        limit = self._settings.clip_value
        if limit is not None:
            np.clip(gradient, np.float32(-limit), np.float32(limit), out=gradient)
        self._update(index, gradient)

    def _update(self, index: int, gradient: FloatArray | GradientSum) -> None:
        s = self._settings
        optimizer = make_optimizer(self.plan.info.optimizer, s.schedule.rate(self._steps), s.options)
        self._states[index].apply(optimizer, self._executor.storage[index], gradient, self._steps)

    def weights(self) -> dict[str, FloatArray]:
        """Copies of all weights, trained or not, adapters beside them: {name: float32 array}.

        Of integers it is what they stand for.
        """
        weights = {t.name: self._executor.weights[t.name] for t in self.plan.info.weights}
        return real_values(weights, self._quantized)

    def merged_weights(self) -> dict[str, FloatArray]:
        """The weights of the exported model, adapters added in: {initializer name: float32 array}."""
        merged = {n: v.whole() if isinstance(v, Adapted) else v for n, v in self._exported().items()}
        return real_values(merged, self._quantized)

    def _exported(self) -> Mapping[str, Any]:
        return Merged(self._executor.weights, self.plan.info.adapters)

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Replace some weights or all; the optimizer's state stays. Raises DataError, and then changes nothing.

        Weights that are integers take the nearest values that they can stand for; what `weights` gave comes back
        exactly.
        """
        check_weights(weights, {t.name: t.shape for t in self.plan.info.weights})
        for name, value in weights.items():
            present = self._executor.weights[name]
            how = self._quantized.get(name)
            present[...] = value if how is None else quantize(value, how, present)

    def reset_optimizer(self) -> None:
        """Forget the optimizer's running means and the number of steps (so a schedule begins anew)."""
        for state in self._states.values():
            state.reset()
        self._steps = 0

    def export(self, path: str | Path) -> None:
        """Write an inference model with the present weights: whole or not at all. Raises OSError."""
        model = self.plan.view_model()
        with open_durably(Path(path)) as file:
            for piece in patched(model, self._exported(), places=self._places):
                for begin in range(0, len(piece), _PIECE):
                    file.write(piece[begin : begin + _PIECE])
                    release(model)  # else the model would be in memory once more

    def export_bytes(self) -> bytes:
        """An inference model with the present weights."""
        return b"".join(patched(self.plan.view_model(), self._exported()))

    def _arrays(self) -> dict[str, Array]:
        """All arrays that training changes, by the name of their member in a trainer file."""
        arrays: dict[str, Array] = {
            f"weights{i}.{dtype}": flat for i, s in self._executor.storage.items() for dtype, flat in s.arrays()
        }
        for index, state in self._states.items():
            arrays |= {f"optimizer{index}.{k}": array for k, array in enumerate(state.arrays())}
        if self._pending:
            for index, total in self._sums.items():
                arrays |= {f"sum{index}.{k}": array for k, array in enumerate(total.arrays())}
        return arrays

    def save(self, path: str | Path) -> None:
        """Write plan, weights, optimizer state and collected gradients as one file: whole or not at all.

        Raises OSError.
        """
        random = "" if self._random is None else json.dumps(self._random.bit_generator.state)
        state = State(self._steps, self._settings, self._pending, random)
        write_checkpoint(Path(path), self.plan, state, self._arrays())

    @classmethod
    def load(cls, path: str | Path) -> Trainer:
        """Continue where `save` left off, bit for bit. Raises PlanError."""
        with open_checkpoint(Path(path)) as file:
            s = file.state.settings
            trainer = cls(
                file.plan, s.schedule, clip_norm=s.clip_norm, clip_value=s.clip_value, decay=s.decay, seed=s.seed,
                **s.options,
            )  # fmt: skip
            trainer._steps, trainer._pending = file.state.steps, file.state.pending
            if trainer._random is not None:
                trainer._random.bit_generator.state = json.loads(file.state.random)
            file.read_into(trainer._arrays())
            for total in trainer._sums.values():
                total.empty = not trainer._pending
        return trainer


def _slots(group: Group, decay: str) -> list[Slot]:
    """Where a group's tensors lie, and which of them decay."""
    return [
        Slot(offset, math.prod(shape), decay == "all" or sum(n > 1 for n in shape) > 1)
        for shape, offset in zip(group.shapes, group.offsets, strict=True)
    ]
