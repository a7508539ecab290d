"""Where samples and steps are in a model's tensors, brought to the one order that is worked with.

Strategy: rewrites of the model itself, by Transpose nodes. Layers that keep their samples first (`layout` 1) are turned
to keep their steps first, which the runtime has kernels for; this goes into the exported model too. Inputs and outputs
that have their samples at axis 1 are turned to have them first, as data has; only the training graph sees that.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

#: Operators with a layout, and what `layout` 1 says of inputs and outputs: the order that leads to layout 0, or back.
_LAYERS = ("LSTM", "GRU", "RNN")
_SWAPPED = (1, 0, 2)
_ALL_STEPS = (2, 0, 1, 3)  # [T, D, N, H] to [N, T, D, H]


def steps_first(proto: onnx.ModelProto) -> None:
    """Turn every recurrent layer of layout 1 to layout 0, in place."""
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        layout = next((a for a in node.attribute if a.name == "layout"), None)
        if node.op_type not in _LAYERS or node.domain not in ("", "ai.onnx") or layout is None or not layout.i:
            nodes.append(node)
            continue
        node.attribute.remove(layout)
        stem = f"{node.output[0] or node.output[1]}/steps_first"
        for position in (0, 5, 6):
            if position < len(node.input) and node.input[position]:
                nodes.append(_transpose(node.input[position], f"{stem}/in{position}", _SWAPPED))
                node.input[position] = nodes[-1].output[0]
        after = []
        for position, name in enumerate(node.output):
            if name:
                node.output[position] = f"{stem}/out{position}"
                after.append(_transpose(node.output[position], name, _SWAPPED if position else _ALL_STEPS))
        nodes += [node, *after]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def states_once(proto: onnx.ModelProto) -> None:
    """Make a constant initial state [D, N, H] that is the same for N samples, and not uniform, one for all, in place.

    With a fixed batch an exporter writes a learned state [D, 1, H] out like that; kept so, each sample would learn its
    own. The same goes for a class token [1, 1, C] that is put before a sequence, written out as [N, 1, C].
    """
    tensors = {t.name: t for t in proto.graph.initializer}
    for node in list(proto.graph.node):
        for name, axis in _repeated_places(node, tensors):
            if name not in tensors or len(tensors[name].dims) != 3 or tensors[name].dims[axis] < 2:
                continue
            value = numpy_helper.to_array(tensors.pop(name))
            once = value.take([0], axis)
            if (once == once.reshape(-1)[0]).all() or (value != once).any():
                continue
            sizes, wide = f"{name}/sizes", f"{name}/samples"
            for tensor in proto.graph.initializer:
                if tensor.name == name:
                    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(once), name))
            _rename(proto, name, wide, reads=True)
            proto.graph.initializer.append(numpy_helper.from_array(np.array(value.shape, np.int64), sizes))
            proto.graph.node.insert(0, helper.make_node("Expand", [name, sizes], [wide], name=f"{wide}/expand"))


def _repeated_places(node: onnx.NodeProto, constants: Container[str]) -> list[tuple[str, int]]:
    """(input, axis of the samples) where a learned value may be written out for every sample."""
    if node.op_type in _LAYERS:
        return [(name, 1) for name in node.input[5 : 7 if node.op_type == "LSTM" else 6]]
    if node.op_type == "Concat" and not all(name in constants for name in node.input):
        return [(name, 0) for name in node.input]
    return []


def samples_first(proto: onnx.ModelProto) -> list[str]:
    """Turn inputs and outputs that have their samples at axis 1, in place; returns the names of those inputs.

    An input [T, N, ...] is known by its only free dimension, the second, that is the first of an output; or, where all
    sizes are fixed, by a second that is the first of all outputs when its first is not.
    """
    inputs = {v.name: v for v in proto.graph.input}
    first = [_dims(v)[0] for v in proto.graph.output if len(_dims(v))]
    turned = [name for name, value in inputs.items() if _second(_dims(value), first)]
    if not turned:
        return []
    batch = {_dims(inputs[name])[1] for name in turned}
    head, tail = [], []
    for value in proto.graph.input:
        if value.name in turned:
            _swap(value)
            head.append(_transpose(value.name, f"{value.name}/steps_first", _order(value)))
            _rename(proto, value.name, head[-1].output[0], reads=True)
    for value in proto.graph.output:
        dims = _dims(value)
        if len(dims) > 1 and dims[1] in batch and dims[0] not in batch:
            _swap(value)
            inside = f"{value.name}/steps_first"
            _rename(proto, value.name, inside, reads=False)
            tail.append(_transpose(inside, value.name, _order(value)))
    nodes = [*head, *proto.graph.node, *tail]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    return turned


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    """Sizes, or names where they are free ("?" without a name)."""
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?"
        for d in value.type.tensor_type.shape.dim
    ]


def _second(dims: Sequence[int | str], outputs: Sequence[int | str]) -> bool:
    """Whether the samples of an input are at axis 1."""
    if len(dims) < 2:
        return False
    free = [axis for axis, size in enumerate(dims) if isinstance(size, str)]
    if free:
        return free == [1] and dims[1] in outputs
    return len(dims) == 3 and bool(outputs) and all(o == dims[1] != dims[0] for o in outputs)


def _swap(value: onnx.ValueInfoProto) -> None:
    dims = value.type.tensor_type.shape.dim
    first, second = (onnx.TensorShapeProto.Dimension.FromString(d.SerializeToString()) for d in dims[:2])
    dims[0].CopyFrom(second)
    dims[1].CopyFrom(first)


def _order(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return (1, 0, *range(2, len(value.type.tensor_type.shape.dim)))


def _transpose(source: str, target: str, order: Sequence[int]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [target], name=f"{target}/transpose", perm=order)


def _rename(proto: onnx.ModelProto, old: str, new: str, reads: bool) -> None:
    """Rename a tensor where it is read, or everywhere but in the model's outputs."""
    for node in proto.graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new
        if not reads:
            for position, name in enumerate(node.output):
                if name == old:
                    node.output[position] = new
