"""The three products of a convolution in the blocked layout.

y: the runtime's own operator. dx: the same operator with the filter turned; a stride s is undone by s convolutions
per axis, each with the taps that meet its places, whose results interleave (sub-pixel convolution, Shi 2016, read
backwards). dw of a depthwise convolution: each channel of each sample is a group whose filter is dy, and dy's blocked
form is a blocked filter as it stands.

dw of a dense convolution: dy as the filter again, with the samples as its input channels. The input is x with its
channels last, read as an image whose columns are (column of x, channel): then a step of one column of x is a dilation
by the number of channels, the results of one row are (tap, input channel), and one convolution with many columns and
blocks of output channels gives all of dw, without unfolding x.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..blocked import DOMAIN
from ..contrib import MICROSOFT
from ..graph import Node
from . import filters
from .geometry import Geometry, geometry
from .layout import Layout

#: Places of a sample from which a product for each sample is faster than one over all places, channels last. Measured.
_MANY = 256
_ZERO = np.zeros((), np.float32)


def two_axes(z: Geometry) -> Geometry:
    """The same with two spatial axes."""
    if z.rank == 2:
        return z
    return replace(
        z, length=(1, *z.length), positions=(1, *z.positions), kernel=(1, *z.kernel), stride=(1, *z.stride),
        dilation=(1, *z.dilation), before=(0, *z.before), behind=(0, *z.behind),
    )  # fmt: skip


def form_of(lay: Layout, z: Geometry) -> str:
    """Which operator of the runtime these sizes are for: "depthwise", "grouped", "dense", "thin"; "" for none."""
    if z.rank > 2:
        return ""
    if z.depthwise:
        return "depthwise" if lay.fits(z.inputs) else ""
    if z.group > 1:
        whole = (z.inputs // z.group) % lay.block == 0 and (z.outputs // z.group) % lay.block == 0
        return "grouped" if whole else ""
    if not lay.fits(z.outputs):
        return ""
    if lay.fits(z.inputs):
        return "dense"
    return "thin" if z.inputs < lay.block else ""


def convolution(lay: Layout, node: Node) -> bool:
    """y."""
    found = geometry(node, lay.program.types)
    if found is None:
        return False
    z = two_axes(found)
    form = form_of(lay, z)
    if not form or min(z.before) < 0:
        return False
    x, w = node.inputs[:2]
    if form == "thin":
        source = lay.reshape(lay.plainly(x), lay.four(x))
        chosen = filters.thin(lay, lay.plainly(w), z)
    else:
        source = lay.in_blocks(x)
        write = filters.depthwise if form == "depthwise" else filters.dense
        chosen = write(lay, lay.plainly(w), z)
    y = _convolve(
        lay, source, chosen, _bias(lay, node, z.outputs), (z.batch, lay.up(z.outputs), *z.positions),
        group=_groups(lay, z), kernel_shape=list(z.kernel), strides=list(z.stride), dilations=list(z.dilation),
        pads=[*z.before, *(max(b, 0) for b in z.behind)],
    )  # fmt: skip
    return lay.result(node, y)


def _groups(lay: Layout, z: Geometry) -> int:
    return lay.up(z.inputs) if z.depthwise else z.group


def _bias(lay: Layout, node: Node, channels: int) -> str:
    if len(node.inputs) < 3 or not node.inputs[2]:
        return ""
    return lay.vector(lay.plainly(node.inputs[2]), channels)


def _convolve(lay: Layout, x: str, w: str, bias: str, shape: tuple[int, ...], **attributes: Any) -> str:
    arguments = (x, w, bias) if bias else (x, w)
    return lay.op("Conv", arguments, shape, DOMAIN, **attributes)


def input_gradient(lay: Layout, node: Node) -> bool:
    """dx; a transposed convolution of a model as well, then with a bias."""
    found = geometry(node, lay.program.types)
    if found is None:
        return False
    z = two_axes(found)
    form = form_of(lay, z)
    phases = [_phases(z, axis) for axis in range(2)]
    strided = max(z.stride) > 1
    biased = len(node.inputs) > 2 and bool(node.inputs[2])
    if form in ("", "thin") or (strided and max(z.dilation) > 1):
        return False
    if any(p.taps and min(p.before, p.behind) < 0 for axis in phases for p in axis):
        return False
    if biased and not all(p.taps for axis in phases for p in axis):
        return False
    g, w = lay.in_blocks(node.inputs[0]), lay.plainly(node.inputs[1])
    bias = _bias(lay, node, z.inputs)
    write = filters.turned_depthwise if z.depthwise else filters.turned
    counts = tuple(-(-n // s) for n, s in zip(z.length, z.stride, strict=True))
    shape = (z.batch, lay.up(z.inputs), *counts)
    rows: list[list[str]] = []
    for upper in phases[0]:
        rows.append([])
        for lower in phases[1]:
            if not (upper.taps and lower.taps):
                rows[-1].append("")
                continue
            taps = [a * z.kernel[1] + b for a in upper.taps for b in lower.taps]
            kernel = (len(upper.taps), len(lower.taps))
            part = _convolve(
                lay, g, write(lay, w, z, taps, kernel), bias, shape, group=_groups(lay, z), kernel_shape=list(kernel),
                strides=[1, 1], dilations=list(z.dilation),
                pads=[upper.before, lower.before, upper.behind, lower.behind],
            )  # fmt: skip
            rows[-1].append(part)
    if not strided:
        return lay.result(node, rows[0][0])
    lines = z.batch * (lay.up(z.inputs) // lay.block)
    whole = interleaved(lay, rows, lines, counts, z.stride, (0, 0), z.length)
    return lay.result(node, lay.reshape(whole, (z.batch, lay.up(z.inputs), *z.length)))


class _Phase:
    """The places of x that are `first`, `first` + stride, ... along an axis: the taps that meet them, and the pads."""

    def __init__(self, z: Geometry, axis: int, first: int) -> None:
        stride, kernel, count = z.stride[axis], z.kernel[axis], -(-z.length[axis] // z.stride[axis])
        if stride == 1:
            self.taps = [*range(kernel)][::-1]
            self.before = z.reach[axis] - 1 - z.before[axis]
            self.behind = z.reach[axis] - 1 - z.behind[axis]
            return
        shifted = first + z.before[axis]
        self.taps = [k for k in range(kernel) if k % stride == shifted % stride][::-1]
        self.before = len(self.taps) - 1 - shifted // stride
        self.behind = count + shifted // stride - z.positions[axis]


def _phases(z: Geometry, axis: int) -> list[_Phase]:
    return [_Phase(z, axis, first) for first in range(z.stride[axis])]


def interleaved(
    lay: Layout, rows: list[list[str]], lines: int, counts: tuple[int, ...], stride: tuple[int, ...],
    first: tuple[int, ...], length: tuple[int, ...],
) -> str:  # fmt: skip
    """[lines, length, B] from its phases of [lines, counts, B], those that nothing reaches ("") being zero.

    `first` places of the phases put together come before the result.
    """
    height, width = counts
    places, block = lines * height * width, lay.block
    zero = ""
    if any("" in row for row in rows):
        zero = lay.op("Expand", (lay.constant(_ZERO), lay.ints(places, block)), (places, block))
    stacked = []
    for row in rows:
        parts = [lay.reshape(part, (places, block)) if part else zero for part in row]
        joined = parts[0]
        if len(parts) > 1:
            joined = lay.op("Concat", tuple(parts), (places, len(parts) * block), axis=1)
        stacked.append(lay.reshape(joined, (lines * height, width * len(parts) * block)))
    down, across = stride
    whole = stacked[0]
    if down > 1:
        whole = lay.op("Concat", tuple(stacked), (lines * height, down * across * width * block), axis=1)
    if (height * down, width * across) != tuple(length):
        whole = lay.reshape(whole, (lines, height * down, width * across * block))
        starts = (first[0], first[1] * block)
        ends = (first[0] + length[0], (first[1] + length[1]) * block)
        arguments = (whole, lay.ints(*starts), lay.ints(*ends), lay.ints(1, 2))
        whole = lay.op("Slice", arguments, (lines, length[0], length[1] * block))
    return lay.reshape(whole, (lines, *length, block))


def filter_gradient(lay: Layout, node: Node) -> bool:
    """dw."""
    found = geometry(node, lay.program.types)
    if found is None:
        return False
    z = two_axes(found)
    form = form_of(lay, z)
    if min(z.before) < 0:
        return False
    if form == "depthwise":
        _depthwise_filter(lay, node, z)
        return True
    if z.group > 1 or not lay.fits(z.outputs):
        return False
    if max(z.kernel) == 1 and not any(z.before):
        _pointwise_filter(lay, node, z)
        return True
    _dense_filter(lay, node, z)
    return True


def _depthwise_filter(lay: Layout, node: Node, z: Geometry) -> None:
    x, g = lay.in_blocks(node.inputs[0]), lay.in_blocks(node.inputs[1])
    groups, taps = z.batch * lay.up(z.inputs), math.prod(z.kernel)
    # elements at the end that are in no window would be read as more taps
    seen = tuple(k + (-b // d if b < 0 else 0) for k, b, d in zip(z.kernel, z.behind, z.dilation, strict=True))
    product = _convolve(
        lay, lay.reshape(x, (1, groups, *z.length)), lay.reshape(g, (groups, 1, *z.positions)), "", (1, groups, *seen),
        group=groups, kernel_shape=list(z.positions), strides=list(z.dilation), dilations=list(z.stride),
        pads=[*z.before, *(max(b, 0) for b in z.behind)],
    )  # fmt: skip
    if seen != z.kernel:
        blocks, ends = groups // lay.block, (z.kernel[0], z.kernel[1] * lay.block)
        product = lay.reshape(product, (blocks, seen[0], seen[1] * lay.block))
        product = lay.op("Slice", (product, lay.ints(0, 0), lay.ints(*ends), lay.ints(1, 2)), (blocks, *ends))
    flat = lay.reshape(product, (z.batch, lay.up(z.inputs) * taps))
    total = lay.op("ReduceSum", (flat, lay.ints(0)), (lay.up(z.inputs) * taps,), keepdims=0)
    _hand_out(lay, node, total, z.outputs, taps)


def _hand_out(lay: Layout, node: Node, blocks: str, channels: int, columns: int) -> None:
    """[C/B, columns, B] as the result of the node, which has C rows of `columns`."""
    wide = lay.reshape(blocks, (1, lay.up(channels), 1, columns))
    rows = lay.op("ReorderOutput", (wide,), (1, channels, 1, columns), DOMAIN, channels=channels)
    lay.plain_result(node, rows)


def _pointwise_filter(lay: Layout, node: Node, z: Geometry) -> None:
    """One product of matrices over all places of all samples; of many places, one for each sample, and their sum."""
    places = math.prod(z.positions)
    if places >= _MANY and max(z.stride) == 1 and z.positions == z.length:
        each = (z.batch, z.outputs, z.inputs)
        rows = tuple(
            lay.reshape(lay.plainly(tensor), (z.batch, channels, places))
            for tensor, channels in ((node.inputs[1], z.outputs), (node.inputs[0], z.inputs))
        )
        product = lay.op("FusedMatMul", rows, each, MICROSOFT, transB=1)
        lay.plain_result(node, lay.op("ReduceSum", (product, lay.ints(0)), each[1:], keepdims=0))
        return
    x, g = lay.channels_last(node.inputs[0]), lay.channels_last(node.inputs[1])
    if max(z.stride) > 1:
        ends = [(p - 1) * s + 1 for p, s in zip(z.positions, z.stride, strict=True)]
        arguments = (x, lay.ints(0, 0), lay.ints(*ends), lay.ints(1, 2), lay.ints(*z.stride))
        x = lay.op("Slice", arguments, (z.batch, *z.positions, z.inputs))
    elif z.positions != z.length:
        x = lay.pad(x, (0,) * 5 + (z.positions[0] - z.length[0], z.positions[1] - z.length[1], 0))
    places = z.batch * math.prod(z.positions)
    rows = (lay.reshape(g, (places, z.outputs)), lay.reshape(x, (places, z.inputs)))
    product = lay.op("Gemm", rows, (z.outputs, z.inputs), transA=1)
    lay.plain_result(node, product)


def _dense_filter(lay: Layout, node: Node, z: Geometry) -> None:
    """See above. The operator takes fewer than a block of input channels, here samples, at once: the rest adds up.

    One axis is taken as rows: pads and dilations of rows cost nothing. Taps with dilated columns are done one by one.
    """
    x, g = lay.channels_last(node.inputs[0]), lay.in_blocks(node.inputs[1])
    if z.length[0] == z.kernel[0] == z.positions[0] == 1:
        z = _turned_axes(z)
        x = lay.reshape(x, (z.batch, *z.length, z.inputs))
    outer, places, taps = lay.up(z.outputs) // lay.block, math.prod(z.positions), math.prod(z.kernel)
    (top, left), bottom = z.before, z.behind[0]
    height, rows = z.length[0] + min(bottom, 0), z.kernel[0]
    together = z.kernel[1] if z.dilation[1] == 1 else 1
    parts = -(-z.batch // (lay.block - 1))
    each = -(-z.batch // parts)
    products = [""] * (z.kernel[1] // together)
    for first in range(0, z.batch, each):
        count = min(each, z.batch - first)
        rest = z.batch - first - count
        blocks = lay.reshape(g, (z.batch, outer, places, lay.block))
        if count < z.batch:
            limits = (lay.ints(first), lay.ints(first + count), lay.ints(0))
            blocks = lay.op("Slice", (blocks, *limits), (count, outer, places, lay.block))
        blocks = lay.reshape(lay.transpose(blocks, 1, 0, 2, 3), (outer * lay.block, count, *z.positions))
        for part, before in enumerate(products):
            # the columns that the taps of this part look at, from the first to the last
            skipped = part * z.dilation[1]
            width = (z.positions[1] - 1) * z.stride[1] + together
            behind = width - (z.length[1] + left - skipped)
            image = lay.pad(x, (-first, 0, left - skipped, 0, -rest, min(bottom, 0), behind, 0))
            image = lay.reshape(image, (1, count, height, width * z.inputs))
            products[part] = lay.op(
                "Conv", (image, blocks, *(("", before) if before else ())),
                (1, outer * lay.block, rows, together * z.inputs), DOMAIN,
                kernel_shape=list(z.positions), strides=[z.dilation[0], 1],
                dilations=[z.stride[0], z.stride[1] * z.inputs], pads=[top, 0, max(bottom, 0), 0], group=1,
            )  # fmt: skip
    product = products[0]
    if len(products) > 1:
        lines = (outer * rows, z.inputs * lay.block)
        product = lay.op(
            "Concat", tuple(lay.reshape(p, lines) for p in products), (lines[0], len(products) * lines[1]), axis=1
        )
    flat = lay.exchanged(lay.reshape(product, (outer, taps * z.inputs, lay.block)), taps, z.inputs)
    _hand_out(lay, node, flat, z.outputs, z.inputs * taps)


def _turned_axes(z: Geometry) -> Geometry:
    """Rows and columns exchanged."""
    return replace(
        z, length=z.length[::-1], positions=z.positions[::-1], kernel=z.kernel[::-1], stride=z.stride[::-1],
        dilation=z.dilation[::-1], before=z.before[::-1], behind=z.behind[::-1],
    )  # fmt: skip
