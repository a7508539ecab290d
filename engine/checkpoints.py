"""Stored tensors of one byte per number: the nodes that write and read them.

Strategy: blocks of 256 numbers share a scale, their largest magnitude / 127; a number is rounded to the nearest
multiple of it, so that zero stays zero. Only what is kept for a backward pass is coded: forward passes go on with the
exact tensor, so the loss is exact, and gradients see the rounding in what is recomputed (after Chen et al.,
"ActNN: Reducing Training Memory Footprint via 2-Bit Activation Compressed Training", 2021, at eight bits).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .graph import Builder, Node, TensorType

#: Numbers that share a scale; the fewest with which coding pays; the smallest tensor worth it, in numbers.
BLOCK, SMALLEST_BLOCK, SMALLEST = 256, 32, 4096
#: How the names of the two tensors end that stand for one: its numbers, and their scales.
STORED = (".q", ".s")
_TINY = 1e-30  # the scale of a block of zeros


def codable(kind: TensorType) -> bool:
    """Whether a tensor of this type is stored in blocks."""
    return kind.dtype == "float32" and kind.size >= SMALLEST and math.gcd(kind.size, BLOCK) >= SMALLEST_BLOCK


def coded(name: str, kind: TensorType) -> dict[str, TensorType]:
    """{name: type} of the two tensors that stand for one: its numbers [blocks, length], and scales [blocks]."""
    block = math.gcd(kind.size, BLOCK)
    rows = kind.size // block
    numbers, scales = STORED
    return {name + numbers: TensorType("int8", (rows, block)), name + scales: TensorType("float32", (rows,))}


def stored_share(kind: TensorType) -> float:
    """Bytes that a stored tensor takes, of its own."""
    if not codable(kind):
        return 1.0
    return sum(t.nbytes for t in coded("", kind).values()) / kind.nbytes


def encode(builder: Builder, name: str, kind: TensorType) -> None:
    """Append nodes that make the coded tensors of `name`."""
    (numbers, numbers_kind), (scales, _) = coded(name, kind).items()
    rows = builder.op("Reshape", name, builder.ints(*numbers_kind.shape))
    high = builder.op("ReduceMax", rows, builder.ints(1), keepdims=0)
    low = builder.op("ReduceMin", rows, builder.ints(1), keepdims=0)
    largest = builder.op("Max", high, builder.op("Neg", low))
    share = builder.op("Mul", largest, builder.scalar(1 / 127))
    builder.op("Max", share, builder.scalar(_TINY), name=scales)
    zeros = builder.constant(np.zeros(numbers_kind.shape[0], np.int8))
    builder.op("QuantizeLinear", rows, scales, zeros, name=numbers, axis=0)


def decode(names: Sequence[tuple[str, TensorType]]) -> Builder:
    """Nodes that make tensors again from their coded form."""
    builder = Builder("s.d")
    for name, kind in names:
        numbers, scales = coded(name, kind)
        rows = builder.op("DequantizeLinear", numbers, scales, axis=0)
        builder.op("Reshape", rows, builder.ints(*kind.shape), name=name)
    return builder


def decoded_first(nodes: Sequence[Node], names: Sequence[tuple[str, TensorType]]) -> tuple[list[Node], Builder]:
    """The nodes, each coded tensor made again right before it is first read; and the builder with the constants."""
    builder = decode(names)
    wanted = {name for name, _ in names}
    making: dict[str, list[Node]] = {}
    pending: list[Node] = []
    for node in builder.nodes:
        pending.append(node)
        if node.outputs[0] in wanted:
            making[node.outputs[0]] = pending
            pending = []
    result: list[Node] = []
    for node in nodes:
        for name in node.inputs:
            result += making.pop(name, [])
        result.append(node)
    return result, builder
