"""From a model's nodes to nodes and constants with static types: what is known when planning is computed here.

Strategy: alternate shape inference with two rewrites until nothing changes. A node whose inputs are all known is run
and replaced by its value: that folds the shape arithmetic that exporters write. A node in the tables of `decompose.py`
is written out in operators that have rules, once the types that it needs are known: fused operators, sequences, an If
whose condition is known. Large constants are only described to the inference, never copied through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .decompose import REWRITES, Rewriter
from .errors import ModelError
from .graph import Array, TensorType
from .runtime import run_once

_FOLD_LIMIT = 64 * 2**20  # bytes of one folded value: folding must not blow a model up
_PROBED = {"Einsum", "Compress"}  # operators whose shapes onnx does not always infer
_SMALL = 1024  # bytes up to which a constant takes part in shape inference with its value


def attribute(given: onnx.AttributeProto) -> Any:
    """The value of an attribute as Python and numpy have it."""
    value = helper.get_attribute_value(given)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, Iterable) and not isinstance(value, (str, onnx.GraphProto)):
        return [item.decode() if isinstance(item, bytes) else item for item in value]
    return value


def _type_of(value: onnx.ValueInfoProto) -> TensorType | None:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape") or not tensor.elem_type:
        return None
    shape = []
    for dimension in tensor.shape.dim:
        if not dimension.HasField("dim_value"):
            return None
        shape.append(dimension.dim_value)
    return TensorType(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, tuple(shape))


def types_of(proto: onnx.ModelProto) -> dict[str, TensorType]:
    """The static types that a model states, its initializers' included."""
    types = {}
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        known = _type_of(value)
        if known is not None:
            types[value.name] = known
    for tensor in proto.graph.initializer:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).name
        types[tensor.name] = TensorType(dtype, tuple(tensor.dims))
    return types


class Folding:
    """The nodes and constants of a model with fixed input shapes while they are folded.

    `weights` are never folded, so that they stay inputs of what depends on them.
    """

    def __init__(self, proto: onnx.ModelProto, weights: frozenset[str], name: str, opset: int) -> None:
        self._name, self._weights, self._opset = name, weights, opset
        self._tensors = {t.name: t for t in proto.graph.initializer}
        self._values: dict[str, Array] = {}
        self._inputs = {v.name for v in proto.graph.input}
        self._skeleton = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
        graph = self._skeleton.graph
        graph.name = "skeleton"
        graph.node.extend(proto.graph.node)
        graph.input.extend(proto.graph.input)
        graph.output.extend(proto.graph.output)
        for tensor in proto.graph.initializer:
            self._describe(tensor, tensor.name in weights)
        self._number = 0

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes that are left."""
        return list(self._skeleton.graph.node)

    def value(self, name: str) -> Array | None:
        """A constant, if it is one."""
        if name not in self._values and name in self._tensors:
            self._values[name] = numpy_helper.to_array(self._tensors[name])
        return self._values.get(name)

    def run(self) -> dict[str, TensorType]:
        """Fold until nothing changes; the types of all tensors, as far as they are known. Raises ModelError."""
        while True:
            try:
                inferred = onnx.shape_inference.infer_shapes(self._skeleton, strict_mode=False, data_prop=True)
            except Exception as error:
                raise ModelError(f"{self._name}: shapes do not fit together ({error})") from error
            types = types_of(inferred)
            if not (self._rewrite(types) or self._fold(types) or self._probe(types)):
                return types

    def _probe(self, types: Mapping[str, TensorType]) -> bool:
        """Learn shapes that the inference cannot give by running a node on zeros. Returns whether there were any."""
        for node in self._skeleton.graph.node:
            if node.op_type not in _PROBED or node.output[0] in types or not all(i in types for i in node.input):
                continue
            if node.op_type == "Compress" and self.value(node.input[1]) is None:
                continue
            feeds = {i: self.value(i) for i in node.input}
            values = {i: np.zeros(types[i].shape, types[i].dtype) if v is None else v for i, v in feeds.items()}
            made = self._evaluate([node], [numpy_helper.from_array(v, i) for i, v in values.items()], node.output[:1])
            kind = helper.np_dtype_to_tensor_dtype(made[0].dtype)
            self._skeleton.graph.value_info.append(helper.make_tensor_value_info(node.output[0], kind, made[0].shape))
            return True
        return False

    def _evaluate(
        self, nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto], outputs: Sequence[str]
    ) -> list[Array]:
        """Run nodes that depend on constants alone."""
        results = [helper.make_empty_tensor_value_info(o) for o in outputs]
        imports = [
            helper.make_opsetid(o.domain, min(o.version, self._opset) if o.domain in ("", "ai.onnx") else o.version)
            for o in self._skeleton.opset_import
        ]
        graph = helper.make_graph(nodes, "fold", [], results, constants)
        small = helper.make_model(graph, opset_imports=imports, ir_version=self._skeleton.ir_version)
        return run_once(small.SerializeToString(), {}, outputs)

    def _describe(self, tensor: onnx.TensorProto, weight: bool) -> None:
        size = int(np.prod(tensor.dims, dtype=np.int64)) * 8
        if weight or size > _SMALL:
            self._skeleton.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
        else:
            self._skeleton.graph.initializer.append(tensor)

    def _add(self, name: str, value: Array) -> None:
        self._values[name] = value
        tensor = numpy_helper.from_array(value, name)
        self._tensors[name] = tensor
        self._describe(tensor, False)

    def _rewrite(self, types: Mapping[str, TensorType]) -> bool:
        """Write out nodes of the table whose types are known. Returns whether there were any."""
        nodes = self._skeleton.graph.node
        if not any((node.domain, node.op_type) in REWRITES for node in nodes):
            return False
        makers = {o: node for node in nodes for o in node.output}
        written: list[onnx.NodeProto] = []
        changed = False
        for node in nodes:
            rule = REWRITES.get((node.domain, node.op_type))
            if rule is None:
                written.append(node)
                continue
            self._number += 1
            rewriter = Rewriter(node, types, self.value, makers, f"sanderling.d{self._number}.", self._name)
            if not rule(rewriter):
                written.append(node)
                continue
            changed = True
            written.extend(rewriter.nodes)
            for name, value in rewriter.constants.items():
                self._add(name, value)
        if changed:
            del nodes[:]
            nodes.extend(written)
        return changed

    def _fold(self, types: Mapping[str, TensorType]) -> bool:
        """Replace nodes whose inputs are all known by their values. Returns whether there were any."""
        known = set(self._tensors) - self._weights | {""}
        folded: list[onnx.NodeProto] = []
        values: dict[str, Array] = {}
        kept: list[onnx.NodeProto] = []
        for node in self._skeleton.graph.node:
            if node.op_type in ("Shape", "Size") and node.input[0] in types:
                shape = types[node.input[0]].shape
                attributes = {a.name: attribute(a) for a in node.attribute}
                part = np.array(shape, np.int64)[attributes.get("start", 0) : attributes.get("end", len(shape))]
                size = np.array(types[node.input[0]].size, np.int64)
                values[node.output[0]] = part if node.op_type == "Shape" else size
                known.add(node.output[0])
            elif known.issuperset(_reads(node)) and all(
                types[o].nbytes <= _FOLD_LIMIT if o in types else True for o in node.output
            ):
                folded.append(node)
                known.update(node.output)
            else:
                kept.append(node)
        if len(kept) == len(self._skeleton.graph.node):
            return False
        if folded:
            needed = {i for node in folded for i in _reads(node) if i}
            names = [o for node in folded for o in node.output if o]
            constants = [self._tensors[i] for i in needed if i in self._tensors]
            constants += [numpy_helper.from_array(v, n) for n, v in values.items() if n in needed]
            values |= dict(zip(names, self._evaluate(folded, constants, names), strict=True))
        used = {i for node in kept for i in _reads(node)} | {v.name for v in self._skeleton.graph.output}
        del self._skeleton.graph.node[:]
        self._skeleton.graph.node.extend(kept)
        for name, value in values.items():
            if name in used:
                self._add(name, value)
        return True


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, the insides of its branches included."""
    names = set(node.input)
    for given in node.attribute:
        if given.HasField("g"):
            names.update(name for inner in given.g.node for name in _reads(inner))
            names.update(value.name for value in given.g.output)
    return names
