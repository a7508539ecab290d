"""Which constants of a model are weights.

Strategy: a constant is a weight if an operator takes it in a slot where learned values belong (a table), directly or
through operators that only move, cast or quantize elements. What is uniform where learned values are not (padding, the
ones and zeros of a normalization without scale and shift) is none. Planning only.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .integers import quantizations
from .weights import KINDS

if TYPE_CHECKING:
    import onnx

    from .graph import Node

#: Operator -> inputs that hold learned values.
SLOTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "Gather": (0,), "PRelu": (1,),
    "BatchNormalization": (1, 2), "LayerNormalization": (1, 2), "Add": (0, 1), "Mul": (0, 1),
    "LSTM": (1, 2, 3, 5, 6, 7), "GRU": (1, 2, 3, 5), "RNN": (1, 2, 3, 5),
    "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2), "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,), "Einsum": (0, 1, 2, 3), "Concat": tuple(range(64)),
}  # fmt: skip
#: The same for operators of onnxruntime's own domain.
CONTRIB_SLOTS: dict[str, tuple[int, ...]] = {
    "FusedConv": (1, 2), "FusedGemm": (0, 1, 2), "FusedMatMul": (0, 1), "TransposeMatMul": (0, 1), "BiasGelu": (1,),
    "FastGelu": (1,), "LayerNormalization": (1, 2), "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4), "SkipSimplifiedLayerNormalization": (2, 3),
    "EmbedLayerNormalization": (2, 3, 4, 5, 6), "Attention": (1, 2),
}  # fmt: skip
#: Where a single number is a setting of a formula, not something learned.
_MANY_ONLY = ("Add", "Mul", "Concat")
#: Where zeros are the way to say "nothing": the initial states of recurrent layers.
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Concat", "Cast",
          "CastLike")  # fmt: skip
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_FLOAT = 1


def weight_names(proto: onnx.ModelProto, named: Sequence[str] = ()) -> list[str]:
    """The weights of a normalized model, in the order of the file.

    `named`: float32 constants that count as weights wherever they are (a learned number, a mask). An initial state of
    a recurrent layer is a weight where it is not zero and the same for all samples.
    """
    tensors = {t.name: t for t in proto.graph.initializer}
    kinds = {name: KINDS.get(t.data_type, "") for name, t in tensors.items()}
    sizes = {name: int(np.prod(t.dims, dtype=np.int64)) for name, t in tensors.items() if kinds[name]}
    origin = {name: {name} for name in sizes}
    real = {name for name in sizes if kinds[name] == "float32"}  # tensors that stand for their own values
    found = {name for name in named if kinds.get(name) == "float32"}
    for node in proto.graph.node:
        if node.op_type in (*_MOVES, *_QUANTIZERS):
            read = node.input if node.op_type == "Concat" else node.input[:1]
            if node.op_type == "Expand" and all(sizes[n] == 1 for n in origin.get(node.input[0], ())):
                continue  # a single number, repeated, fills a tensor: nothing learned
            if all(name in origin for name in read):
                origin[node.output[0]] = set().union(*(origin[name] for name in read))
                if node.op_type == "DequantizeLinear" or (node.op_type in _MOVES and real.issuperset(read)):
                    real.add(node.output[0])
        for slot in _slots(node, origin, tensors):
            given = node.input[slot] if slot < len(node.input) else ""
            for name in origin[given] if given in real else ():
                if sizes[name] == 1 and node.op_type in _MANY_ONLY:
                    continue
                if node.op_type == "Concat" and _uniform(tensors[name]):
                    continue  # padding
                if slot not in _STATES.get(node.op_type, ()) or _learned_state(tensors[name], name == given):
                    found.add(name)
    known = quantizations(proto, found - {n for n in found if kinds[n] == "float32"})
    return [name for name in sizes if name in found and (kinds[name] == "float32" or name in known)]


def _slots(node: onnx.NodeProto, constants: Container[str], tensors: Mapping[str, onnx.TensorProto]) -> tuple[int, ...]:
    """The inputs of a node where learned values belong."""
    if node.domain not in ("", "ai.onnx"):
        return CONTRIB_SLOTS.get(node.op_type, ()) if node.domain == "com.microsoft" else ()
    if node.op_type == "InstanceNormalization" and _neutral(tensors, node.input[1:3]):
        return ()  # without scale and shift, or group normalization as exporters write it: what is learned comes after
    if node.op_type == "Concat" and all(name in constants for name in node.input):
        return ()  # nothing but constants put together
    return SLOTS.get(node.op_type, ())


def _neutral(tensors: Mapping[str, onnx.TensorProto], names: Sequence[str]) -> bool:
    """Whether these are a scale of ones and a shift of zeros, or are made of a single number."""
    given = [tensors[n] for n in names if n in tensors and tensors[n].data_type == _FLOAT]
    return all(np.all(np.frombuffer(t.raw_data, "<f4") == 1 - i) for i, t in enumerate(given)) and len(given) != 1


def _uniform(tensor: onnx.TensorProto) -> bool:
    """Whether all values are the same."""
    size = len(tensor.raw_data) // max(int(np.prod(tensor.dims, dtype=np.int64)), 1)
    return size == 0 or tensor.raw_data == tensor.raw_data[:size] * (len(tensor.raw_data) // size)


def _learned_state(tensor: onnx.TensorProto, direct: bool) -> bool:
    """Whether a constant that becomes an initial state [D, N, H] was learned."""
    values = np.frombuffer(tensor.raw_data, "<f4") if KINDS[tensor.data_type] == "float32" else np.zeros(1)
    # states that differ between samples are data; equal ones were made one by `layouts.states_once`
    return bool(values.any()) and values.size > 1 and (not direct or tensor.dims[1] == 1)


def carriers(nodes: Iterable[Node], weights: Iterable[str]) -> dict[str, set[str]]:
    """{tensor: the weights that it holds}: weights themselves, and what moves, quantizes or dequantizes them."""
    origin = {name: {name} for name in weights}
    for node in nodes:
        read = node.inputs if node.op == "Concat" else node.inputs[:1]
        if node.op in (*_MOVES, *_QUANTIZERS) and all(name in origin for name in read):
            origin[node.outputs[0]] = set().union(*(origin[name] for name in read))
    return origin
