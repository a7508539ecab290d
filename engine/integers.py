"""How the integer weights of a model stand for real ones, read off its DequantizeLinear nodes. Needs `onnx`.

Strategy: scales and zero points are constants, but exporters do not always write them as such: what depends on
constants alone is computed.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .errors import EngineError, UnsupportedOperatorError
from .graph import Array
from .plan import Quantization
from .quantized import DTYPES, kept_range
from .runtime import run_once
from .weights import KINDS

#: Nodes that may stand between constants and a scale.
_NODES = 16


def quantizations(proto: onnx.ModelProto, names: Collection[str], source: str = "model") -> dict[str, Quantization]:
    """{weight: how its integers stand for real values}, for those of `names` that are integers.

    A weight whose scales are not constant float32 numbers is absent. Raises UnsupportedOperatorError for one that is
    read with two different scales.
    """
    constants = _Constants(proto)
    found: dict[str, Quantization] = {}
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in names:
            continue
        how = _quantization(node, constants)
        if how is not None and found.setdefault(how.weight, how) != how:
            raise UnsupportedOperatorError(
                node.op_type, node.name, source,
                f"{how.weight!r} stands for different values in different places; give each a weight of its own",
            )  # fmt: skip
    return found


def check_trained(proto: onnx.ModelProto, names: Collection[str], source: str) -> None:
    """Raise UnsupportedOperatorError for matrices of integers that cannot be weights: "all" would leave them out."""
    tensors = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        tensor = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is None or tensor.name in names or len(tensor.dims) < 2:
            continue
        kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        scale = tensors.get(node.input[1])
        real = "float" if scale is None else onnx.TensorProto.DataType.Name(scale.data_type).lower()
        if KINDS.get(tensor.data_type) not in DTYPES or real != "float":
            raise UnsupportedOperatorError(
                node.op_type, node.name, source,
                f"{tensor.name!r} is made of {kind} with scales of {real}, which is not trained; quantize to "
                f'{", ".join(DTYPES)} with scales of float, or name the weights to train (`trainable`)',
            )  # fmt: skip


class _Constants:
    """Values of a model that depend on its initializers alone."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self.tensors = {t.name: t for t in proto.graph.initializer}
        self._makers = {o: n for n in proto.graph.node for o in n.output}

    def value(self, name: str) -> Array | None:
        """The value of a tensor, if it is a constant that few nodes make."""
        if name in self.tensors:
            return numpy_helper.to_array(self.tensors[name])
        nodes: list[onnx.NodeProto] = []
        wanted, seen = [name], set()
        while wanted:
            tensor = wanted.pop()
            if tensor in self.tensors or tensor in seen or not tensor:
                continue
            seen.add(tensor)
            if tensor not in self._makers or len(nodes) == _NODES:
                return None
            nodes.insert(0, self._makers[tensor])
            wanted += self._makers[tensor].input
        leaves = [self.tensors[i] for i in {i for n in nodes for i in n.input} if i in self.tensors]
        graph = helper.make_graph(nodes, "constant", [], [helper.make_empty_tensor_value_info(name)], leaves)
        imports, version = self._proto.opset_import, self._proto.ir_version
        model = helper.make_model(graph, opset_imports=imports, ir_version=version)
        try:
            return run_once(model.SerializeToString(), {}, [name])[0]
        except EngineError:  # not in an order that runs, or nothing that the runtime knows
            return None


def _quantization(node: onnx.NodeProto, constants: _Constants) -> Quantization | None:
    weight = constants.tensors[node.input[0]]
    dtype = KINDS.get(weight.data_type, "")
    scales = constants.value(node.input[1])
    if dtype not in DTYPES or scales is None or scales.dtype != np.float32:
        return None
    given = len(node.input) > 2 and node.input[2] != ""
    zeros = constants.value(node.input[2]) if given else np.zeros(scales.shape, np.int32)
    if zeros is None:
        return None
    shape = tuple(weight.dims)
    numbers = {a.name: a.i for a in node.attribute if a.name in ("axis", "block_size")}
    axis, block = numbers.get("axis", 1), numbers.get("block_size", 0)
    if scales.size == 1:
        axis = block = 0
    elif axis < 0:
        axis += len(shape)
    whole = zeros.astype(np.int32)
    low, high = kept_range(numpy_helper.to_array(weight), whole)
    return Quantization(
        weight.name, dtype, shape, scales.astype("<f4").tobytes(),
        np.broadcast_to(whole.reshape(-1), scales.size).astype("<i4").tobytes(), axis, block, low, high,
    )  # fmt: skip
