"""Quantization: QuantizeLinear and DequantizeLinear, differentiated straight through.

Strategy: a model quantized for deployment computes with y = s (q - z), q = saturate(round(x / s) + z), written as two
nodes. Its slope is zero almost everywhere, so the pair is differentiated as what it approximates, the identity, and
as zero where q saturates: there the value no longer follows x. Relu and Clip, which quantizers remove into the
saturation, get their gradient back this way.

The gradient of a quantized tensor q is kept with respect to the value that q stands for, s (q - z), in float32. So a
DequantizeLinear passes its gradient on as it is, a QuantizeLinear masks it, tensors may be cut, moved or added up in
between, and the gradient of an integer weight is that of its real value.

The mask is that of PyTorch's fake quantization: round first, then compare. Rounding and division by s are monotone,
so it is an interval of x, whose two ends are found exactly, in the element type of x, when the plan is made.

Sources: Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons" (2013); Jacob et
al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..graph import Array, Node
from .elementwise import FLOATS
from .table import INTEGERS, QUANTIZERS, Site, gradient, widens

#: Operators that only move elements: they may stand between QuantizeLinear and DequantizeLinear.
_MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")

QUANTIZERS.add("QuantizeLinear")


def spread(values: Array, shape: Sequence[int], axis: int, block: int) -> Array:
    """Scales or zero points in a shape that broadcasts to the tensor's: one for all, per channel, or per block.

    >>> spread(np.array([1, 2]), (3, 2, 5), 1, 0).shape, spread(np.ones((4, 2)), (4, 6), 1, 3).shape
    ((1, 2, 1), (4, 6))
    """
    if values.size == 1:
        return values.reshape(())
    if block:
        return np.repeat(values, block, axis).take(np.arange(shape[axis]), axis)
    aligned = [1] * len(shape)
    aligned[axis] = -1
    return values.reshape(aligned)


def interval(scale: Array, zero_point: Array, low: int, high: int) -> tuple[Array, Array]:
    """The least and the largest x with low <= round(x / scale) + zero_point <= high, exactly, in the type of `scale`.

    Raises ValueError for scales that are not positive and finite.
    """
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("a scale is not a positive number")
    zero = np.broadcast_to(zero_point.reshape(scale.shape if zero_point.size > 1 else ()), scale.shape)
    key = scale.dtype.name, scale.shape, scale.tobytes(), zero.astype(np.int64).tobytes()
    return _outermost(*key, low, -1), _outermost(*key, high, 1)


@lru_cache(maxsize=4096)  # a plan is written many times before one is chosen
def _outermost(dtype: str, shape: tuple[int, ...], scales: bytes, zeros: bytes, limit: int, side: int) -> Array:
    """The outermost x on one side of zero whose round(x / scale) + zero point does not pass `limit`."""
    kind = np.dtype(dtype).type
    scale = np.frombuffer(scales, dtype).reshape(shape)
    bound = limit - np.frombuffer(zeros, np.int64).reshape(shape)

    def inside(x: Array) -> Array:
        rounded = np.rint(x / scale)
        return np.asarray(rounded >= bound if side < 0 else rounded <= bound)

    outwards, inwards = kind(side * np.inf), kind(-side * np.inf)
    largest = np.finfo(kind).max
    with np.errstate(over="ignore"):
        x = np.asarray(np.clip(scale * (bound + side * 0.5).astype(kind), -largest, largest), kind)
        # as `inside` is monotone: out of it, then in again by the shortest way
        while (step := inside(x)).any():
            x = np.where(step, np.nextafter(x, outwards), x)
        while (step := ~inside(x)).any():
            x = np.where(step, np.nextafter(x, inwards), x)
    return x


def _axis(s: Site) -> int:
    rank = len(s.shape())
    return int(s.attribute("axis", 1)) % rank if rank else 0


@gradient("QuantizeLinear", 0)
def _(s: Site) -> str:
    kind = s.graph.types[s.y].dtype
    if kind not in INTEGERS:
        s.refuse(f"it quantizes to {kind}; quantize to {', '.join(INTEGERS[:-1])}")
    if s.attribute("precision", 0) not in (0, 1):
        s.refuse("it divides in another precision than that of its input; leave out `precision`")
    scale = s.value(1)
    if scale.dtype.name != s.graph.types[s.x()].dtype:
        s.refuse(f"its scale is {scale.dtype.name} and its input {s.graph.types[s.x()].dtype}; make them equal")
    zero_point = s.value(2) if s.has(2) else np.zeros(scale.shape, kind)
    limits = np.iinfo(kind)
    try:
        ends = interval(scale, zero_point, int(limits.min), int(limits.max))
    except ValueError as error:
        s.refuse(f"{error}; calibrate the model again")
    axis, block = _axis(s), int(s.attribute("block_size", 0))
    least, most = (s.builder.constant(spread(e, s.shape(), axis, block)) for e in ends)
    one = scale.size == 1
    clipped = s.op("Clip", s.x(), least, most) if one else s.op("Min", s.op("Max", s.x(), least), most)
    unsaturated = s.op("Cast", s.op("Equal", s.x(), clipped), to=1)
    masked = s.op("Mul", s.g, unsaturated)
    return masked if scale.dtype == np.float32 else s.op("Cast", masked, to=FLOATS[scale.dtype.name])


@gradient("DequantizeLinear", 0)
def _(s: Site) -> str:
    scale = s.value(1)
    g = s.g if scale.dtype == np.float32 else s.op("Cast", s.g, to=1)
    origin = _origin(s)
    if origin is None:
        return g
    given = s.graph.constants.get(origin.inputs[1])
    if given is not None and given.size == scale.size == 1:
        # a value in the units of the quantizer may be read in other units
        ratio = float(scale.reshape(())) / float(given.reshape(()))
        return g if ratio == 1 else s.op("Mul", g, s.builder.scalar(ratio))
    if given is None or s.x() not in origin.outputs or not np.array_equal(given, scale):
        s.refuse(
            f"it does not undo what node {origin.name!r} quantized, block by block or channel by channel; give both "
            "the same constant scales, with nothing in between"
        )
    return g


def _origin(s: Site) -> Node | None:
    """The node that quantized the integers which this node reads; None for a weight."""
    name = s.x()
    while name not in s.graph.constants:
        node = next((n for n in s.graph.nodes if name in n.outputs), None)
        if node is None:
            s.refuse(f"it reads integers from the model's input {name!r}; quantize inside the model")
        if node.op == "QuantizeLinear":
            return node
        if node.op not in _MOVES and not (node.op == "Cast" and widens(s.graph, node)):
            s.refuse(
                f"it reads integers that {node.op} (node {node.name!r}) computed; quantize with "
                "quant_format=QuantFormat.QDQ, which leaves arithmetic in real numbers"
            )
        name = node.inputs[0]
    return None
