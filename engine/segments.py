"""Cutting the forward pass into segments, and writing each as one or two steps.

Strategy: the nodes in topological order are cut at positions. A segment's forward step turns the tensors that cross
into it into those that cross out of it; its backward step recomputes the inside from what crossed in, takes the
gradients of what crossed out and gives the gradients of what crossed in, and of its weights. The last segment needs
no forward step: its backward step computes the loss on the way. So one segment is one step that recomputes nothing.
What is kept for recomputing may be coded in fewer bits (`checkpoints.py`).

What runs in a training step is a list of `Step`s that read and write names: weights, inputs, crossing tensors, and
gradients (`GRADIENT` + name). The executor needs to know no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .checkpoints import codable, coded, decoded_first, encode
from .differentiate import dependents, differentiate
from .graph import Builder, Graph
from .loss import LOSS
from .plan import GRADIENT, UPDATE
from .steps import Step, StepWriter


class _Segment:
    """A stretch of the graph's nodes: what it makes, and what it reads from outside."""

    def __init__(self, graph: Graph, begin: int, end: int) -> None:
        self.nodes = graph.nodes[begin:end]
        self.made = dict.fromkeys(o for n in self.nodes for o in n.outputs if o)
        self.read = {i for n in self.nodes for i in n.inputs if i} - self.made.keys()


def write_steps(
    graph: Graph,
    cuts: Sequence[int],
    trainable: Sequence[str],
    weights: frozenset[str],
    block: int = 0,
    threads: int = 1,
    checkpoints: str = "float32",
    lean: bool = False,
) -> list[Step]:
    """The steps of training a graph that ends in `LOSS`, for these cuts. `block`: see `blocked.py`.

    `checkpoints`: "float32", or "int8" to keep what is recomputed from in blocks of one byte per number. `lean`: make
    the blocked forms of weights again for each reader rather than keep them.
    Raises UnsupportedOperatorError.
    """
    segments = [_Segment(graph, begin, end) for begin, end in pairwise([0, *cuts, len(graph.nodes)])]
    moving = dependents(graph, graph.nodes, trainable)
    last = len(segments) - 1
    backwards = [i == last or bool((s.made.keys() | s.read) & moving) for i, s in enumerate(segments)]
    coding: set[str] = set()
    if checkpoints == "int8":
        made = {t for s in segments for t in s.made}
        again = {t for s, backward in zip(segments[:-1], backwards, strict=False) if backward for t in s.read}
        coding = {t for t in again & made if codable(graph.types[t])}
    writer = StepWriter(graph, weights, block, threads, lean=lean)
    for name in coding:
        writer.types |= coded(name, graph.types[name])
    steps: list[Step] = []
    for index, segment in enumerate(segments[:-1]):
        builder = Builder("s.f")
        leaving = _leaving(segments, index)
        # the pass goes on with the exact tensors, coded or not
        outputs = [*leaving, *_updates(segment)]
        for name in leaving:
            if name in coding:
                encode(builder, name, graph.types[name])
                outputs += coded(name, graph.types[name])
        nodes = [*segment.nodes, *builder.nodes]
        steps.append(writer.write("forward", index, nodes, {t: t for t in outputs}, builder.constants))
    for index in range(last, -1, -1):
        if backwards[index]:
            steps += _backward(writer, segments, index, trainable, moving, coding)
    return _without_unread(steps)


def _updates(segment: _Segment) -> list[str]:
    """New values of weights that no optimizer moves: they are written on the way forward."""
    return [t for t in segment.made if t.startswith(UPDATE)]


def _leaving(segments: Sequence[_Segment], index: int) -> list[str]:
    """What a segment makes and a later one reads."""
    later = {t for s in segments[index + 1 :] for t in s.read}
    return [t for t in segments[index].made if t in later]


def _backward(
    writer: StepWriter,
    segments: Sequence[_Segment],
    index: int,
    trainable: Sequence[str],
    moving: set[str],
    coding: set[str],
) -> list[Step]:
    """The backward step of a segment, unless no gradient arrives in it."""
    graph, segment = writer.graph, segments[index]
    builder = Builder("s.b")
    last = index == len(segments) - 1
    # gradients arrive for what leaves and can carry one, and are wanted for what enters and for the weights
    seeds = {LOSS: builder.scalar(1.0)} if last else {t: GRADIENT + t for t in _leaving(segments, index) if t in moving}
    entering = sorted(t for t in segment.read if t in moving and t not in writer.weights)
    wanted = [*entering, *(w for w in trainable if w in segment.read)]
    found = differentiate(graph, segment.nodes, seeds, wanted, builder)
    outputs = {GRADIENT + t: found[t] for t in wanted if t in found}
    if last:
        outputs |= {t: t for t in (LOSS, *_updates(segment))}
    if not outputs:
        return []
    nodes, constants = [*segment.nodes, *builder.nodes], builder.constants
    if not last:
        writer.types |= {GRADIENT + t: graph.types[t].gradient for t in seeds}
        reading = [(t, graph.types[t]) for t in sorted(coding & segment.read)]
        nodes, decoder = decoded_first(nodes, reading)
        constants = constants | decoder.constants
    writer.types |= {GRADIENT + t: graph.types[t].gradient for t in wanted}
    return [writer.write("backward", index, nodes, outputs, constants)]


def _without_unread(steps: list[Step]) -> list[Step]:
    """Forward steps whose results nothing reads are not run (possible only when everything after is frozen)."""
    needed = {n for s in steps for n in s.reads} | {n for s in steps for n in s.writes if n.startswith(UPDATE)}
    return [s for s in steps if s.kind == "backward" or needed.intersection(s.writes)]
