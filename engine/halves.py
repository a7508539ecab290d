"""Models that hold numbers in half precision are read as float32: training computes and keeps its weights in it.

Strategy: constants, casts and filled tensors become float32, and inputs and outputs keep their type by a Cast of their
own. Whoever calls the model sees no difference but more exact numbers; the exported file holds float32 weights.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import ModelError

_FLOAT = TensorProto.FLOAT
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def _wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)


def widen(proto: onnx.ModelProto, name: str) -> None:
    """Make a model with constants in half precision one of float32, in place; other models are left as they are.

    Raises ModelError for weights in double precision.
    """
    graph = proto.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE and len(tensor.dims) > 1 and max(tensor.dims) > 1:
            raise ModelError(
                f"{name}: {tensor.name!r} holds double precision, and training computes in float32; export the model "
                "in float32"
            )
    if not any(t.data_type in _HALVES and len(t.dims) and max(t.dims) > 1 for t in graph.initializer):
        return
    for tensor in graph.initializer:
        if tensor.data_type in _HALVES:
            tensor.CopyFrom(_wide(tensor))
    for node in graph.node:
        for given in node.attribute:
            if given.type == onnx.AttributeProto.TENSOR and given.t.data_type in _HALVES:
                given.t.CopyFrom(_wide(given.t))
            elif given.name in ("to", "dtype", "output_dtype") and given.i in _HALVES:
                given.i = _FLOAT
    del graph.value_info[:]
    inputs = {v.name: v.type.tensor_type.elem_type for v in graph.input if v.type.tensor_type.elem_type in _HALVES}
    outputs = {v.name: v.type.tensor_type.elem_type for v in graph.output if v.type.tensor_type.elem_type in _HALVES}
    renamed = {n: f"{n}/float32" for n in (*inputs, *outputs)}
    for node in graph.node:
        for names in (node.input, node.output):
            for place, tensor_name in enumerate(names):
                names[place] = renamed.get(tensor_name, tensor_name)
    first = [helper.make_node("Cast", [n], [renamed[n]], name=f"{n}/widen", to=_FLOAT) for n in inputs]
    last = [helper.make_node("Cast", [renamed[n]], [n], name=f"{n}/narrow", to=kind) for n, kind in outputs.items()]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    del graph.node[:]
    graph.node.extend([*first, *nodes, *last])
