"""Protobuf in and out: an ONNX model becomes a `Graph` with static shapes, a `Graph` becomes model bytes.

Strategy for reading: bring the model to one opset (so that a rule sees one spelling of each operator), turn Constant
nodes into constants, fix the batch size, then alternate shape inference with folding of whatever depends on
constants and shapes alone, until every tensor has a type. Planning only: this is where `onnx` is imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper

from .errors import ModelError, UnsupportedOperatorError
from .graph import Array, Body, Graph, Node, TensorType
from .spellings import read_spellings

#: The lowest opset that emitted graphs use; models below it are converted. 18 made axes of all reductions inputs.
OPSET = 18
#: The newest opset that the oldest supported runtime (1.20) reads.
NEWEST_OPSET = 21
#: The newest opset known to differ from that only in operators and element types that were added.
RELABELLED_OPSET = 24
IR_VERSION = 9
_CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
_FOLD_LIMIT = 64 * 2**20  # bytes of one folded value: folding must not blow a model up


def load_model(model: str | Path | bytes | bytearray) -> tuple[onnx.ModelProto, str]:
    """The parsed model and how to call it in messages. Raises ModelError."""
    name = "model" if isinstance(model, (bytes, bytearray)) else str(model)
    try:
        data = bytes(model) if isinstance(model, (bytes, bytearray)) else Path(model).read_bytes()
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({error.strerror}); check the path") from error
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's exception classes differ between its implementations
        raise ModelError(f"{name}: is not an ONNX model ({error})") from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{name}: is not an ONNX model with nodes and outputs")
    return proto, name


def normalize(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same model at `OPSET` or above, functions inlined, Constant nodes as initializers (float data raw)."""
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    for node in proto.graph.node:
        if node.op_type in _CONTROL_FLOW:
            raise UnsupportedOperatorError(
                node.op_type, node.name, name, "control flow is not differentiated; export the model without it"
            )
    version = opset_of(proto)
    if version < OPSET:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                proto = onnx.version_converter.convert_version(proto, OPSET)
        except Exception as error:
            raise ModelError(
                f"{name}: cannot be brought from opset {version} to {OPSET} ({error}); export it at opset {OPSET}"
            ) from error
    elif version > NEWEST_OPSET:
        proto = _relabelled(proto, version, name)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:]
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            value = _constant_value(node)
            result.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        else:
            result.graph.node.append(node)
    for position, tensor in enumerate(result.graph.initializer):
        if tensor.external_data:
            raise ModelError(f"{name}: weights are in another file; save the model with its weights inside")
        if not tensor.HasField("raw_data"):
            plain = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
            result.graph.initializer[position].CopyFrom(plain)
    names = {tensor.name for tensor in result.graph.initializer}
    inputs = [value for value in result.graph.input if value.name not in names]
    del result.graph.input[:]
    result.graph.input.extend(inputs)
    result.ir_version = min(max(result.ir_version, 8), IR_VERSION)
    return result


def _relabelled(proto: onnx.ModelProto, version: int, name: str) -> onnx.ModelProto:
    """A newer model as one of `NEWEST_OPSET`, which it is if that version has its operators and attributes.

    Up to `RELABELLED_OPSET`, operators that existed before only gained element types. Raises ModelError.
    """
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        known: set[str] = set()
        if version <= RELABELLED_OPSET and onnx.defs.has(node.op_type, NEWEST_OPSET):
            known = set(onnx.defs.get_schema(node.op_type, NEWEST_OPSET).attributes) | {""}
        if not known or not known.issuperset(a.name for a in node.attribute):
            raise ModelError(
                f"{name}: opset {version} is newer than {NEWEST_OPSET}, and operator {node.op_type} (node "
                f"{node.name!r}) may mean something else there; export the model at opset {NEWEST_OPSET}"
            )
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for imported in result.opset_import:
        if imported.domain in ("", "ai.onnx"):
            imported.version = NEWEST_OPSET
    return result


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the standard operators that a model imports."""
    return next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def _constant_value(node: onnx.NodeProto) -> Array:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.array(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.array(value, np.int64)
    raise ModelError(f"Constant node {node.name!r} holds {attribute.name}, which no trainable operator takes")


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
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


def static_batch(proto: onnx.ModelProto) -> int | None:
    """The batch size a model was exported with, where it is fixed; None where it is free."""
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].HasField("dim_value") and dims[0].dim_value > 0:
            return int(dims[0].dim_value)
    return None


def fix_sizes(proto: onnx.ModelProto, sizes: Mapping[str, Sequence[int]]) -> None:
    """Fix the free dimensions after the first of each named input to a sample's sizes; "x" may name an only input."""
    for value in proto.graph.input:
        known = sizes.get(value.name, sizes.get("x", ()) if len(proto.graph.input) == 1 else ())
        for dimension, size in zip(value.type.tensor_type.shape.dim[1:], known, strict=False):
            if not dimension.HasField("dim_value") or dimension.dim_value <= 0:
                dimension.dim_value = size


def _fix_batch(proto: onnx.ModelProto, batch: int, name: str) -> None:
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if not dims:
            raise ModelError(f"{name}: input {value.name!r} has no shape with a batch dimension; export it with one")
        dims[0].dim_value = batch
        for axis, dimension in enumerate(dims[1:], 1):
            if not dimension.HasField("dim_value") or dimension.dim_value <= 0:
                raise ModelError(
                    f"{name}: dimension {axis} of input {value.name!r} is not fixed, and training needs to know it: "
                    "give the sizes of a sample (`sizes`), or export the model with a fixed size"
                )
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")


def to_graph(model: onnx.ModelProto, batch: int | None, weights: frozenset[str], name: str) -> Graph:
    """The graph of a normalized model at a fixed batch size; None leaves its (static) input shapes as they are.

    `weights` are never folded, so that they stay inputs of what depends on them. Raises ModelError.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    if batch is not None:
        _fix_batch(proto, batch, name)
    for _ in range(8):
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
        except Exception as error:
            raise ModelError(f"{name}: shapes do not fit together at batch {batch} ({error})") from error
        types = _types(inferred)
        if not _fold(proto, types, weights):
            break
    nodes = [
        Node(
            node.op_type, tuple(node.input), tuple(node.output),
            {a.name: _attribute(a) for a in node.attribute}, node.name or f"#{i}", node.domain,
        )
        for i, node in enumerate(proto.graph.node)
    ]  # fmt: skip
    for node in nodes:
        for output in node.outputs:
            if output and output not in types:
                raise ModelError(
                    f"{name}: the shape of {output!r} (operator {node.op}, node {node.name!r}) is not known at batch "
                    f"{batch}; export the model with fixed sizes apart from the batch"
                )
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    graph = Graph(
        nodes, types, constants,
        [v.name for v in proto.graph.input], [v.name for v in proto.graph.output], name, opset_of(model),
    )  # fmt: skip
    return read_spellings(_without_dead(graph), weights)


def _types(proto: onnx.ModelProto) -> dict[str, TensorType]:
    types = {}
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        known = _type_of(value)
        if known is not None:
            types[value.name] = known
    for tensor in proto.graph.initializer:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).name
        types[tensor.name] = TensorType(dtype, tuple(tensor.dims))
    return types


def _fold(proto: onnx.ModelProto, types: Mapping[str, TensorType], weights: frozenset[str]) -> bool:
    """Replace nodes whose inputs are all known by their values. Returns whether there were any."""
    from .runtime import run_once

    known = {t.name for t in proto.graph.initializer} - weights | {""}
    folded: list[onnx.NodeProto] = []
    values: dict[str, Array] = {}
    kept: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type in ("Shape", "Size") and node.input[0] in types:
            shape = types[node.input[0]].shape
            attributes = {a.name: _attribute(a) for a in node.attribute}
            part = np.array(shape, np.int64)[attributes.get("start", 0) : attributes.get("end", len(shape))]
            size = np.array(types[node.input[0]].size, np.int64)
            values[node.output[0]] = part if node.op_type == "Shape" else size
            known.add(node.output[0])
        elif all(i in known for i in node.input) and all(
            types[o].nbytes <= _FOLD_LIMIT if o in types else True for o in node.output
        ):
            folded.append(node)
            known.update(node.output)
        else:
            kept.append(node)
    if len(kept) == len(proto.graph.node):
        return False
    if folded:
        have = {t.name: t for t in proto.graph.initializer}
        needed = {i for node in folded for i in node.input}
        names = [o for node in folded for o in node.output if o]
        graph = helper.make_graph(
            folded, "fold", [], [helper.make_empty_tensor_value_info(o) for o in names],
            [have[i] for i in needed if i in have]
            + [numpy_helper.from_array(v, n) for n, v in values.items() if n in needed],
        )  # fmt: skip
        small = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        values |= dict(zip(names, run_once(small.SerializeToString(), {}, names), strict=True))
    used = {i for node in kept for i in node.input} | {v.name for v in proto.graph.output}
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    proto.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items() if n in used)
    return True


def _without_dead(graph: Graph) -> Graph:
    """Drop nodes and constants that no output depends on."""
    alive = set(graph.outputs)
    nodes = []
    for node in reversed(graph.nodes):
        if alive.intersection(node.outputs):
            nodes.append(node)
            alive.update(i for i in node.inputs if i)
    graph.nodes = nodes[::-1]
    graph.constants = {n: v for n, v in graph.constants.items() if n in alive}
    return graph


def _node_proto(node: Node) -> onnx.NodeProto:
    inputs = list(node.inputs)
    attributes = {}
    for name, value in node.attributes.items():
        if isinstance(value, Body):
            attributes[name] = _body_proto(value, inputs)
            del inputs[len(inputs) - value.captured :]
        else:
            attributes[name] = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
    return helper.make_node(node.op, inputs, node.outputs, name=node.name, domain=node.domain, **attributes)


def _body_proto(body: Body, inputs: Sequence[str]) -> onnx.GraphProto:
    """The subgraph; what it captures is read from outside by its outer name, the end of the node's inputs."""
    own = len(body.inputs) - body.captured
    outer = dict(zip(body.inputs[own:], inputs[len(inputs) - body.captured :], strict=True))
    nodes = [replace(n, inputs=tuple(outer.get(i, i) for i in n.inputs)) for n in body.nodes]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(body.dtype))
    return helper.make_graph(
        [_node_proto(n) for n in nodes], "body",
        [helper.make_tensor_value_info(n, kind, None) for n in body.inputs[:own]],
        [helper.make_tensor_value_info(n, kind, None) for n in body.outputs],
        [numpy_helper.from_array(v, n) for n, v in body.constants.items()],
    )  # fmt: skip


def to_bytes(
    nodes: Iterable[Node],
    inputs: Mapping[str, TensorType],
    outputs: Mapping[str, TensorType | None],
    constants: Mapping[str, Array],
    opset: int,
    free_batch: bool = False,
) -> bytes:
    """A serialized model. With `free_batch`, the first dimension of inputs and outputs is the free "N"."""

    def info(name: str, kind: TensorType | None) -> onnx.ValueInfoProto:
        if kind is None:
            return helper.make_empty_tensor_value_info(name)
        shape: list[int | str] = ["N", *kind.shape[1:]] if free_batch else list(kind.shape)
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind.dtype)), shape)

    protos = []
    domains = {""}
    used: set[str] = set()
    for node in nodes:
        domains.add(node.domain)
        used.update(node.inputs)
        protos.append(_node_proto(node))
    graph = helper.make_graph(
        protos, "sanderling",
        [info(n, t) for n, t in inputs.items()], [info(n, t) for n, t in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in constants.items() if n in used],
    )  # fmt: skip
    imports = [helper.make_opsetid(d, opset if d == "" else 1) for d in sorted(domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="sanderling")
    data: bytes = model.SerializeToString()
    return data


def infer_types(model: bytes) -> dict[str, TensorType]:
    """Types of all tensors of a model whose inputs have static shapes, as far as inference gets."""
    return _types(onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model), data_prop=True))
