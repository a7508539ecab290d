"""Operators that move elements: the gradient moves them back, and adds where an element was used more than once."""

from __future__ import annotations

import numpy as np

from .index import scatter_slices
from .table import Site, gradient, gradient_each


def _back(s: Site) -> str:
    return s.reshape(s.g, s.shape())


for _name in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
    gradient(_name, 0)(_back)


@gradient("Transpose", 0)
def _(s: Site) -> str:
    order = s.attribute("perm", [*range(len(s.shape()))][::-1])
    return s.op("Transpose", s.g, perm=[int(i) for i in np.argsort(order)])


@gradient("Expand", 0)
def _(s: Site) -> str:
    return s.unbroadcast(s.g, s.y_shape, 0)


@gradient_each("Concat")
def _(s: Site, index: int) -> str:
    axis = s.attribute("axis") % len(s.y_shape)
    start = sum(s.shape(i)[axis] for i in range(index))
    return s.op("Slice", s.g, s.ints(start), s.ints(start + s.shape(index)[axis]), s.ints(axis))


@gradient("Split", 0)
def _(s: Site) -> str:
    parts = []
    for output, part in zip(s.node.outputs, s.gradients, strict=True):
        shape = s.graph.types[output].shape
        parts.append(part if part is not None else s.op("Expand", s.scalar(0), s.ints(*shape)))
    return s.op("Concat", *parts, axis=s.attribute("axis", 0))


@gradient("Slice", 0)
def _(s: Site) -> str:
    shape = s.shape()
    starts, ends = s.value(1).reshape(-1), s.value(2).reshape(-1)
    axes = [int(a) % len(shape) for a in s.value(3).reshape(-1)] if s.has(3) else [*range(len(starts))]
    steps = s.value(4).reshape(-1) if s.has(4) else np.ones(len(starts), np.int64)
    result = s.g
    low, high = [0] * len(shape), [0] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken = np.arange(shape[axis])[_slice(int(start), int(end), int(step))]
        if step == 1:
            low[axis] = int(taken[0]) if len(taken) else 0
            high[axis] = shape[axis] - low[axis] - len(taken)
            continue
        # each place takes its element of the gradient, or the zero that is appended behind it
        source = np.full(shape[axis], len(taken), np.int64)
        source[taken] = np.arange(len(taken))
        result = _pad(s, result, len(shape), axis, 1)
        result = s.op("Gather", result, s.builder.constant(source), axis=axis)
    if any(low) or any(high):
        result = s.op("Pad", result, s.ints(*low, *high), s.scalar(0))
    return result


def _slice(start: int, end: int, step: int) -> slice:
    """ONNX writes "to the very first element" as a large negative end, Python as None; both mean all that is left."""
    far = 2**31 - 1
    return slice(start, None if (step > 0 and end >= far) or (step < 0 and end < -far) else end, step)


def _pad(s: Site, tensor: str, rank: int, axis: int, behind: int) -> str:
    pads = [0] * (2 * rank)
    pads[rank + axis] = behind
    return s.op("Pad", tensor, s.ints(*pads), s.scalar(0))


@gradient("Pad", 0)
def _(s: Site) -> str:
    rank = len(s.shape())
    given = [int(p) for p in s.value(1).reshape(-1)]
    pads = [0] * (2 * rank)
    axes = [int(a) % rank for a in s.value(3).reshape(-1)] if s.has(3) else [*range(rank)]
    for position, axis in enumerate(axes):
        pads[axis], pads[rank + axis] = given[position], given[len(axes) + position]
    mode = s.attribute("mode", "constant")
    if mode == "constant":
        return s.op("Pad", s.g, s.ints(*(-p for p in pads)), s.scalar(0))
    if mode not in ("reflect", "edge", "wrap") or min(pads) < 0:
        s.refuse(f"padding mode {mode!r} with pads {pads}; pad with a constant")
    result, shape = s.g, list(s.y_shape)
    for axis in (a for a in range(rank) if pads[a] or pads[rank + a]):
        # where each element along this axis was copied from, as numpy pads
        source = np.pad(np.arange(s.shape()[axis]), (pads[axis], pads[rank + axis]), mode)
        shape[axis] = s.shape()[axis]
        result = scatter_slices(s, result, s.builder.constant(source), 1, axis, shape)
    return result


@gradient("Trilu", 0)
def _(s: Site) -> str:
    return s.op("Trilu", s.g, *([s.x(1)] if s.has(1) else []), upper=s.attribute("upper", 1))


@gradient("DepthToSpace", 0)
def _(s: Site) -> str:
    size = s.attribute("blocksize")
    if s.attribute("mode", "DCR") == "DCR":
        return s.op("SpaceToDepth", s.g, blocksize=size)
    batch, channels, height, width = s.shape()
    split = s.reshape(s.g, [batch, channels // size**2, height, size, width, size])
    return s.reshape(s.op("Transpose", split, perm=[0, 1, 3, 5, 2, 4]), s.shape())


@gradient("SpaceToDepth", 0)
def _(s: Site) -> str:
    return s.op("DepthToSpace", s.g, blocksize=s.attribute("blocksize"), mode="DCR")


@gradient("ReverseSequence", 0)
def _(s: Site) -> str:
    axes = {"batch_axis": s.attribute("batch_axis", 1), "time_axis": s.attribute("time_axis", 0)}
    return s.op("ReverseSequence", s.g, s.x(1), **axes)


@gradient("Tile", 0)
def _(s: Site) -> str:
    repeats = [int(r) for r in s.value(1).reshape(-1)]
    split = [n for pair in zip(repeats, s.shape(), strict=True) for n in pair]
    return s.total(s.reshape(s.g, split), [2 * i for i in range(len(repeats))], keepdims=0)
