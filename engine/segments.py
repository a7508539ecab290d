"""Cutting the forward pass into segments, and writing each as one or two models.

Strategy: the nodes in topological order are cut at positions. A segment's forward model turns the tensors that cross
into it into those that cross out of it; its backward model recomputes the inside from what crossed in, takes the
gradients of what crossed out and gives the gradients of what crossed in, and of its weights. The last segment needs
no forward model: its backward model computes the loss on the way. So one segment is one model that recomputes nothing.

What runs in a training step is a list of `Step`s that read and write names: weights, inputs, crossing tensors, and
gradients (`GRADIENT` + name). The executor needs to know no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from . import onnxio
from .differentiate import dependents, differentiate
from .graph import Builder, Graph, Node, TensorType
from .kernels import work
from .lifetimes import trace
from .loss import LOSS
from .passes import lower
from .plan import GRADIENT


@dataclass(frozen=True, slots=True)
class Step:
    """One session of a training step."""

    kind: str
    segment: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    model: bytes
    #: How far the session reaches into its arena, in bytes: what it allocates beyond what it reads and writes.
    workspace: int
    #: Bytes alive in the arena while each node runs.
    alive: tuple[int, ...]
    operators: int


def crossing(graph: Graph, cuts: Sequence[int], weights: frozenset[str]) -> list[list[str]]:
    """For each cut, the tensors made before it and read after it."""
    made_at = {o: i for i, n in enumerate(graph.nodes) for o in n.outputs if o}
    read_at: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.inputs:
            if name in made_at:
                read_at[name] = index
    return [[t for t, made in made_at.items() if made < cut <= read_at.get(t, -1)] for cut in cuts]


def write_steps(
    graph: Graph, cuts: Sequence[int], trainable: Sequence[str], weights: frozenset[str], block: int = 0
) -> list[Step]:
    """The steps of training a graph that ends in `LOSS`, for these cuts. `block`: see `blocked.py`.

    Raises UnsupportedOperatorError.
    """
    bounds = [0, *cuts, len(graph.nodes)]
    ranges = list(pairwise(bounds))
    across = crossing(graph, cuts, weights)
    moving = dependents(graph, graph.nodes, trainable)
    forward: list[Step] = []
    backward: list[Step] = []
    for segment, (begin, end) in enumerate(ranges):
        nodes = graph.nodes[begin:end]
        last = segment == len(ranges) - 1
        made = {o for n in nodes for o in n.outputs if o}
        read = {i for n in nodes for i in n.inputs if i}
        leaving = [] if last else [t for t in across[segment] if t in made]
        if not last:
            leave = {t: t for t in leaving}
            forward.append(_write("forward", segment, graph, nodes, leave, Builder("s.f"), weights, {}, block))
        # gradients arrive for what leaves and can carry one, and are wanted for what enters and for the weights
        builder = Builder("s.b")
        seeds = {t: GRADIENT + t for t in leaving if t in moving}
        if last:
            one = builder.scalar(1.0)
            seeds = {LOSS: one}
        entering = [t for t in read - made if t in moving and t not in weights]
        wanted = [*sorted(entering), *(w for w in trainable if w in read)]
        if not wanted and not last:
            continue
        found = differentiate(graph, nodes, seeds, wanted, builder)
        outputs = {GRADIENT + t: found[t] for t in wanted if t in found}
        if last:
            outputs[LOSS] = LOSS
        arriving = {GRADIENT + t: graph.types[t].gradient for t in seeds} if not last else {}
        backward.append(_write("backward", segment, graph, nodes, outputs, builder, weights, arriving, block))
    return [*_without_unread(forward, backward), *backward[::-1]]


def _without_unread(forward: list[Step], backward: list[Step]) -> list[Step]:
    """Forward steps whose results nothing reads are not run (possible only when everything after is frozen)."""
    needed = {n for s in (*forward, *backward) for n in s.reads}
    return [s for s in forward if needed.intersection(s.writes)]


def _write(
    kind: str,
    segment: int,
    graph: Graph,
    nodes: Sequence[Node],
    outputs: dict[str, str],
    builder: Builder,
    weights: frozenset[str],
    arriving: dict[str, TensorType],
    block: int,
) -> Step:
    """One model that computes `outputs` ({name outside: name inside}) from whatever it needs."""
    written = [*nodes, *builder.nodes]
    produced = {o for n in written for o in n.outputs}
    written += [
        Node("Identity", (inside,), (outside,), name=f"out_{outside}")
        for outside, inside in outputs.items()
        if outside != inside or inside not in produced
    ]
    alive = set(outputs)
    kept: list[Node] = []
    for node in reversed(written):
        if alive.intersection(node.outputs):
            kept.append(node)
            alive.update(i for i in node.inputs if i)
    kept.reverse()
    produced = {o for n in kept for o in n.outputs}
    constants = {**graph.constants, **builder.constants}
    reads = [n for n in dict.fromkeys(i for k in kept for i in k.inputs if i)
             if n not in produced and (n not in constants or n in weights)]  # fmt: skip
    types = {**graph.types, **arriving}
    used = {n: v for n, v in constants.items() if n not in weights}
    results: dict[str, TensorType] = {}
    for outside in outputs:
        base = outside.removeprefix(GRADIENT) if outside.startswith(GRADIENT) else outside
        results[outside] = graph.types[base] if base == outside else graph.types[base].gradient
    arguments = {n: types[n] for n in reads}
    plain = onnxio.to_bytes(kept, arguments, results, used, graph.opset)
    known = onnxio.infer_types(plain)
    program = lower(kept, known | types, used, reads, list(outputs), graph.opset, block)
    model = onnxio.to_bytes(program.nodes, arguments, results, program.constants, graph.opset)
    sizes = {n: t.nbytes for n, t in program.types.items()}
    external = {*reads, *outputs, *program.constants}
    workspace, curve = trace([work(n, program.types) for n in program.nodes], sizes, external)
    return Step(kind, segment, tuple(reads), tuple(outputs), model, workspace, tuple(curve), len(program.nodes))
