"""Runs the steps of a plan: sessions that read and write named arrays.

Strategy: an array that lives as long as the trainer (weights, inputs, and with a single segment the gradients and the
loss) is bound to its sessions once; tensors that cross segments are fresh arrays, bound for one run, and dropped
after the last step that reads them. Gradients of weights are handed out in groups, as soon as a group is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .blocked import blocks_agree
from .errors import PlanError
from .graph import Array
from .lifetimes import last_uses
from .loss import LOSS
from .memory import return_freed_memory
from .plan import GRADIENT, TrainingPlan
from .runtime import session, translate

FloatArray = npt.NDArray[np.float32]
_ALIGN = 16  # float32 numbers: every tensor of a flat array starts on a cache line


@dataclass(slots=True)
class Group:
    """Weights whose gradients are complete after the same step, as views of one flat array."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    offsets: list[int] = field(default_factory=list)
    size: int = 0

    def __post_init__(self) -> None:
        for shape in self.shapes:
            self.offsets.append(self.size)
            count = int(np.prod(shape, dtype=np.int64))
            self.size += -(-count // _ALIGN) * _ALIGN

    def views(self, flat: FloatArray) -> dict[str, FloatArray]:
        """{name: view in its shape} of a flat array."""
        return {
            name: flat[offset : offset + int(np.prod(shape, dtype=np.int64))].reshape(shape)
            for name, shape, offset in zip(self.names, self.shapes, self.offsets, strict=True)
        }


@dataclass(slots=True)
class _Bound:
    """A session with its binding."""

    session: Any
    binding: Any
    reads: tuple[str, ...]  # what must be bound anew for each run
    writes: tuple[str, ...]


class Executor:
    """Sessions and buffers of one plan."""

    def __init__(self, plan: TrainingPlan, weights: Mapping[str, FloatArray]) -> None:
        info = plan.info
        if plan.probe and not blocks_agree(plan.probe):
            raise PlanError(
                f"the plan was made for a processor that works on blocks of {info.block} channels, and this one does "
                "not: make the plan on this machine"
            )
        return_freed_memory()
        self._shapes = {t.name: t.shape for t in (*info.tensors, *info.weights)}
        self._dtypes = {t.name: np.dtype(t.dtype) for t in info.tensors}
        steps = info.steps
        self._steps = steps
        self._trained = frozenset(info.trainable)
        gradient_steps: dict[str, int] = {}
        for index, step in enumerate(steps):
            for name in step.writes:
                weight = name.removeprefix(GRADIENT)
                if name.startswith(GRADIENT) and weight in self._trained:
                    gradient_steps[weight] = index
        #: Groups by the step that completes them.
        self.groups: dict[int, Group] = {}
        for index in sorted(set(gradient_steps.values())):
            names = [w for w, at in gradient_steps.items() if at == index]
            self.groups[index] = Group(names, [self._shapes[n] for n in names])
        frozen = [t.name for t in info.weights if t.name not in gradient_steps]
        self._frozen = Group(frozen, [self._shapes[n] for n in frozen])
        #: Flat weights by group; the frozen ones under -1.
        self.flat: dict[int, FloatArray] = {i: np.zeros(g.size, np.float32) for i, g in self.groups.items()}
        self.flat[-1] = np.zeros(self._frozen.size, np.float32)
        self.weights: dict[str, FloatArray] = self._frozen.views(self.flat[-1])
        for index, group in self.groups.items():
            self.weights |= group.views(self.flat[index])
        for name, value in weights.items():
            self.weights[name][...] = value
        self.inputs: dict[str, Array] = {t.name: np.zeros(t.shape, t.dtype) for t in (*info.inputs, *info.targets)}
        self._loss = np.zeros((), np.float32)
        self._last = last_uses([s.reads for s in steps])
        fixed: dict[str, Array] = {**self.weights, **self.inputs}
        lasting: dict[str, Array] = {LOSS: self._loss}
        self._kept: FloatArray | None = None
        if len(steps) == 1 and 0 in self.groups:
            self._kept = np.zeros(self.groups[0].size, np.float32)
            lasting |= {GRADIENT + n: v for n, v in self.groups[0].views(self._kept).items()}
        self._bound = [
            self._bind(session(model, info.threads), step.reads, step.writes, fixed, lasting)
            for step, model in zip(steps, plan.models, strict=True)
        ]

    @property
    def reuses(self) -> bool:
        """Whether the next run overwrites the gradients handed out by the last."""
        return self._kept is not None

    def _bind(
        self, made: Any, reads: tuple[str, ...], writes: tuple[str, ...],
        fixed: Mapping[str, Array], lasting: Mapping[str, Array],
    ) -> _Bound:  # fmt: skip
        binding = made.io_binding()
        for name in reads:
            if name in fixed:
                _bind_input(binding, name, fixed[name])
        for name in writes:
            if name in lasting:
                _bind_output(binding, name, lasting[name])
        return _Bound(
            made, binding,
            tuple(n for n in reads if n not in fixed), tuple(n for n in writes if n not in lasting),
        )  # fmt: skip

    def run(self) -> Iterator[tuple[int, FloatArray] | float]:
        """One pass over the micro-batch that `inputs` holds.

        Yields the loss once (a float), before any gradient, then (group, flat gradient) as groups get complete. The
        gradient arrays may be reused by the next call. Raises MemoryLimitError, ExecutionError.
        """
        crossing: dict[str, Array] = {}
        partial: dict[str, FloatArray] = {}
        for index, (bound, step) in enumerate(zip(self._bound, self._steps, strict=True)):
            views: dict[str, FloatArray] = {}
            flat = self._kept
            group = self.groups.get(index)
            if group is not None and flat is None:
                flat = np.zeros(group.size, np.float32)
                views = group.views(flat)
            made = self._run_step(index, bound, crossing, views)
            for name in bound.reads:
                if self._last[name] == index:
                    del crossing[name]
            self._collect(made, views, crossing, partial)
            del made
            if LOSS in step.writes:
                yield float(self._loss)
            if group is not None and flat is not None:
                for name in group.names:
                    if name in partial:
                        views[name] += partial.pop(name)
                yield index, flat

    def _run_step(
        self, index: int, bound: _Bound, crossing: Mapping[str, Array], views: Mapping[str, FloatArray]
    ) -> dict[str, Array]:
        """Bind what lives for this run only, and run. Returns what was written."""
        made: dict[str, Array] = {}
        for name in bound.reads:
            _bind_input(bound.binding, name, crossing[name])
        for name in bound.writes:
            base = name.removeprefix(GRADIENT)
            own = name.startswith(GRADIENT) and base in views
            made[name] = views[base] if own else np.empty(self._shapes[base], self._dtypes.get(base, np.float32))
            _bind_output(bound.binding, name, made[name])
        try:
            bound.session.run_with_iobinding(bound.binding)
        except Exception as error:  # the runtime's exception classes share no base
            raise translate(error, f"running step {index} of the plan") from error
        return made

    def _collect(
        self, made: Mapping[str, Array], views: Mapping[str, FloatArray],
        crossing: dict[str, Array], partial: dict[str, FloatArray],
    ) -> None:  # fmt: skip
        """File what a step wrote: gradients of one tensor from several segments add up."""
        for name, value in made.items():
            base = name.removeprefix(GRADIENT)
            if name.startswith(GRADIENT) and base in self._trained:
                if base not in views:
                    partial[base] = partial[base] + value if base in partial else value
            elif name.startswith(GRADIENT) and name in crossing:
                crossing[name] += value
            else:
                crossing[name] = value


def _bind_input(binding: Any, name: str, array: Array) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: Array) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
