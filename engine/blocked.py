"""The runtime's own blocked layout for depthwise convolutions: chosen, verified and written here and nowhere else.

Strategy. onnxruntime rewrites convolutions with constant weights into operators of the domain
`com.microsoft.nchwc`, which keep blocks of 8 or 16 channels together. Our weights are run-time inputs, so it does
not; this pass writes those operators itself, with the filter laid out by a transposition: about five times faster for
depthwise filters. The operators are internal to the runtime, so nothing is taken on trust: the block size is found by
a numeric probe, every shape is compared with the plain form when a plan is made, and whatever differs stays plain.
A plan carries the probe along, and is refused by a processor that answers it wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import EngineError
from .graph import Builder, Node, TensorType
from .runtime import run_once

if TYPE_CHECKING:
    from .passes import Program

DOMAIN = "com.microsoft.nchwc"
_SIZES = (8, 16)
_TOLERANCE = 1e-4
_DIFFERENCE = "difference"

Signature = tuple[tuple[int, ...], tuple[int, ...], bool, tuple[tuple[str, tuple[int, ...]], ...]]


@lru_cache(maxsize=1)
def block_size() -> int:
    """Channels per block on this processor; 0 where the blocked form does not work."""
    return next((size for size in _SIZES if blocks_agree(probe_model(size))), 0)


def probe_model(block: int) -> bytes:
    """A model without inputs that gives the largest difference between the plain and the blocked form."""
    from . import onnxio

    x_shape, w_shape = (2, 32, 9), (32, 1, 3)
    attributes: dict[str, Any] = {"dilations": [1], "pads": [1, 1], "strides": [1], "group": 32, "kernel_shape": [3]}
    noise = np.random.default_rng(0)
    builder = Builder("p")
    arguments = tuple(builder.constant(noise.standard_normal(s, np.float32)) for s in (x_shape, w_shape))
    node = Node("Conv", arguments, ("blocked",), attributes, "probe")
    pairs = tuple((k, tuple(v)) for k, v in attributes.items() if isinstance(v, list) and k != "kernel_shape")
    _write(builder, node, (x_shape, w_shape, False, pairs), x_shape, block)
    plain = builder.op("Conv", *arguments, **attributes)
    difference = builder.op("Abs", builder.op("Sub", "blocked", plain))
    builder.op("ReduceMax", difference, keepdims=0, name=_DIFFERENCE)
    return onnxio.to_bytes(builder.nodes, {}, {_DIFFERENCE: None}, builder.constants, onnxio.OPSET)


def blocks_agree(probe: bytes) -> bool:
    """Whether this processor computes the blocked form of a `probe_model` rightly. Needs no `onnx`."""
    try:
        return float(run_once(probe, {}, [_DIFFERENCE])[0]) <= _TOLERANCE
    except EngineError:  # no such operator in this runtime or on this processor
        return False


def rewrite(program: Program) -> bool:
    """Depthwise convolutions in the blocked form, where that was verified."""
    builder = Builder("s.k")
    result: list[Node] = []
    for node in program.nodes:
        signature = _signature(node, program.types, program.block)
        if signature is None or not _agrees(signature, program.block):
            result.append(node)
            continue
        start = len(builder.nodes)
        _write(builder, node, signature, program.types[node.outputs[0]].shape, program.block)
        result += builder.nodes[start:]
    program.constants |= builder.constants
    program.types |= {n: TensorType(v.dtype.name, v.shape) for n, v in builder.constants.items()}
    for node in builder.nodes:
        program.types.setdefault(node.outputs[0], TensorType("float32", _shape_of(node, program)))
    program.nodes = result
    return bool(builder.nodes)


def _shape_of(node: Node, program: Program) -> tuple[int, ...]:
    """The shape of what `_write` made."""
    shape = program.types[node.inputs[0]].shape
    if node.op == "Reshape":
        return tuple(program.constants[node.inputs[1]].tolist())
    if node.op == "Transpose":
        return tuple(shape[axis] for axis in node.attributes["perm"])
    if node.op == "Conv":
        before, behind = node.attributes["pads"][:2], node.attributes["pads"][2:]
        sizes = (node.attributes[k] for k in ("kernel_shape", "dilations", "strides"))
        space = [(n + b + e - (k - 1) * d - 1) // s + 1
                 for n, b, e, k, d, s in zip(shape[2:], before, behind, *sizes, strict=True)]  # fmt: skip
        return (shape[0], shape[1], *space)
    return shape


def _signature(node: Node, types: Mapping[str, TensorType], block: int) -> Signature | None:
    """What decides about a node, or None if it is not a depthwise convolution that fits the blocks."""
    known = all(n in types for n in (*node.inputs, *node.outputs) if n)
    if node.op != "Conv" or node.domain or block == 0 or not known:
        return None
    x, w = types[node.inputs[0]], types[node.inputs[1]]
    space = len(x.shape) - 2
    channels = x.shape[1]
    depthwise = node.attributes.get("group", 1) == channels == w.shape[0] and w.shape[1] == 1
    if not depthwise or channels % block or space not in (1, 2) or x.dtype != "float32" or max(w.shape[2:]) == 1:
        return None
    if node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    defaults = {"dilations": [1] * space, "pads": [0] * 2 * space, "strides": [1] * space}
    attributes = tuple((k, tuple(node.attributes.get(k, v))) for k, v in defaults.items())
    return x.shape, w.shape, len(node.inputs) > 2, attributes


def _write(builder: Builder, node: Node, signature: Signature, y_shape: tuple[int, ...], block: int) -> None:
    x_shape, w_shape, _, pairs = signature
    given = dict(pairs)
    channels, space = x_shape[1], len(x_shape) - 2
    taps = int(np.prod(w_shape[2:]))
    x = node.inputs[0]
    if space == 1:
        x = builder.op("Reshape", x, builder.ints(*x_shape[:2], 1, x_shape[2]))
        given = {
            "dilations": (1, *given["dilations"]), "strides": (1, *given["strides"]),
            "pads": (0, given["pads"][0], 0, given["pads"][1]),
        }  # fmt: skip
    kernel = [1] * (2 - space) + [*w_shape[2:]]
    rows = builder.op("Reshape", node.inputs[1], builder.ints(channels // block, block, taps))
    filters = builder.op("Reshape", builder.op("Transpose", rows, perm=[0, 2, 1]), builder.ints(channels, 1, *kernel))
    blocked = builder.multi("ReorderInput", (x,), 1, domain=DOMAIN)[0]
    attributes: dict[str, Any] = {k: list(v) for k, v in given.items()}
    attributes |= {"group": channels, "kernel_shape": kernel}
    y = builder.multi("Conv", (blocked, filters, *node.inputs[2:]), 1, domain=DOMAIN, **attributes)[0]
    if space == 2:
        builder.multi("ReorderOutput", (y,), 1, node.outputs[0], domain=DOMAIN, channels=channels)
    else:
        plain = builder.multi("ReorderOutput", (y,), 1, domain=DOMAIN, channels=channels)[0]
        builder.op("Reshape", plain, builder.ints(*y_shape), name=node.outputs[0])


@lru_cache(maxsize=4096)
def _agrees(signature: Signature, block: int) -> bool:
    """Whether the blocked form computes what the plain one does, on noise."""
    from . import onnxio

    x_shape, w_shape, has_bias, pairs = signature
    noise = np.random.default_rng(0)
    shapes = {"x": x_shape, "w": w_shape} | ({"b": (x_shape[1],)} if has_bias else {})
    feeds = {n: noise.standard_normal(s, np.float32) for n, s in shapes.items()}
    attributes: dict[str, Any] = {k: list(v) for k, v in pairs} | {
        "group": x_shape[1], "kernel_shape": list(w_shape[2:]),
    }  # fmt: skip
    plain = Node("Conv", tuple(feeds), ("y",), attributes, "plain")
    inputs = {n: TensorType("float32", s) for n, s in shapes.items()}
    try:
        wanted = run_once(onnxio.to_bytes([plain], inputs, {"y": None}, {}, onnxio.OPSET), feeds, ["y"])[0]
        builder = Builder("k")
        _write(builder, plain, signature, wanted.shape, block)
        model = onnxio.to_bytes(builder.nodes, inputs, {"y": None}, builder.constants, onnxio.OPSET)
        given = run_once(model, feeds, ["y"])[0]
    except EngineError:  # this runtime or processor has no such operator, or not for this shape
        return False
    scale = float(np.abs(wanted).max()) or 1.0
    return given.shape == wanted.shape and float(np.abs(given - wanted).max()) <= _TOLERANCE * scale
