"""One model with fixed choices: its graphs, the steps of any way to train it, and what those will take.

Strategy: everything is made when it is first asked for and kept, so the search (`search.py`) can look at many ways and
pay for few. Needs `onnx`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx

from . import onnxio
from .adapters import Wish, find, insert
from .batchnorm import inference_form, mixes_samples, running_statistics, spell_out
from .blocked import DOMAIN, block_size, probe_model
from .checkpoints import stored_share
from .costs import BYTE, SESSION, total_seconds
from .cuts import Chain, Cutting
from .differentiate import check_complete, check_reached, check_supported
from .errors import EngineError, ModelError, UnsupportedOperatorError
from .exchange import arrange
from .footprint import (
    OPERATOR_BYTES,
    QUANTIZED_BYTES,
    SESSION_BYTES,
    STEP_BYTES,
    Footprint,
    aligned_bytes,
    arena_resident,
    flat_bytes,
    session_bytes,
)
from .graph import Builder, Graph
from .integers import check_trained, quantizations
from .layouts import samples_first
from .loss import LABELS, LOSS, SAMPLE_WEIGHT, TARGETS, TEACHER, attach_loss, loss_options
from .losses import find_loss
from .optimizers import state_bytes
from .placing import near_use
from .plan import GRADIENT, VERSION, Adapter, Description, StepInfo, Tensor, TrainingPlan
from .rules import integer_remedy
from .segments import write_steps
from .slots import carriers, weight_names
from .steps import Step, shared_arena
from .trial import measure_baseline
from .weights import choose_trainable

#: A backward pass in terms of its forward pass, for ordering ways by speed.
_BACKWARD = 2.0
#: What arenas take of what the chain of cuts says.
_ARENA_SHARE = 0.85
#: Time of a step in a layout, in terms of the blocked one. Measured on convolutional networks.
_SLOWER = {"blocked": 1.0, "lean": 1.04, "plain": 1.7}
#: How often a session passes over a trained filter to bring it and its gradient into blocks and back, in bytes moved.
_FILTER_PASSES = 11
#: Nodes of a step for one of the graph, in the plain layout and in the blocked one.
_NODES = {"plain": 9, "lean": 16, "blocked": 14}


@dataclass(frozen=True, slots=True)
class Level:
    """How numbers are held: optimizer state, what is stored for recomputation, sums of gradients; and the layout of
    convolutions."""

    state: str = "float32"
    checkpoints: str = "float32"
    sums: str = "float32"
    #: "blocked": convolutions run in the runtime's blocked layout where they can: fastest. "lean": the same, with the
    #: blocked forms of weights made for each use instead of kept. "plain": the standard's layout, slow and small.
    layout: str = "blocked"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train."""

    micro_batch: int
    cutting: Cutting
    level: Level
    seconds: float


class Drafts:
    """All ways to train one model on one loss."""

    def __init__(
        self, model: str | Path | bytes, loss: str, options: Mapping[str, float | Sequence[float]], batch: int,
        optimizer: str, trainable: str | Sequence[str], output: str | None, threads: int,
        sizes: Mapping[str, Sequence[int]], reserve: int = 0, hold_gradients: bool = False,
        adapters: Wish | None = None,
    ) -> None:  # fmt: skip
        proto, self.name = onnxio.load_model(model)
        self.proto = onnxio.normalize(proto, self.name)
        self.loss, self.options = loss, loss_options(loss, options)
        self.batch, self.optimizer, self.threads, self.output = batch, optimizer, threads, output
        self.reserve, self.hold_gradients = reserve, hold_gradients
        self.block = block_size()
        self.data = inference_form(self.proto)  # what the export starts from, its free sizes still free
        samples_first(self.proto)
        onnxio.fix_sizes(self.proto, sizes)
        self.static = onnxio.static_batch(self.proto)
        names = weight_names(self.proto, [] if isinstance(trainable, str) else trainable)
        if not names:
            _refuse_integers(self.proto, self.name)
            raise ModelError(
                f"{self.name}: has no weights that could be trained: float32 initializers or Constant nodes; "
                "export the model with its weights in the file"
            )
        running = [n for n in running_statistics(self.proto) if n not in names]
        self._candidates = frozenset([*names, *running])
        self._quantized = quantizations(self.proto, names, self.name)
        self.adapters: list[Adapter] = []
        self.graph = lru_cache(maxsize=16)(self._graph)
        graph, read = self.graph(self.static or self.batch)
        self.whole = mixes_samples(graph) or find_loss(loss).whole(graph, read)
        self.weights = [n for n in names if n in graph.constants]
        shapes = {n: graph.types[n].shape for n in self.weights}
        if adapters is None or trainable != "all":
            last = partial(_last_weights, graph, self.weights)
            self.trainable = choose_trainable(trainable, self.weights, shapes, last)
        else:
            self.trainable = []  # the adapters alone
        if adapters is not None:
            self.adapters = find(graph, self.weights, adapters)
            self.graph.cache_clear()
            graph, _ = self.graph(self.static or self.batch)
            factors = [n for a in self.adapters for n in (a.down, a.up)]
            self.weights += factors
            self.trainable += factors
        check_supported(graph, self.trainable)
        check_reached(graph, self.trainable)
        if trainable == "all" and adapters is None:
            check_complete(graph)
            check_trained(self.proto, names, self.name)
        self.weights += [n for n in running if n in graph.constants]
        self._forget()

    def _forget(self) -> None:
        """Keep nothing that depends on what is trained."""
        self.steps = lru_cache(maxsize=64)(self._steps)
        self.chain = lru_cache(maxsize=32)(self._chain)

    def only(self, names: Collection[str]) -> Drafts:
        """The same model with only some of its trained weights trained."""
        other = copy(self)
        other.trainable = [n for n in self.trainable if n in names]
        other._forget()
        return other

    def _graph(self, micro_batch: int) -> tuple[Graph, str]:
        """The graph with its loss, and the model output that the loss reads."""
        graph = onnxio.to_graph(self.proto, micro_batch, self._candidates, self.name)
        spell_out(graph)
        near_use(graph, self._candidates)
        insert(graph, self.adapters)
        return graph, attach_loss(graph, self.loss, self.options, self.output)

    def micro_batches(self, asked: int | None = None) -> list[int]:
        """The micro-batches to consider, the largest first. Raises EngineError for what would not be exact."""
        fixed = self.static or asked
        if self.whole and (fixed or self.batch) != self.batch:
            raise EngineError(
                f"{self.name}: a batch of {self.batch} cannot go through {fixed} at a time, as {self.whole}; use "
                f"batch={fixed}, or export the model for inference"
            )
        if fixed is not None or self.whole:
            return [fixed or self.batch]
        return sorted({-(-self.batch // parts) for parts in _powers(self.batch)}, reverse=True)

    def sums(self, micro_batch: int) -> bool:
        """Whether a step with this micro-batch holds all gradients, added up."""
        return micro_batch < self.batch or self.hold_gradients

    def _chain(self, micro_batch: int, checkpoints: str) -> Chain:
        graph, _ = self.graph(micro_batch)
        share = 1.0
        if checkpoints == "int8":
            sizes = [(graph.types[o], stored_share(graph.types[o])) for n in graph.nodes for o in n.outputs if o]
            share = sum(k.nbytes * s for k, s in sizes) / max(sum(k.nbytes for k, _ in sizes), 1)
        return Chain(graph, self.trainable, frozenset(self.weights), share)

    def ways(self, micro_batches: Sequence[int], segments: int | None, level: Level) -> list[Way]:
        """Ways to train at a level of precision, the fastest first."""
        found = []
        slower = _SLOWER[level.layout] if self.block else 1.0
        for size in micro_batches:
            graph, _ = self.graph(size)
            chain = self.chain(size, level.checkpoints)
            cuttings = chain.cuttings() if segments is None else chain.evenly(segments)
            once = (1 + _BACKWARD) * total_seconds(graph.nodes, graph.types) + SESSION
            filters = sum(graph.types[w].nbytes for w in self.trainable if len(graph.types[w].shape) > 2)
            once += BYTE * filters * (_FILTER_PASSES if level.layout != "plain" and self.block else 2)
            calls = -(-self.batch // size)
            found += [Way(size, c, level, calls * slower * (once + c.extra_seconds)) for c in cuttings]
        return sorted(found, key=lambda w: (w.seconds, -w.micro_batch, len(w.cutting.cuts), w.cutting.cuts))

    def _steps(self, micro_batch: int, cuts: tuple[int, ...], level: Level) -> list[Step]:
        graph, _ = self.graph(micro_batch)
        block = 0 if level.layout == "plain" else self.block
        return write_steps(
            graph, cuts, self.trainable, frozenset(self.weights), block, self.threads, level.checkpoints,
            level.layout == "lean",
        )  # fmt: skip

    def rough(self, way: Way) -> int:
        """Bytes of a way without writing its steps."""
        arena, exchange = round(way.cutting.arena * _ARENA_SHARE), way.cutting.exchange
        nodes = len(self.graph(way.micro_batch)[0].nodes) * _NODES[way.level.layout]
        sessions = OPERATOR_BYTES * nodes + 2 * len(way.cutting.cuts) * SESSION_BYTES
        return self._footprint(way, arena, exchange, []).total + sessions

    def footprint(self, way: Way) -> Footprint:
        """Bytes of a way, its steps written."""
        steps = self.steps(way.micro_batch, way.cutting.cuts, way.level)
        info = self.describe(way, None)
        return self._footprint(way, info.arena, arrange(info).size, steps)

    def _footprint(self, way: Way, arena: int, exchange: int, steps: Sequence[Step]) -> Footprint:
        graph, _ = self.graph(way.micro_batch)
        shapes = [graph.types[w].shape for w in self.trainable]
        trained = flat_bytes(shapes)
        if way.level.sums != "float32":
            trained = state_bytes("sgd", way.level.sums, shapes)  # one mean of gradients is held alike
        inputs = sum(graph.types[i].nbytes for i in graph.inputs)
        return Footprint(
            baseline=measure_baseline(small_model()),
            weights=aligned_bytes(graph.types[w].nbytes for w in self.weights),
            optimizer=state_bytes(self.optimizer, way.level.state, [graph.types[w].shape for w in self.trainable]),
            gradients=trained if self.sums(way.micro_batch) else 0,
            inputs=inputs,
            exchange=exchange,
            arena=arena_resident(arena),
            sessions=sum(session_bytes(s.operators, len(s.model)) for s in steps),
            step=STEP_BYTES + (QUANTIZED_BYTES if self._quantized else 0),
            reserve=self.reserve,
        )

    def describe(self, way: Way, limit: int | None, footprint: Footprint | None = None) -> Description:
        """What a plan says of a way."""
        graph, output = self.graph(way.micro_batch)
        cuts = way.cutting.cuts
        steps = self.steps(way.micro_batch, cuts, way.level)
        targets = [n for n in (LABELS, TARGETS, TEACHER, SAMPLE_WEIGHT) if n in graph.inputs]
        classes = 0
        if LABELS in targets:
            one_hot = next(n for n in graph.nodes if n.op == "OneHot" and LABELS in n.inputs)
            classes = graph.types[one_hot.outputs[0]].shape[one_hot.attributes["axis"]]

        def tensors(names: Sequence[str]) -> tuple[Tensor, ...]:
            return tuple(Tensor(n, graph.types[n].dtype, graph.types[n].shape) for n in names)

        known = {*graph.inputs, *self.weights, LOSS}
        exchanged: dict[str, Tensor] = {}
        for step in steps:
            for name, kind in step.kinds:
                base = name.removeprefix(GRADIENT)
                if base not in known and (name == base or base not in exchanged):  # gradients have types of their own
                    exchanged[base] = Tensor(base, kind.dtype, kind.shape)
        block = self.block if any(DOMAIN.encode() in s.model for s in steps) else 0
        return Description(
            VERSION, self.name, self.loss, self.options, self.optimizer, self.batch, way.micro_batch,
            len(cuts) + 1, self.threads, block, limit, False, _repeated(steps, cuts, len(graph.nodes)), output,
            tensors([i for i in graph.inputs if i not in targets]), tensors(targets), classes,
            tensors(self.weights), tuple(self.trainable), tuple(exchanged[n] for n in sorted(exchanged)),
            tuple(map(_info, steps)), adapters=tuple(self.adapters),
            optimizer_state=way.level.state, hold_gradients=self.hold_gradients, gradient_sums=way.level.sums,
            checkpoints=way.level.checkpoints,
            seconds=way.seconds, footprint=footprint or Footprint(), whole=self.whole,
            cuts=cuts, nodes=len(graph.nodes), arena=shared_arena(steps),
            quantized=tuple(self._quantized[w] for w in self.weights if w in self._quantized),
        )  # fmt: skip

    def plan(self, way: Way, footprint: Footprint, limit: int | None) -> TrainingPlan:
        """The plan for a way."""
        steps = self.steps(way.micro_batch, way.cutting.cuts, way.level)
        info = self.describe(way, limit, footprint)
        probe = probe_model(info.block) if info.block else b""
        return TrainingPlan.of(info, [s.model for s in steps], self.data, probe)


def _info(step: Step) -> StepInfo:
    return StepInfo(
        step.kind, step.segment, step.reads, step.writes, step.workspace, step.operators, step.alive, step.seconds
    )


def _repeated(steps: Sequence[Step], cuts: Sequence[int], nodes: int) -> float:
    """Share of the forward pass's nodes that run twice."""
    kinds = {(s.segment, s.kind) for s in steps}
    sizes = [end - begin for begin, end in pairwise([0, *cuts])]
    return sum(n for i, n in enumerate(sizes) if {(i, "forward"), (i, "backward")} <= kinds) / nodes


def small_model() -> bytes:
    """What the baseline is measured with: the kinds of operators that training steps are made of."""
    b = Builder("p")
    x, w = b.constant(np.ones((2, 8, 16), np.float32)), b.constant(np.ones((8, 8, 3), np.float32))
    x = b.op("RandomNormalLike", x, seed=1.0)  # so that nothing can be folded
    y = b.op("Relu", b.op("Conv", x, w, pads=[1, 1], kernel_shape=[3]))
    y = b.op("ConvTranspose", y, w, pads=[1, 1], kernel_shape=[3])
    y = b.op("Softmax", b.op("MatMul", y, b.op("Transpose", x, perm=[0, 2, 1])), axis=-1)
    b.op("ReduceSum", b.op("Mul", y, y), b.ints(0), name="y", keepdims=0)
    return onnxio.to_bytes(b.nodes, {}, {"y": None}, b.constants, onnxio.OPSET)


def _refuse_integers(proto: onnx.ModelProto, name: str) -> None:
    """Raise UnsupportedOperatorError if the weights sit in operators that compute with integers."""
    for node in proto.graph.node:
        remedy = integer_remedy(node.op_type)
        if remedy:
            raise UnsupportedOperatorError(node.op_type, node.name, name, remedy)


def _powers(batch: int) -> Iterator[int]:
    parts = 1
    while parts < batch:
        yield parts
        parts *= 2
    yield batch


#: Operators that count as layers for "last-k".
_LAYERS = ("Gemm", "MatMul", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN")


def _last_weights(graph: Graph, weights: Sequence[str], count: int) -> set[str]:
    """The weights of the last `count` layers, and of what comes after the first of these (biases, normalizations)."""
    carried = carriers(graph.nodes, weights)  # a weight may reach its operator through others
    heavy = [i for i, n in enumerate(graph.nodes) if n.op in _LAYERS and carried.keys() & set(n.inputs)]
    start = heavy[-count] if count <= len(heavy) else 0
    return set().union(*(carried.get(i, set()) for n in graph.nodes[start:] for i in n.inputs))
