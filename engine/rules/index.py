"""Operators that pick elements by index: the gradient is added where they were picked, and picked where they went.

An element that is picked several times receives the sum. Indices may be known at run time only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..graph import Array
from .table import Site, gradient


def _zeros(s: Site, shape: Sequence[int]) -> str:
    return s.op("Expand", s.scalar(0), s.ints(*shape))


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
    return scatter_slices(s, s.g, s.x(1), len(s.shape(1)), axis, s.shape())


def _consecutive(positions: Array) -> bool:
    return bool(np.all(np.diff(positions) == 1))


def scatter_slices(s: Site, g: str, positions: str, index_rank: int, axis: int, shape: Sequence[int]) -> str:
    """Add the slices of `g` that were taken at `positions` of an axis back into a tensor of this shape."""
    rank = len(shape) - 1 + index_rank
    front = g
    if axis:
        order = [*range(axis, axis + index_rank), *range(axis), *range(axis + index_rank, rank)]
        front = s.op("Transpose", g, perm=order)
    rows = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    zeros = _zeros(s, rows)
    indices = s.op("Unsqueeze", s.op("Cast", positions, to=7), s.ints(index_rank))
    result = s.op("ScatterND", zeros, indices, front, reduction="add")
    if axis:
        result = s.op("Transpose", result, perm=[*range(1, axis + 1), 0, *range(axis + 1, len(shape))])
    return result


@gradient("GatherElements", 0)
def _(s: Site) -> str:
    zeros = _zeros(s, s.shape())
    return s.op("ScatterElements", zeros, s.x(1), s.g, axis=s.attribute("axis", 0), reduction="add")


@gradient("GatherND", 0)
def _(s: Site) -> str:
    return s.op("ScatterND", _zeros(s, s.shape()), _whole_indices(s), s.g, reduction="add")


def _whole_indices(s: Site) -> str:
    """The indices of GatherND with those of its batch axes in front."""
    count = s.attribute("batch_dims", 0)
    if not count:
        return s.x(1)
    lead = s.shape(1)[:-1]
    grids = np.meshgrid(*(np.arange(n) for n in lead), indexing="ij")
    batch = s.builder.constant(np.stack(grids[:count], -1).astype(np.int64))
    return s.op("Concat", batch, s.x(1), axis=-1)


def _overwrites(s: Site) -> bool:
    """Whether an update takes the place of what was there, rather than being added. Refuses what does neither."""
    reduction = s.attribute("reduction", "none")
    if reduction not in ("none", "add"):
        s.refuse(f"reduction {reduction!r}; only replacing and adding are differentiated")
    return bool(reduction == "none")


@gradient("ScatterElements", 0)
def _(s: Site) -> str:
    if not _overwrites(s):
        return s.g
    return s.op("ScatterElements", s.g, s.x(1), _zeros(s, s.shape(1)), axis=s.attribute("axis", 0))


@gradient("ScatterElements", 2)
def _(s: Site) -> str:
    _overwrites(s)
    return s.op("GatherElements", s.g, s.x(1), axis=s.attribute("axis", 0))


@gradient("ScatterND", 0)
def _(s: Site) -> str:
    return s.op("ScatterND", s.g, s.x(1), _zeros(s, s.shape(2))) if _overwrites(s) else s.g


@gradient("ScatterND", 2)
def _(s: Site) -> str:
    _overwrites(s)
    return s.op("GatherND", s.g, s.x(1))


@gradient("TopK", 0)
def _(s: Site) -> str:
    given = {n: s.attribute(n, d) for n, d in (("axis", -1), ("largest", 1), ("sorted", 1))}
    places = s.op("TopK", s.x(0), s.x(1), outputs=2, **given) + ".1"
    return s.op("ScatterElements", _zeros(s, s.shape()), places, s.g, axis=given["axis"], reduction="add")


@gradient("Compress", 0)
def _(s: Site) -> str:
    chosen = np.flatnonzero(s.value(1))
    axis = s.attribute("axis", None)
    if axis is None:
        flat = s.op("ScatterND", _zeros(s, [math.prod(s.shape())]), s.builder.constant(chosen[:, None]), s.g)
        return s.reshape(flat, s.shape())
    axis %= len(s.shape())
    return scatter_slices(s, s.g, s.builder.constant(chosen), 1, axis, s.shape())
