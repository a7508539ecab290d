"""Runs the steps of a plan: sessions that read and write named arrays.

Strategy: every array has its place before anything runs. Weights and inputs live as long as the trainer; what passes
between sessions (tensors that cross a cut, their gradients, the gradients of weights) lies in one buffer at offsets
that follow from lifetimes (`exchange`). So each session is bound to its arrays once, a run allocates nothing, and the
bytes that a step takes are known when the plan is made. Gradients of weights are handed out in groups, as soon as a
group is complete, and their place is used again after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .aligned import aligned_zeros
from .blocked import blocks_agree
from .errors import PlanError
from .exchange import Exchange, arrange, kind_of
from .graph import Array
from .loss import LOSS
from .memory import return_freed_memory
from .plan import GRADIENT, UPDATE, TrainingPlan
from .runtime import open_arena, step_session, translate
from .storage import Group, Storage, group_of

FloatArray = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Bound:
    """A session with its binding, and what remains to be done with what it wrote."""

    session: Any
    binding: Any
    #: (sum, part): gradients that arrive in parts from several sessions.
    additions: list[tuple[FloatArray, FloatArray]]
    #: Between the gradients handed out, where other tensors have lain: must be zero.
    gaps: list[FloatArray]


class Executor:
    """Sessions and buffers of one plan."""

    def __init__(
        self, plan: TrainingPlan, weights: Mapping[str, Array], random: np.random.Generator | None,
        copied: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`random` rounds weights that are integers; None where there are none. `copied` is called once `weights` are
        no longer needed, before any session is made."""
        info = plan.info
        if info.block and not blocks_agree(plan.probe):
            raise PlanError(
                f"the plan was made for a processor that works on blocks of {info.block} channels, and this one does "
                "not: make the plan on this machine"
            )
        return_freed_memory()
        self._steps = info.steps
        shapes = {t.name: t.shape for t in (*info.tensors, *info.weights)}
        kinds = {t.name: t.dtype for t in info.tensors}
        quantized = {how.weight: how for how in info.quantized}
        exchange = arrange(info)
        #: Groups by the step that completes them.
        self.groups: dict[int, Group] = {
            index: group_of(list(names), shapes, quantized) for index, names in exchange.groups.items()
        }
        moving = {n for names in exchange.groups.values() for n in names}
        frozen = [t.name for t in info.weights if t.name not in moving]
        #: Weights by group; the frozen ones under -1.
        self.storage: dict[int, Storage] = {i: Storage(g, quantized, random) for i, g in self.groups.items()}
        self.storage[-1] = Storage(group_of(frozen, shapes, quantized), quantized, random)
        #: Weights by name, integers as they are.
        self.weights: dict[str, Array] = {n: v for s in self.storage.values() for n, v in s.views.items()}
        for name, value in weights.items():
            self.weights[name][...] = value
        copied()
        self.inputs: dict[str, Array] = {t.name: np.zeros(t.shape, t.dtype) for t in (*info.inputs, *info.targets)}
        self._loss = np.zeros((), np.float32)
        #: Told the number of a session when it begins (True) and when it has ended (False).
        self.watch: Callable[[int, bool], None] | None = None
        self._updates: dict[str, FloatArray] = {}
        self._buffer = aligned_zeros(exchange.size, np.uint8)
        self._gradients: dict[int, FloatArray] = {}
        for index, group in self.groups.items():
            begin = exchange.offsets[exchange.group_slot(index)]
            self._gradients[index] = self._buffer[begin : begin + 4 * group.size].view(np.float32)
        open_arena(info.arena)
        fixed: dict[str, Array] = {**self.weights, **self.inputs}
        self._bound = [
            self._bind(index, plan.step(index), info.threads, exchange, fixed, shapes, kinds)
            for index in range(len(info.steps))
        ]

    def _bind(
        self, index: int, model: bytes, threads: int, exchange: Exchange, fixed: Mapping[str, Array],
        shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str],
    ) -> _Bound:  # fmt: skip
        """Bind one session to the places of all that it reads and writes."""
        step = self._steps[index]

        def at(slot: str, name: str) -> Array:
            kind = np.dtype(kind_of(name, kinds))
            shape = shapes[name.removeprefix(GRADIENT)]
            begin = exchange.offsets[slot]
            count = int(np.prod(shape, dtype=np.int64))
            array: Array = self._buffer[begin : begin + count * kind.itemsize].view(kind).reshape(shape)
            return array

        bound = _Bound(step_session(model, threads), None, [], [])
        bound.binding = bound.session.io_binding()
        made = {output.name: tuple(output.shape) for output in bound.session.get_outputs()}
        for name in step.reads:
            array = fixed[name] if name in fixed else at(exchange.readers[index, name], name)
            bound.binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        own: dict[str, FloatArray] = {}
        if index in self.groups:
            own = self.groups[index].views(self._gradients[index])
            bound.gaps = self.groups[index].gaps(self._gradients[index])
        for name in step.writes:
            base = name.removeprefix(GRADIENT)
            slot = exchange.writers.get((index, name), "")
            if name == LOSS:
                array = self._loss
            elif name.startswith(UPDATE):
                array = self._updates[name.removeprefix(UPDATE)] = np.zeros(shapes[name], np.float32)
            elif name.startswith(GRADIENT) and base in own:
                array = own[base]
                if (index, name) in exchange.parts:
                    part = exchange.parts[index, name]
                    bound.additions.append((array, at(part, name)))
            else:
                array = at(slot, name)
                if (index, name) in exchange.parts:
                    bound.additions.append((at(exchange.parts[index, name], name), array))
            # the gradient of a weight may leave in another shape: the same numbers in the same order
            shape = made[name] if int(np.prod(made[name], dtype=np.int64)) == array.size else array.shape
            bound.binding.bind_output(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)
        return bound

    def update(self) -> None:
        """Give the weights that no optimizer moves the values that the last run wrote for them."""
        for name, value in self._updates.items():
            self.weights[name][...] = value

    def run(self) -> Iterator[tuple[int, FloatArray] | float]:
        """One pass over the micro-batch that `inputs` holds.

        Yields the loss once (a float), before any gradient, then (group, flat gradient) as groups get complete. A
        gradient array is valid until the next item is asked for. Raises MemoryLimitError, ExecutionError.
        """
        for index, (bound, step) in enumerate(zip(self._bound, self._steps, strict=True)):
            if self.watch is not None:
                self.watch(index, True)
            try:
                bound.session.run_with_iobinding(bound.binding)
            except Exception as error:  # the runtime's exception classes share no base
                raise translate(error, f"running step {index} of the plan") from error
            if self.watch is not None:
                self.watch(index, False)
            for total, part in bound.additions:
                total += part
            for gap in bound.gaps:
                gap.fill(0)
            if LOSS in step.writes:
                yield float(self._loss)
            if index in self.groups:
                yield index, self._gradients[index]
