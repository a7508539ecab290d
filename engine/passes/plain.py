"""Gradients of convolutions by the runtime's standard operators, for sizes that the blocked layout does not fit.

Strategy. dX of a depthwise convolution is one as well (its stride undone by zeros, written as products with matrices
of zeros and ones, which the runtime is faster on than on padding), and of a kernel of one element a product of
matrices; any other stays the ConvTranspose that it is. dW is a convolution with batch and channels swapped: the input
[C/g, g N, ...] slides under the filter dY [O, N, ...] in g groups, dilation and stride exchanged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..graph import FILTER_GRADIENT, OURS, Node
from .geometry import Geometry, geometry
from .program import Program
from .writer import Writer

#: The longest axis whose stride is undone by a matrix product; beyond, the transposed convolution is faster.
_MATRIX = 128


def expand(program: Program) -> bool:
    """Write out what is left of our own operators, and transposed convolutions where something else is faster."""
    nodes: list[Node] = []
    changed = False
    for node in program.nodes:
        mine = node.op == FILTER_GRADIENT or (node.op == "ConvTranspose" and node.outputs[0] not in program.exact)
        sizes = geometry(node, program.types) if mine else None
        if sizes is None:
            nodes.append(node)
            continue
        writer = Writer(program)
        done = _filter_gradient(writer, node, sizes) if node.domain == OURS else _input_gradient(writer, node, sizes)
        changed |= done
        nodes += writer.nodes if done else [node]
    program.nodes = nodes
    return changed


def _input_gradient(w: Writer, node: Node, z: Geometry) -> bool:
    g, filters = node.inputs[:2]
    if len(node.inputs) > 2 and node.inputs[2]:
        return False
    if z.pointwise and z.group == 1:
        # in one product for all places of a sample: w transposed times g
        places = math.prod(z.length)
        matrix = w.reshape(filters, (z.outputs, z.inputs))
        turned = w.op("Transpose", (matrix,), (z.inputs, z.outputs), perm=[1, 0])
        product = w.op("MatMul", (turned, w.reshape(g, (z.batch, z.outputs, places))), (z.batch, z.inputs, places))
        w.reshape(product, z.x_shape, node.outputs[0])
        return True
    before = [r - 1 - b for r, b in zip(z.reach, z.before, strict=True)]
    behind = [r - 1 - max(b, 0) for r, b in zip(z.reach, z.behind, strict=True)]
    strided = any(st > 1 for st in z.stride)
    if not z.depthwise or min(*before, *behind) < 0 or z.rank > 2 or (strided and max(z.positions) > _MATRIX):
        return False
    rank, axes = z.rank, [*range(2, 2 + z.rank)]
    if strided:
        g = _spread_out(w, g, z)
    arguments = (filters, w.ints(*[-1] * rank), w.ints(*[-(2**31)] * rank), w.ints(*axes), w.ints(*[-1] * rank))
    flipped = w.op("Slice", arguments, z.w_shape)
    behind = [e + max(-b, 0) for e, b in zip(behind, z.behind, strict=True)]
    w.op(
        "Conv", (g, flipped), z.x_shape, output=node.outputs[0], group=z.group, kernel_shape=list(z.kernel),
        strides=[1] * rank, dilations=list(z.dilation), pads=[*before, *behind],
    )  # fmt: skip
    return True


def _spread_out(w: Writer, g: str, z: Geometry) -> str:
    """stride - 1 zeros between neighbours: length (positions - 1) stride + 1 per axis."""
    shape = list(z.y_shape)
    for axis, (count, stride) in enumerate(zip(z.positions, z.stride, strict=True)):
        if stride == 1:
            continue
        places = np.zeros((count, (count - 1) * stride + 1), np.float32)
        places[np.arange(count), np.arange(count) * stride] = 1
        shape[2 + axis] = places.shape[1]
        if axis == z.rank - 1:
            g = w.op("MatMul", (g, w.constant(places)), tuple(shape))
        else:
            g = w.op("MatMul", (w.constant(np.ascontiguousarray(places.T)), g), tuple(shape))
    return g


def _filter_gradient(w: Writer, node: Node, z: Geometry) -> bool:
    x, g = node.inputs
    result = node.outputs[0]
    if z.group == 1 and z.pointwise:
        _pointwise(w, x, g, z, result)
        return True
    rank, order = z.rank, [1, 0, *range(2, 2 + z.rank)]
    channels = z.inputs // z.group
    groups = z.group
    if z.depthwise:
        # every channel of every sample is a group of its own; then the sum over the samples
        groups, channels, outputs = z.batch * z.inputs, 1, z.batch * z.inputs
        swapped = w.reshape(x, (1, groups, *z.length))
        filters = w.reshape(g, (groups, 1, *z.positions))
    else:
        outputs = z.outputs
        filters = w.op("Transpose", (g,), (outputs, z.batch, *z.positions), perm=order)
        if groups == 1:
            swapped = w.op("Transpose", (x,), (channels, z.batch, *z.length), perm=order)
        else:
            split = w.reshape(x, (z.batch, groups, channels, *z.length))
            turned = (channels, groups, z.batch, *z.length)
            split = w.op("Transpose", (split,), turned, perm=[2, 1, 0, *range(3, 3 + rank)])
            swapped = w.reshape(split, (channels, groups * z.batch, *z.length))
    # the last elements may be in no window; they would be read as one more tap
    extra = [-b // d if b < 0 else 0 for b, d in zip(z.behind, z.dilation, strict=True)]
    taps = tuple(k + e for k, e in zip(z.kernel, extra, strict=True))
    attributes: dict[str, Any] = {
        "group": groups, "strides": list(z.dilation), "dilations": list(z.stride),
        "kernel_shape": list(z.positions), "pads": [*z.before, *(max(b, 0) for b in z.behind)],
    }  # fmt: skip
    product = w.op("Conv", (swapped, filters), (channels if not z.depthwise else 1, outputs, *taps), **attributes)
    if any(extra):
        arguments = (product, w.ints(*[0] * rank), w.ints(*z.kernel), w.ints(*range(2, 2 + rank)))
        product = w.op("Slice", arguments, (channels if not z.depthwise else 1, outputs, *z.kernel))
    if z.depthwise:
        flat = w.reshape(product, (z.batch, z.inputs * math.prod(z.kernel)))
        total = w.op("ReduceSum", (flat, w.ints(0)), (z.inputs * math.prod(z.kernel),), keepdims=0)
        w.reshape(total, z.w_shape, result)
    else:
        w.op("Transpose", (product,), z.w_shape, output=result, perm=order)
    return True


def _pointwise(w: Writer, x: str, g: str, z: Geometry, result: str) -> None:
    places = math.prod(z.length)
    if z.batch > 1 and z.outputs * z.inputs >= (z.outputs + z.inputs) * places:
        # many weights, few places: one product over all samples beats a product per sample and their sum
        rows = []
        for tensor, channels in ((g, z.outputs), (x, z.inputs)):
            flat = w.reshape(tensor, (z.batch, channels, places))
            turned = w.op("Transpose", (flat,), (channels, z.batch, places), perm=[1, 0, 2])
            rows.append(w.reshape(turned, (channels, z.batch * places)))
        product = w.op("Gemm", (rows[0], rows[1]), (z.outputs, z.inputs), transB=1)
    else:
        flat = w.reshape(x, (z.batch, z.inputs, places))
        turned = w.op("Transpose", (flat,), (z.batch, places, z.inputs), perm=[0, 2, 1])
        each = (z.batch, z.outputs, z.inputs)
        product = w.op("MatMul", (w.reshape(g, (z.batch, z.outputs, places)), turned), each)
        product = w.op("ReduceSum", (product, w.ints(0)), (z.outputs, z.inputs), keepdims=0)
    w.reshape(product, z.w_shape, result)
