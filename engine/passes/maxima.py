"""The gradient of a maximum over windows.

In blocks: tap by tap, the places of all windows that the tap looks at are cut out and compared with the maxima; the
first tap that equals its maximum takes the gradient, and what is left for the later ones is exactly zero. What a tap
takes is added at its places, phase by phase of the stride. In the standard layout windows side by side are done the
same way, by the runtime's SpaceToDepth, and others by its own index of the maximum, which is several times slower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..graph import MAX_POOL_GRADIENT, OURS, Node
from .convolutions import interleaved
from .layout import Layout
from .program import Program
from .writer import Writer

#: The most taps that are compared one by one.
_TAPS = 9
_LOWEST = np.array(-np.inf, np.float32)
_OWN = ("shape", "before", "behind")
_FLOAT = 1


@dataclass(frozen=True, slots=True)
class _Windows:
    """Per axis: kernel, stride, dilation, padding before and behind, windows."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]
    positions: tuple[int, ...]


def _windows(program: Program, node: Node) -> _Windows:
    get, rank = node.attributes.get, len(node.attributes["kernel_shape"])
    return _Windows(
        tuple(node.attributes["kernel_shape"]), tuple(get("strides", [1] * rank)), tuple(get("dilations", [1] * rank)),
        tuple(node.attributes["before"]), tuple(node.attributes["behind"]), program.types[node.inputs[1]].shape[2:],
    )  # fmt: skip


def in_blocks(lay: Layout, node: Node) -> bool:
    """An anchor: whether sums over overlapping windows are taken in this order depends on the sizes alone."""
    x, y, g = node.inputs
    w = _windows(lay.program, node)
    if len(lay.program.types[x].shape) != 4 or not lay.fits(lay.four(x)[1]) or math.prod(w.kernel) > _TAPS:
        return False
    batch, channels, height, width = lay.four(x)
    lines = batch * lay.up(channels) // lay.block
    outer = (lines, *w.positions, lay.block)
    image = lay.reshape(lay.in_blocks(x), (lines, height, width, lay.block))
    low, high = w.before, tuple(max(b, 0) for b in w.behind)
    if any((*low, *high)):
        pads = lay.ints(0, *low, 0, 0, *high, 0)
        padded = (lines, height + low[0] + high[0], width + low[1] + high[1], lay.block)
        image = lay.op("Pad", (image, pads, lay.constant(_LOWEST)), padded)
    _, tall, wide, _ = lay.program.types[image].shape
    counts = (-(-tall // w.stride[0]), -(-wide // w.stride[1]))
    maxima, left = (lay.reshape(lay.in_blocks(t), outer) for t in (y, g))
    sums: dict[tuple[int, int], str] = {}
    taps = [(a * w.dilation[0], b * w.dilation[1]) for a in range(w.kernel[0]) for b in range(w.kernel[1])]
    for start in taps:
        share = left
        if start != taps[-1]:  # what the others left is the last one's
            ends = [f + (p - 1) * s + 1 for f, p, s in zip(start, w.positions, w.stride, strict=True)]
            cut = (image, lay.ints(*start), lay.ints(*ends), lay.ints(1, 2), lay.ints(*w.stride))
            equal = lay.op("Equal", (lay.op("Slice", cut, outer), maxima), outer, dtype="bool")
            share = lay.op("Mul", (left, lay.op("Cast", (equal,), outer, to=_FLOAT)), outer)
            left = lay.op("Sub", (left, share), outer)
        first = [f // s for f, s in zip(start, w.stride, strict=True)]
        rest = [c - p - f for c, p, f in zip(counts, w.positions, first, strict=True)]
        placed = lay.pad(share, (0, *first, 0, 0, *rest, 0))
        phase = (start[0] % w.stride[0], start[1] % w.stride[1])
        shape = (lines, *counts, lay.block)
        sums[phase] = lay.op("Add", (sums[phase], placed), shape) if phase in sums else placed
    rows = [[sums.get((a, b), "") for b in range(w.stride[1])] for a in range(w.stride[0])]
    whole = interleaved(lay, rows, lines, counts, w.stride, w.before, (height, width))
    return lay.result(node, lay.reshape(whole, (batch, lay.up(channels), height, width)))


def expand(program: Program) -> bool:
    """Write out what is left in the standard layout."""
    nodes: list[Node] = []
    changed = False
    for node in program.nodes:
        if node.op != MAX_POOL_GRADIENT or node.domain != OURS:
            nodes.append(node)
            continue
        writer = Writer(program)
        w = _windows(program, node)
        if _apart(program, node, w):
            _compare(writer, node, w)
        else:
            _scatter(writer, node)
        nodes += writer.nodes
        changed = True
    program.nodes = nodes
    return changed


def _apart(program: Program, node: Node, w: _Windows) -> bool:
    """Whether the windows are squares that neither overlap nor leave gaps nor reach beyond the input."""
    size = w.kernel[0]
    square = w.kernel == w.stride == (size, size) and w.dilation == (1, 1)
    return square and 1 < size <= 4 and not any(w.before) and max(w.behind) <= 0


def _compare(writer: Writer, node: Node, w: _Windows) -> None:
    x, y, left = node.inputs
    size, outer = w.kernel[0], writer.program.types[y].shape
    batch, channels, *space = writer.program.types[x].shape
    covered = [size * p for p in w.positions]
    if covered != space:
        x = writer.op(
            "Slice", (x, writer.ints(0, 0), writer.ints(*covered), writer.ints(2, 3)), (batch, channels, *covered)
        )
    laid_out = (batch, size * size * channels, *w.positions)
    places = writer.op("SpaceToDepth", (x,), laid_out, blocksize=size)
    shares = []
    for place in range(size * size - 1):
        limits = (writer.ints(place * channels), writer.ints((place + 1) * channels), writer.ints(1))
        here = writer.op("Slice", (places, *limits), outer)
        equal = writer.op("Cast", (writer.op("Equal", (here, y), outer, dtype="bool"),), outer, to=_FLOAT)
        shares.append(writer.op("Mul", (left, equal), outer))
        left = writer.op("Sub", (left, shares[-1]), outer)  # exactly 0 where it was taken
    joined = writer.op("Concat", (*shares, left), laid_out, axis=1)
    last = node.outputs[0] if covered == space else ""
    whole = (batch, channels, *covered)
    result = writer.op("DepthToSpace", (joined,), whole, output=last, blocksize=size, mode="DCR")
    if covered != space:
        rest = [n - c for n, c in zip(space, covered, strict=True)]
        pads = writer.ints(0, 0, 0, 0, 0, 0, *rest)
        writer.op("Pad", (result, pads), (batch, channels, *space), output=node.outputs[0])


def _scatter(writer: Writer, node: Node) -> None:
    x, y, g = node.inputs
    program = writer.program
    shape, outer = program.types[x].shape, program.types[y].shape
    kept = {k: v for k, v in node.attributes.items() if k not in _OWN}
    names = (program.fresh(program.types[y]), program.fresh(program.types[y]))
    program.types[names[1]] = type(program.types[y])("int64", outer)
    writer.nodes.append(Node("MaxPool", (x,), names, kept, f"{names[0]}_MaxPool"))
    size, count = math.prod(shape), math.prod(outer)
    zeros = writer.op("Expand", (writer.constant(np.zeros((), np.float32)), writer.ints(size)), (size,))
    places = writer.reshape(names[1], (count,))
    arguments = (zeros, places, writer.reshape(g, (count,)))
    flat = writer.op("ScatterElements", arguments, (size,), axis=0, reduction="add")
    writer.reshape(flat, shape, node.outputs[0])
