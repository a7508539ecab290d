"""Operators other than convolutions in the blocked layout.

Element by element the layout does not matter. A value per channel is a depthwise convolution with one tap: a scale is
its filter, a shift its bias, and both are one pass over the memory, so a frozen batch normalization is one such
convolution. A sum over all places is the runtime's global average times their number. Joining and cutting along
the channels moves whole blocks where the borders fit.
"""

from __future__ import annotations

import math

import numpy as np

from ..blocked import DOMAIN
from ..graph import Node
from .layout import Layout

#: Finite for whatever fills the last block.
_FINITE = frozenset(
    {
        *("Add", "Sub", "Mul", "Sum", "Min", "Max", "Neg", "Abs", "Sign", "Exp", "Erf", "Gelu", "Softplus", "Elu"),
        *("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Where", "Cast", "Not"),
        *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Mean", "PRelu", "ThresholdedRelu"),
    }
)
#: Not finite for 0: only where no block is filled up.
_PARTIAL = frozenset({"Div", "Log", "Sqrt", "Reciprocal", "Pow"})
ELEMENTWISE = _FINITE | _PARTIAL


def elementwise(lay: Layout, node: Node) -> bool:
    """Follows when a full operand is in blocks already."""
    result = lay.program.types[node.outputs[0]]
    if node.domain or len(node.outputs) != 1 or len(result.shape) not in (3, 4):
        return False
    if result.dtype not in ("float32", "bool"):
        return False
    full = [n for n in node.inputs if n and lay.program.types[n].shape == result.shape]
    if not any(n in lay.blocked for n in full):
        return False
    if any(lay.program.types[n].dtype not in ("float32", "bool") for n in full):
        return False
    channels = result.shape[1]
    if node.op in _PARTIAL and channels % lay.block:
        return False
    others = [n for n in node.inputs if n and n not in full]
    vectors = [n for n in others if lay.program.types[n].size != 1]
    four = lay.four(node.outputs[0])
    shape = (four[0], lay.up(channels), *four[2:])
    if not vectors:
        arguments = tuple(lay.in_blocks(n) if n in full else lay.plainly(n) for n in node.inputs)
        made = lay.op(node.op, arguments, shape, dtype=result.dtype, **node.attributes)
        return lay.result(node, made)
    return _with_vector(lay, node, full, vectors, shape)


def _with_vector(lay: Layout, node: Node, full: list[str], vectors: list[str], shape: tuple[int, ...]) -> bool:
    """One full operand, and one with a value per channel, or per sample and channel."""
    if len(node.inputs) != 2 or len(full) != 1 or len(vectors) != 1 or node.op not in ("Add", "Sub", "Mul"):
        return False
    if node.op == "Sub" and node.inputs[0] != full[0]:
        return False
    rank = len(lay.program.types[full[0]].shape)
    small = lay.program.types[vectors[0]].shape
    small = (1,) * (rank - len(small)) + small
    batch, channels = lay.four(full[0])[:2]
    if small[1] != channels or math.prod(small[2:]) != 1 or small[0] not in (1, batch):
        return False
    big = lay.in_blocks(full[0])
    count = small[0] * channels
    if small[0] == 1:
        values = lay.vector(lay.plainly(vectors[0]), channels)
    elif channels % lay.block == 0:
        values = lay.reshape(lay.plainly(vectors[0]), (count,))
    else:
        more = lay.up(channels) - channels
        values = lay.pad(lay.reshape(lay.plainly(vectors[0]), (batch, channels)), (0, 0, 0, more))
    wide = small[0] * lay.up(channels)
    if node.op == "Sub":
        values = lay.op("Neg", (values,), lay.program.types[values].shape)
    image = lay.reshape(big, (shape[0] // small[0], wide, *shape[2:]))
    made = scaled(lay, image, values if node.op == "Mul" else "", "" if node.op == "Mul" else values)
    return lay.result(node, lay.reshape(made, shape))


def scaled(lay: Layout, image: str, scale: str, shift: str) -> str:
    """image * scale + shift, a value per channel each ("" for none)."""
    shape = lay.program.types[image].shape
    wide = shape[1]
    filters = lay.reshape(scale, (wide, 1, 1, 1)) if scale else lay.constant(np.ones((wide, 1, 1, 1), np.float32))
    arguments = (image, filters, lay.reshape(shift, (wide,))) if shift else (image, filters)
    return lay.op("Conv", arguments, shape, DOMAIN, group=wide, kernel_shape=[1, 1])


def batch_normalization(lay: Layout, node: Node) -> bool:
    """With frozen statistics: a scale and a shift per channel, in the same two roundings wherever it stands."""
    if (
        not lay.float(node.inputs[0])
        or len([o for o in node.outputs if o]) != 1
        or node.attributes.get("training_mode", 0)
    ):
        return False
    channels = lay.four(node.inputs[0])[1]
    if not lay.fits(channels):
        return False
    image = lay.in_blocks(node.inputs[0])
    scale, bias, mean, variance = (lay.plainly(n) for n in node.inputs[1:5])
    shape = (channels,)
    epsilon = lay.constant(np.array(node.attributes.get("epsilon", 1e-5), np.float32))
    deviation = lay.op("Sqrt", (lay.op("Add", (variance, epsilon), shape),), shape)
    factor = lay.op("Div", (scale, deviation), shape)
    shift = lay.op("Sub", (bias, lay.op("Mul", (mean, factor), shape)), shape)
    return lay.result(node, scaled(lay, image, lay.vector(factor, channels), lay.vector(shift, channels)))


def total(lay: Layout, node: Node) -> bool:
    """ReduceSum and ReduceMean over all places, and over the samples too; GlobalAveragePool."""
    x = node.inputs[0]
    if not lay.float(x) or not lay.fits(lay.four(x)[1]):
        return False
    shape = lay.program.types[x].shape
    axes = [*range(2, len(shape))]
    if node.op != "GlobalAveragePool":
        given = lay.program.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if given is None:
            return False
        axes = sorted(int(a) % len(shape) for a in given.reshape(-1))
    batch, channels, *space = lay.four(x)
    if axes not in ([*range(2, len(shape))], [0, *range(2, len(shape))]):
        return False
    pooled = lay.op("GlobalAveragePool", (lay.in_blocks(x),), (batch, lay.up(channels), 1, 1), DOMAIN)
    pooled = lay.op("ReorderOutput", (pooled,), (batch, channels, 1, 1), DOMAIN, channels=channels)
    value = lay.reshape(pooled, (batch, channels))
    if 0 in axes:
        value = lay.op("ReduceSum", (value, lay.ints(0)), (channels,), keepdims=0)
    factor = 1.0 if node.op != "ReduceSum" else float(math.prod(space))
    factor /= batch if node.op == "ReduceMean" and 0 in axes else 1
    if factor != 1.0:
        value = lay.op("Mul", (value, lay.constant(np.array(factor, np.float32))), lay.program.types[value].shape)
    return lay.plain_result(node, value)


def pool(lay: Layout, node: Node) -> bool:
    """MaxPool and AveragePool. The maximum is the same in every layout, so it follows; the average is an anchor."""
    x = node.inputs[0]
    if not lay.float(x) or len(lay.program.types[x].shape) != 4 or len([o for o in node.outputs if o]) != 1:
        return False
    channels = lay.four(x)[1]
    if not lay.fits(channels) or (node.op == "MaxPool" and x not in lay.blocked):
        return False
    y = lay.four(node.outputs[0])
    kept = {k: v for k, v in node.attributes.items() if k != "storage_order"}
    made = lay.op(node.op, (lay.in_blocks(x),), (y[0], lay.up(channels), *y[2:]), DOMAIN, **kept)
    return lay.result(node, made)


def expand(lay: Layout, node: Node) -> bool:
    """A value per sample and channel spread over all places, as the gradient of a global average is."""
    small, big = lay.program.types[node.inputs[0]], lay.program.types[node.outputs[0]]
    if big.dtype != "float32" or len(big.shape) not in (3, 4) or not lay.fits(big.shape[1]):
        return False
    if small.shape != (*big.shape[:2], *[1] * (len(big.shape) - 2)) or node.inputs[0] in lay.blocked:
        return False
    batch, channels, *space = lay.four(node.outputs[0])
    values = lay.reshape(lay.plainly(node.inputs[0]), (batch, channels))
    values = lay.pad(values, (0, 0, 0, lay.up(channels) - channels))
    blocks, places = lay.up(channels) // lay.block, math.prod(space)
    shape = (batch, blocks, places, lay.block)
    spread = lay.op("Expand", (lay.reshape(values, (batch, blocks, 1, lay.block)), lay.ints(*shape)), shape)
    return lay.result(node, lay.reshape(spread, (batch, lay.up(channels), *space)))


def concat(lay: Layout, node: Node) -> bool:
    """Along the channels, when every part is whole blocks and one is in blocks already."""
    if (
        not all(lay.float(n) for n in node.inputs)
        or node.attributes["axis"] % len(lay.program.types[node.inputs[0]].shape) != 1
    ):
        return False
    if any(lay.four(n)[1] % lay.block for n in node.inputs) or not any(n in lay.blocked for n in node.inputs):
        return False
    parts = tuple(lay.in_blocks(n) for n in node.inputs)
    return lay.result(node, lay.op("Concat", parts, lay.four(node.outputs[0]), axis=1))


def cut(lay: Layout, node: Node) -> bool:
    """Slice along the channels at borders of blocks."""
    x = node.inputs[0]
    if not lay.float(x) or x not in lay.blocked or len(node.inputs) < 4:
        return False
    values = [lay.program.constants.get(n) for n in node.inputs[1:] if n]
    if any(v is None or v.size != 1 for v in values):
        return False
    start, end, axis, *step = (int(v.reshape(-1)[0]) for v in values if v is not None)
    channels = lay.four(x)[1]
    start, end = (max(min(n + channels if n < 0 else n, channels), 0) for n in (start, end))
    if axis % len(lay.program.types[x].shape) != 1 or (step and step[0] != 1) or channels % lay.block:
        return False
    if start % lay.block or end % lay.block or start >= end:
        return False
    arguments = (lay.in_blocks(x), lay.ints(start), lay.ints(end), lay.ints(1))
    return lay.result(node, lay.op("Slice", arguments, lay.four(node.outputs[0])))


def split(lay: Layout, node: Node) -> bool:
    """Split along the channels at borders of blocks."""
    x = node.inputs[0]
    if (
        not lay.float(x)
        or x not in lay.blocked
        or node.attributes.get("axis", 0) % len(lay.program.types[x].shape) != 1
    ):
        return False
    sizes = [lay.four(o)[1] for o in node.outputs]
    if any(size % lay.block for size in sizes):
        return False
    names = tuple(lay.program.fresh(lay.program.types[o]) for o in node.outputs)
    for name, output in zip(names, node.outputs, strict=True):
        lay.program.types[name] = type(lay.program.types[name])("float32", lay.four(output))
        lay.blocked[output] = name
    lay.nodes.append(Node("Split", (lay.in_blocks(x), lay.ints(*sizes)), names, {"axis": 1}, f"{names[0]}_Split"))
    return True
