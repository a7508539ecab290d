"""Operators that move elements: the gradient moves them back, and adds where an element was used more than once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import Array
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
        result = _scatter(s, result, s.builder.constant(source), 1, axis, shape)
    return result


@gradient("Gather", 0)
def _(s: Site) -> str:
    axis = s.attribute("axis", 0) % len(s.shape())
    positions = s.graph.constants.get(s.x(1))
    if positions is not None and positions.size and _consecutive(positions.reshape(-1) % s.shape()[axis]):
        # a slice: nothing is added twice
        shape = list(s.shape())
        first, shape[axis] = int(positions.reshape(-1)[0]) % shape[axis], positions.size
        pads = [0] * (2 * len(shape))
        pads[axis], pads[len(shape) + axis] = first, s.shape()[axis] - first - positions.size
        return s.op("Pad", s.reshape(s.g, shape), s.ints(*pads), s.scalar(0))
    return _scatter(s, s.g, s.x(1), len(s.shape(1)), axis, s.shape())


def _consecutive(positions: Array) -> bool:
    return bool(np.all(np.diff(positions) == 1))


def _scatter(s: Site, g: str, positions: str, index_rank: int, axis: int, shape: Sequence[int]) -> str:
    """Add the slices of `g` that were taken at `positions` of an axis back into a tensor of this shape."""
    rank = len(shape) - 1 + index_rank
    front = g
    if axis:
        order = [*range(axis, axis + index_rank), *range(axis), *range(axis + index_rank, rank)]
        front = s.op("Transpose", g, perm=order)
    rows = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    zeros = s.op("Expand", s.scalar(0), s.ints(*rows))
    indices = s.op("Unsqueeze", s.op("Cast", positions, to=7), s.ints(index_rank))
    result = s.op("ScatterND", zeros, indices, front, reduction="add")
    if axis:
        result = s.op("Transpose", result, perm=[*range(1, axis + 1), 0, *range(axis + 1, len(shape))])
    return result


@gradient("Tile", 0)
def _(s: Site) -> str:
    repeats = [int(r) for r in s.value(1).reshape(-1)]
    split = [n for pair in zip(repeats, s.shape(), strict=True) for n in pair]
    return s.total(s.reshape(s.g, split), [2 * i for i in range(len(repeats))], keepdims=0)
