"""Filters in the layouts of the blocked convolutions, from the layout of the standard, [O, I, taps].

`dense`: [O/B, I/B, taps, B of I, B of O]. `thin` (few input channels, read in the standard layout): [O/B, I, taps, B].
`depthwise`: [C/B, taps, B]. `turned`: for dX, input and output channels exchanged and the taps that are asked for, in
order: the blocks of the dense form are transposed one by one (which is what the runtime's ReorderInput does to an
image of B places and B channels) and then gathered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..blocked import DOMAIN
from .geometry import Geometry
from .layout import Layout


def _blocks_of_outputs(lay: Layout, w: str, rows: int, columns: int) -> str:
    """[rows, columns] as [rows/B, columns, B], rows filled up."""
    full = lay.up(rows)
    flat = lay.reshape(w, (rows, columns))
    if rows % 4:
        flat, rows = lay.pad(flat, (0, 0, full - rows, 0)), full
    return lay.op("ReorderInput", (lay.reshape(flat, (1, rows, 1, columns)),), (1, full, 1, columns), DOMAIN)


def thin(lay: Layout, w: str, z: Geometry) -> str:
    """The filter of a convolution that reads its input in the standard layout."""

    def write() -> str:
        made = _blocks_of_outputs(lay, w, z.outputs, z.inputs * math.prod(z.kernel))
        return lay.reshape(made, (lay.up(z.outputs), z.inputs, *z.kernel))

    return lay.once("thin", w, write=write)


def depthwise(lay: Layout, w: str, z: Geometry) -> str:
    """The filter of a depthwise convolution."""

    def write() -> str:
        made = _blocks_of_outputs(lay, w, z.outputs, math.prod(z.kernel))
        return lay.reshape(made, (lay.up(z.outputs), 1, *z.kernel))

    return lay.once("depthwise", w, write=write)


def dense(lay: Layout, w: str, z: Geometry) -> str:
    """The filter of a convolution over blocks, grouped or not."""

    def write() -> str:
        taps, block = math.prod(z.kernel), lay.block
        inner, full = z.inputs // z.group, lay.up(z.inputs // z.group)
        flat = lay.reshape(w, (z.outputs, inner, taps))
        flat = lay.pad(flat, (0, 0, 0, 0, full - inner, 0))
        made = _blocks_of_outputs(lay, flat, z.outputs, full * taps)
        outer = lay.up(z.outputs)
        if taps > 1:
            made = lay.reshape(made, (outer // block * full // block, block * taps, block))
            made = lay.exchanged(made, block, taps)
        return lay.reshape(made, (outer, full, *z.kernel))

    return lay.once("dense", w, write=write)


def turned(lay: Layout, w: str, z: Geometry, taps: Sequence[int], kernel: tuple[int, ...]) -> str:
    """The filter from y's channels to x's with some taps (flat numbers) in this order, as a kernel of this shape."""
    block, count = lay.block, math.prod(z.kernel)

    def transposed() -> str:
        forward = dense(lay, w, z)
        blocks = math.prod(lay.program.types[forward].shape) // block**2
        made = lay.op(
            "ReorderInput", (lay.reshape(forward, (blocks, block, 1, block)),), (blocks, block, 1, block), DOMAIN
        )
        return lay.reshape(made, (blocks, block * block))

    def write() -> str:
        each_out, each_in = lay.up(z.outputs) // block // z.group, lay.up(z.inputs // z.group) // block
        order = [
            ((group * each_out + o) * each_in + i) * count + tap
            for group in range(z.group) for i in range(each_in) for o in range(each_out) for tap in taps
        ]  # fmt: skip
        made = lay.once("transposed", w, write=transposed)
        if order != [*range(lay.program.types[made].shape[0])]:
            indices = lay.constant(np.array(order, np.int64))
            made = lay.op("Gather", (made, indices), (len(order), block * block), axis=0)
        return lay.reshape(made, (lay.up(z.inputs), lay.up(z.outputs) // z.group, *kernel))

    return lay.once(f"turned {[*taps]}", w, write=write)


def turned_depthwise(lay: Layout, w: str, z: Geometry, taps: Sequence[int], kernel: tuple[int, ...]) -> str:
    """The depthwise filter with some taps in this order."""

    def write() -> str:
        blocks, count = lay.up(z.inputs) // lay.block, math.prod(z.kernel)
        made = lay.reshape(depthwise(lay, w, z), (blocks, count, lay.block))
        if [*taps] != [*range(count)]:
            indices = lay.constant(np.array(taps, np.int64))
            made = lay.op("Gather", (made, indices), (blocks, len(taps), lay.block), axis=1)
        return lay.reshape(made, (lay.up(z.inputs), 1, *kernel))

    return lay.once(f"turned depthwise {[*taps]}", w, write=write)
