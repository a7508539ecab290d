"""`compile`: from an inference model to a training plan under a memory limit. Needs `onnx`.

Strategy: list ways to train (micro-batch, cuts), order them by predicted step time, and take the first whose
predicted peak fits the limit. A micro-batch costs calls, a cut costs recomputation; so micro-batches come first, by
the arithmetic and not by a rule. Where there is a limit the choice is tried in a fresh process that measures itself;
a way that turns out too large is dropped and the prediction corrected by what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from . import onnxio
from .blocked import DOMAIN, block_size, probe_model
from .differentiate import check_complete, check_supported
from .errors import EngineError, MemoryLimitError, ModelError
from .graph import Builder, Graph
from .lifetimes import last_uses
from .loss import LABELS, LOSS, SAMPLE_WEIGHT, TARGETS, TEACHER, attach_loss, loss_options
from .memory import format_size
from .optimizers import check_optimizer, check_state, state_bytes
from .plan import GRADIENT, VERSION, Description, StepInfo, Tensor, TrainingPlan
from .segments import Step, crossing, write_steps
from .trial import measure_baseline, measure_peak
from .weights import choose_trainable, weight_names

#: Memory of one session beyond its tensors: a fixed part, and one per operator (kernels and their names). Measured.
SESSION_BYTES, OPERATOR_BYTES = 200_000, 6_000
#: What a first step takes beyond the baseline whatever the model, and what the runtime's own order of operators and
#: its layout copies make of the workspace that lifetimes alone would need. Measured: `benchmarks/engine.py` compares.
FIXED_BYTES, WORKSPACE_FACTOR = 3 * 2**20, 1.8
#: The trial repeats a few steps; what differs from a long run (allocator, order of pages) was measured up to 1.2 MiB.
MARGIN_BYTES = 2 * 2**20
#: For ordering ways by speed only: seconds per operator call, per session call, and per multiply-add.
_OPERATOR_SECONDS, _SESSION_SECONDS, _MAC_SECONDS = 4e-6, 40e-6, 1.2e-10
_SEGMENT_BUDGETS = 14


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to train: a graph at a micro-batch, and where to cut it."""

    micro_batch: int
    cuts: tuple[int, ...]
    seconds: float


def compile(
    model: str | Path | bytes,
    *,
    loss: str = "cross_entropy",
    batch: int = 8,
    memory_limit: int | None = None,
    optimizer: str = "adam",
    optimizer_state: str = "float32",
    hold_gradients: bool = False,
    trainable: str | Sequence[str] = "all",
    precision: str = "auto",
    output: str | None = None,
    loss_options: Mapping[str, float] | None = None,
    micro_batch: int | None = None,
    segments: int | None = None,
    threads: int = 1,
    reserve: int = 0,
    trial: bool | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> TrainingPlan:
    """Plan the training of an ONNX inference model.

    `model`: path or bytes; the first dimension of every input is the batch, the others are fixed, or fixed here by
    `sizes`, {input name: sizes of a sample without the batch}; the exported model keeps them free.
    `loss`: "cross_entropy" (targets int64 [N]), "mse" (targets float32 like the output), "distillation" (targets
    {"labels": int64 [N], "teacher": float32 logits [N, C]}; `loss_options`: temperature=2.0, hard_weight=0.5).
    `memory_limit`: most resident bytes of the process that trains, everything included; None for no limit.
    `optimizer_state`: "float32", or a byte per running mean of large tensors: "dynamic8" (nearly as exact), "fixed8",
    "e4m3", "e5m2".
    `hold_gradients`: keep all gradients of a step until the last is known, 4 bytes per trained weight: makes clipping
    by norm one pass instead of two, lets `Trainer.accumulate` work under a limit, and keeps all weights after a
    gradient that is not finite.
    `trainable`: "all", "last", "bias", or a list of name patterns. `precision`: "auto" or "float32".
    `output`: which output the loss reads (the first). `micro_batch`, `segments`: fix what is otherwise chosen.
    `reserve`: bytes that the training process needs besides (its data). `trial`: measure the plan in a fresh process;
    by default exactly when there is a limit.

    The planning itself uses more memory than training: run it in another process where that counts.
    Raises ModelError, UnsupportedOperatorError, MemoryLimitError (`smallest` is a limit that would do), EngineError.
    """
    if precision not in ("auto", "float32"):
        raise EngineError(f'precision={precision!r}: this version trains in float32; use "auto" or "float32"')
    if batch < 1 or threads < 1 or (micro_batch is not None and not 1 <= micro_batch <= batch):
        raise EngineError("batch and threads must be at least 1, and micro_batch between 1 and batch")
    check_optimizer(optimizer)
    check_state(optimizer_state)
    planner = _Planner(model, loss, dict(loss_options or {}), batch, optimizer, trainable, output, threads, sizes or {})
    planner.optimizer_state, planner.hold_gradients = optimizer_state, hold_gradients
    ways = planner.ways(micro_batch, segments)
    measure = memory_limit is not None if trial is None else trial
    return _choose(planner, ways, memory_limit, reserve, measure)


def _choose(planner: _Planner, ways: list[_Way], limit: int | None, reserve: int, trial: bool) -> TrainingPlan:
    """The fastest way that fits; with `trial`, fits when measured, each measurement correcting the prediction."""
    if not ways:
        raise ModelError(f"{planner.name}: cannot be cut as asked; leave `segments` to the planner")
    fixed = planner.baseline + reserve
    ratio = 1.0
    untried = list(ways)
    least = 0
    while untried:
        fitting = (w for w in untried if limit is None or fixed + ratio * planner.beyond(w) <= limit)
        way = next(fitting, None)
        if way is None:
            if not trial or least:
                break
            way = min(untried, key=planner.beyond)  # before giving up: the smallest way, as it really is
        plan = planner.plan(way, limit, fixed + round(ratio * planner.beyond(way)), False)
        if not trial:
            return plan
        measured = measure_peak(plan) + reserve + MARGIN_BYTES
        if limit is None or measured <= limit:
            return planner.plan(way, limit, measured, True)
        least = min(measured, least or measured)
        ratio = max((measured - fixed) / planner.beyond(way), 0.1)
        # whatever was predicted to need as much will not fit either
        untried = [w for w in untried if planner.beyond(w) < planner.beyond(way)]
    smallest = (least or fixed + min(planner.beyond(w) for w in ways)) + MARGIN_BYTES
    raise MemoryLimitError(
        f"{planner.name}: training needs {format_size(smallest)} at least, the limit is {format_size(limit or 0)} "
        f"({format_size(fixed)} of it is the process before it trains); raise the limit, use a smaller batch, train "
        "fewer weights (`trainable`) or choose an optimizer with less state (sgd)",
        smallest,
    )


class _Planner:
    """One model with fixed choices; graphs and steps are made per micro-batch and kept."""

    def __init__(
        self, model: str | Path | bytes, loss: str, options: dict[str, float], batch: int, optimizer: str,
        trainable: str | Sequence[str], output: str | None, threads: int, sizes: Mapping[str, Sequence[int]],
    ) -> None:  # fmt: skip
        proto, self.name = onnxio.load_model(model)
        self.proto = onnxio.normalize(proto, self.name)
        self.loss, self.options = loss, loss_options(loss, options)
        self.batch, self.optimizer, self.threads, self.output = batch, optimizer, threads, output
        self.block = block_size()
        self.optimizer_state, self.hold_gradients = "float32", False
        self.data = self.proto.SerializeToString()  # what the export starts from, its free sizes still free
        onnxio.fix_sizes(self.proto, sizes)
        self.static = onnxio.static_batch(self.proto)
        names = weight_names(self.proto)
        if not names:
            raise ModelError(
                f"{self.name}: has no weights that could be trained: float32 initializers or Constant nodes; "
                "export the model with its weights in the file"
            )
        self._candidates = frozenset(names)
        graph, _ = self.graph(self.static or 1)
        self.weights = [n for n in names if n in graph.constants]
        shapes = {n: graph.types[n].shape for n in self.weights}
        self.trainable = choose_trainable(trainable, self.weights, shapes, _last_weights(graph, self.weights))
        check_supported(graph, self.trainable)
        if trainable == "all":
            check_complete(graph)
        self.steps = lru_cache(maxsize=64)(self._steps)

    @property
    def baseline(self) -> int:
        """Resident bytes of a process that has imported what training needs, measured."""
        return measure_baseline(_small_model())

    @lru_cache(maxsize=16)  # noqa: B019  (a planner lives as long as one call of compile)
    def graph(self, micro_batch: int) -> tuple[Graph, str]:
        """The graph with its loss, and the model output that the loss reads."""
        graph = onnxio.to_graph(self.proto, micro_batch, self._candidates, self.name)
        return graph, attach_loss(graph, self.loss, self.options, self.output)

    def _steps(self, micro_batch: int, cuts: tuple[int, ...]) -> list[Step]:
        return write_steps(self.graph(micro_batch)[0], cuts, self.trainable, frozenset(self.weights), self.block)

    def ways(self, micro_batch: int | None, segments: int | None) -> list[_Way]:
        """All ways to consider, the fastest first."""
        if self.static is not None:
            sizes = [self.static]
        elif micro_batch is not None:
            sizes = [micro_batch]
        else:
            sizes = sorted({-(-self.batch // parts) for parts in _powers(self.batch)}, reverse=True)
        found = []
        for size in sizes:
            graph, _ = self.graph(size)
            macs = _multiply_adds(graph)
            for cuts in {(), *_propose_cuts(graph, frozenset(self.weights))}:
                if segments is not None and len(cuts) + 1 != segments:
                    continue
                recomputed = (cuts[-1] / len(graph.nodes)) if cuts else 0.0
                calls = -(-self.batch // size)
                seconds = calls * (
                    macs * (3 + recomputed) * _MAC_SECONDS
                    + len(graph.nodes) * (3 + recomputed) * _OPERATOR_SECONDS
                    + (2 * len(cuts) + 1) * _SESSION_SECONDS
                )
                found.append(_Way(size, cuts, seconds))
        return sorted(found, key=lambda way: (way.seconds, way.micro_batch, way.cuts))

    def state_bytes(self) -> int:
        """Bytes of the optimizer's running means."""
        graph, _ = self.graph(self.static or 1)
        return state_bytes(self.optimizer, self.optimizer_state, [graph.types[w].shape for w in self.trainable])

    def beyond(self, way: _Way) -> int:
        """Predicted peak of the training process beyond the baseline, in bytes."""
        steps = self.steps(way.micro_batch, way.cuts)
        graph, _ = self.graph(way.micro_batch)
        weights = sum(graph.types[w].nbytes for w in self.weights)
        trained = sum(graph.types[w].nbytes for w in self.trainable)
        fixed = weights * 2 + self.state_bytes()  # the model's bytes are kept for the export
        if way.micro_batch < self.batch or self.hold_gradients:
            fixed += trained
        fixed += sum(graph.types[i].nbytes for i in graph.inputs) + sum(len(s.model) for s in steps)
        fixed += sum(SESSION_BYTES + OPERATOR_BYTES * s.operators for s in steps)
        return FIXED_BYTES + fixed + round(WORKSPACE_FACTOR * _program_peak(steps, graph))

    def plan(self, way: _Way, limit: int | None, peak: int, measured: bool) -> TrainingPlan:
        """The plan for a way."""
        graph, output = self.graph(way.micro_batch)
        steps = self.steps(way.micro_batch, way.cuts)
        targets = [n for n in (LABELS, TARGETS, TEACHER, SAMPLE_WEIGHT) if n in graph.inputs]
        crossing_names = {n.removeprefix(GRADIENT) for s in steps for n in (*s.reads, *s.writes)}
        known = {*graph.inputs, *self.weights, LOSS}
        classes = 0
        if LABELS in targets:
            one_hot = next(n for n in graph.nodes if n.op == "OneHot" and LABELS in n.inputs)
            classes = graph.types[one_hot.outputs[0]].shape[-1]

        def tensors(names: Sequence[str]) -> tuple[Tensor, ...]:
            return tuple(Tensor(n, graph.types[n].dtype, graph.types[n].shape) for n in names)

        block = self.block if any(DOMAIN.encode() in s.model for s in steps) else 0
        info = Description(
            VERSION, self.name, self.loss, self.options, self.optimizer, self.batch, way.micro_batch,
            len(way.cuts) + 1, self.threads, block, limit, peak, measured, self.baseline,
            way.cuts[-1] / len(graph.nodes) if way.cuts else 0.0, output,
            tensors([i for i in graph.inputs if i not in targets]), tensors(targets), classes,
            tensors(self.weights), tuple(self.trainable), tensors(sorted(crossing_names - known)),
            tuple(StepInfo(s.kind, s.segment, s.reads, s.writes, s.workspace, s.operators) for s in steps),
            optimizer_state=self.optimizer_state, hold_gradients=self.hold_gradients,
        )  # fmt: skip
        return TrainingPlan(info, [s.model for s in steps], self.data, probe_model(block) if block else b"")


def _small_model() -> bytes:
    """What the baseline is measured with: the kinds of operators that training steps are made of."""
    b = Builder("p")
    x, w = b.constant(np.ones((2, 8, 16), np.float32)), b.constant(np.ones((8, 8, 3), np.float32))
    x = b.op("RandomNormalLike", x, seed=1.0)  # so that nothing can be folded
    y = b.op("Relu", b.op("Conv", x, w, pads=[1, 1], kernel_shape=[3]))
    y = b.op("ConvTranspose", y, w, pads=[1, 1], kernel_shape=[3])
    y = b.op("Softmax", b.op("MatMul", y, b.op("Transpose", x, perm=[0, 2, 1])), axis=-1)
    b.op("ReduceSum", b.op("Mul", y, y), b.ints(0), name="y", keepdims=0)
    return onnxio.to_bytes(b.nodes, {}, {"y": None}, b.constants, onnxio.OPSET)


def _powers(batch: int) -> Iterator[int]:
    parts = 1
    while parts < batch:
        yield parts
        parts *= 2
    yield batch


def _last_weights(graph: Graph, weights: Sequence[str]) -> list[str]:
    """The weights of the last matrix product or convolution, and what only its bias addition reads."""
    kinds = ("Gemm", "MatMul", "Conv")
    heavy = [i for i, n in enumerate(graph.nodes) if n.op in kinds and set(n.inputs) & set(weights)]
    start = heavy[-1] if heavy else 0
    read = {i for n in graph.nodes[start:] for i in n.inputs}
    # a weight may reach its operator through nodes that only move elements
    for node in reversed(graph.nodes[:start]):
        if read.intersection(node.outputs) and len(node.inputs) and node.inputs[0] in weights:
            read.add(node.inputs[0])
    return [w for w in weights if w in read]


def _multiply_adds(graph: Graph) -> float:
    total = 0.0
    for node in graph.nodes:
        if node.op in ("Conv", "Gemm", "MatMul"):
            inner = graph.types[node.inputs[1]].size / max(graph.types[node.outputs[0]].shape[-1], 1)
            if node.op == "Conv":
                inner = graph.types[node.inputs[1]].size / graph.types[node.inputs[1]].shape[0]
            elif len(graph.types[node.inputs[1]].shape) >= 2:
                inner = graph.types[node.inputs[1]].shape[-2]
            total += graph.types[node.outputs[0]].size * inner
    return total


def _propose_cuts(graph: Graph, weights: frozenset[str]) -> set[tuple[int, ...]]:
    """Cuts for a range of budgets: segments are as long as their inside allows, and end where little crosses."""
    count = len(graph.nodes)
    every = range(1, count)
    width = [0, *(sum(graph.types[t].nbytes for t in names) for names in crossing(graph, every, weights)), 0]
    inside = [sum(graph.types[o].nbytes for o in n.outputs if o) for n in graph.nodes]
    total, largest = sum(inside), max(inside)
    result: set[tuple[int, ...]] = set()
    budget: Callable[[int], float] = lambda i: total * (2 * largest / total) ** (i / (_SEGMENT_BUDGETS - 1))  # noqa: E731
    for step in range(1, _SEGMENT_BUDGETS):
        cuts: list[int] = []
        begin = 0
        while begin < count:
            end, held = begin, 0
            while end < count and (held + inside[end] <= budget(step) or end == begin):
                held += inside[end]
                end += 1
            if end >= count:
                break
            # the narrowest place in the second half of what fits
            places = range(max(begin + 1, (begin + end) // 2), end + 1)
            begin = min(places, key=lambda p: (width[p], -p))
            cuts.append(begin)
        if cuts:
            result.add(tuple(cuts))
    return result


def _program_peak(steps: Sequence[Step], graph: Graph) -> int:
    """The most bytes of crossing tensors, gradients and session workspace at once, over the steps."""
    fixed = {*graph.inputs, LOSS, *(n for n in graph.constants)}
    last = last_uses([s.reads for s in steps])
    alive: dict[str, int] = {}
    most = 0
    for index, step in enumerate(steps):
        for name in step.writes:
            base = name.removeprefix(GRADIENT)
            if name not in fixed:
                alive[name] = graph.types[base].nbytes
        most = max(most, sum(alive.values()) + step.workspace)
        for name in [n for n in alive if last.get(n, index) <= index]:
            del alive[name]
    return most
