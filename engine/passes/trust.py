"""Whether the runtime's blocked convolutions do what we think: compared with the standard operators, size by size.

The operators are internal to the runtime and take our filters on trust, so nothing is taken on trust from them: before
a plan uses one for certain sizes, both forms compute noise once. Channels, batch and rows are cut down to what takes
every path that the full sizes take, so this costs milliseconds; the answers are kept for the life of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from .. import onnxio
from ..errors import EngineError
from ..graph import FILTER_GRADIENT, OURS, Array, Node, TensorType
from ..runtime import run_once
from . import plain
from .followers import batch_normalization
from .geometry import Geometry
from .layout import Handler, convert
from .program import Program

_TOLERANCE = 1e-4
_BLOCKS, _BATCH, _ROWS = 5, 3, 4


def small(z: Geometry, block: int) -> Geometry:
    """Sizes that behave as these do, with less work."""

    def fewer(channels: int) -> int:
        most = _BLOCKS * block
        return channels if channels <= most else most - block + (channels % block or block)

    batch = z.batch if z.batch < block else block + 1
    batch = min(batch, _BATCH) if z.batch < block else batch
    sizes = replace(z, batch=batch)
    if z.depthwise:
        channels = fewer(z.inputs)
        sizes = replace(sizes, inputs=channels, outputs=channels, group=channels)
    elif z.group == 1:
        sizes = replace(sizes, inputs=fewer(z.inputs), outputs=fewer(z.outputs))
    elif z.group > 2:
        sizes = replace(sizes, inputs=2 * z.inputs // z.group, outputs=2 * z.outputs // z.group, group=2)
    rows = min(z.positions[0], _ROWS)
    length = (rows - 1) * z.stride[0] + z.reach[0] - z.before[0] - z.behind[0]
    if rows < z.positions[0] and length >= 1:
        sizes = replace(sizes, positions=(rows, *z.positions[1:]), length=(length, *z.length[1:]))
    return sizes


def node_of(op: str, z: Geometry, biased: bool) -> tuple[Node, dict[str, tuple[int, ...]], tuple[int, ...]]:
    """A node that computes one of the three products, the shapes of its inputs, and of its result."""
    attributes: dict[str, Any] = {
        "group": z.group, "kernel_shape": list(z.kernel), "strides": list(z.stride), "dilations": list(z.dilation),
        "pads": [*z.before, *(b if op == FILTER_GRADIENT else max(b, 0) for b in z.behind)],
    }  # fmt: skip
    bias: dict[str, tuple[int, ...]] = {}
    if op == FILTER_GRADIENT:
        return Node(op, ("x", "g"), ("r",), attributes, "n", OURS), {"x": z.x_shape, "g": z.y_shape}, z.w_shape
    if op == "ConvTranspose":
        attributes["output_padding"] = [max(-b, 0) for b in z.behind]
        bias = {"b": (z.inputs,)} if biased else {}
        return Node(op, ("g", "w", *bias), ("r",), attributes, "n"), {"g": z.y_shape, "w": z.w_shape, **bias}, z.x_shape
    bias = {"b": (z.outputs,)} if biased else {}
    return Node(op, ("x", "w", *bias), ("r",), attributes, "n"), {"x": z.x_shape, "w": z.w_shape, **bias}, z.y_shape


def agrees(handler: Handler, op: str, z: Geometry, biased: bool, block: int) -> bool:
    """Whether what the handler writes for these sizes computes what the standard operators do."""
    return _agrees(handler, op, small(z, block), biased, block)


@lru_cache(maxsize=8192)
def _agrees(handler: Handler, op: str, z: Geometry, biased: bool, block: int) -> bool:
    node, shapes, result = node_of(op, z, biased)
    noise = np.random.default_rng(0)
    feeds = {n: noise.standard_normal(s, np.float32) for n, s in shapes.items()}
    try:
        wanted = _run([node], feeds, result, plain.expand, 0)
        given = _run([node], feeds, result, lambda p: convert(p, {op: handler}), block)
    except EngineError:  # this runtime or processor has no such operator, or not for these sizes
        return False
    scale = float(np.abs(wanted).max()) or 1.0
    return given.shape == wanted.shape and float(np.abs(given - wanted).max()) <= _TOLERANCE * scale


def pool_agrees(handler: Handler, node: Node, x: tuple[int, ...], y: tuple[int, ...], block: int) -> bool:
    """The same for a pooling operator with its attributes, from x to y."""
    channels = block + x[1] % block
    batch = min(x[0], 2)
    attributes = tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in node.attributes.items()))
    return _pool_agrees(handler, node.op, attributes, (batch, channels, *x[2:]), (batch, channels, *y[2:]), block)


@lru_cache(maxsize=1024)
def _pool_agrees(
    handler: Handler,
    op: str,
    attributes: tuple[tuple[str, Any], ...],
    x: tuple[int, ...],
    y: tuple[int, ...],
    block: int,
) -> bool:
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in attributes}
    # behind an operator that is in blocks, which some handlers follow
    nodes = [
        Node("BatchNormalization", ("x", "s", "b", "m", "v"), ("h",), {}, "h"),
        Node(op, ("h",), ("r",), given, "n"),
    ]
    noise = np.random.default_rng(0)
    feeds = {"x": noise.standard_normal(x, np.float32)}
    feeds |= {n: noise.uniform(0.5, 1.5, x[1]).astype(np.float32) for n in "sbmv"}
    handlers: dict[str, Handler] = {"BatchNormalization": batch_normalization, op: handler}
    try:
        wanted = _run(nodes, feeds, y, lambda p: False, 0)
        found = _run(nodes, feeds, y, lambda p: convert(p, handlers), block)
    except EngineError:
        return False
    scale = float(np.abs(wanted).max()) or 1.0
    return found.shape == wanted.shape and float(np.abs(found - wanted).max()) <= _TOLERANCE * scale


def _run(
    nodes: list[Node], feeds: dict[str, Array], result: tuple[int, ...], change: Callable[[Program], bool], block: int
) -> Array:
    inputs = {n: TensorType("float32", v.shape) for n, v in feeds.items()}
    types = {**inputs, "h": inputs.get("x", TensorType("float32", ())), "r": TensorType("float32", result)}
    program = Program(list(nodes), types, {}, tuple(inputs), ("r",), onnxio.OPSET, block)
    change(program)
    model = onnxio.to_bytes(program.nodes, inputs, {"r": None}, program.constants, onnxio.OPSET)
    return run_once(model, feeds, ["r"])[0]
