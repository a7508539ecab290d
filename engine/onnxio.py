"""Protobuf in and out: an ONNX model becomes a `Graph` with static shapes, a `Graph` becomes model bytes.

Strategy for reading: bring the model to one opset (so that a rule sees one spelling of each operator), turn Constant
nodes into constants, fix the batch size, then fold whatever depends on constants and shapes alone and write fused
operators out (`folding.py`), until every tensor has a type. Planning only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper

from .contrib import MICROSOFT
from .errors import ModelError, UnsupportedOperatorError
from .folding import Folding, attribute, types_of
from .graph import OURS, Array, Body, Graph, Node, TensorType
from .halves import widen
from .layouts import states_once, steps_first
from .spellings import read_spellings

#: The lowest opset that emitted graphs use; models below it are converted. 18 made axes of all reductions inputs.
OPSET = 18
#: The newest opset that the oldest supported runtime (1.20) reads.
NEWEST_OPSET = 21
#: The newest opset known to differ from that only in operators, attributes and element types that were added.
LAST_OPSET = 28
IR_VERSION = 9
#: Control flow -> what is special about it.
_CONTROL_FLOW = {
    "If": ", and its condition is only known at run time; export the model without it",
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), "; export the model without it"),
}
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
#: Operators whose result is another one each time: a recomputed segment would not repeat it.
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def read_model(model: str | Path | bytes | bytearray) -> tuple[bytes, str]:
    """The bytes of a model and how to call it in messages. Raises ModelError."""
    name = "model" if isinstance(model, (bytes, bytearray)) else str(model)
    try:
        return (bytes(model) if isinstance(model, (bytes, bytearray)) else Path(model).read_bytes()), name
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({error.strerror}); check the path") from error


def load_model(model: str | Path | bytes | bytearray) -> tuple[onnx.ModelProto, str]:
    """The parsed model and how to call it in messages. Raises ModelError."""
    data, name = read_model(model)
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
    _refuse_control_flow(proto, name)
    version = opset_of(proto)
    proto, least = _standard_quantizers(proto)
    if version < least:
        proto = _converted(proto, version, name, least)
    elif version > LAST_OPSET:
        raise ModelError(
            f"{name}: opset {version} is newer than {LAST_OPSET}, the last one that is known here; export the model at "
            f"opset {NEWEST_OPSET}"
        )
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
    widen(result, name)
    steps_first(result)
    states_once(result)
    return result


def _refuse_control_flow(proto: onnx.ModelProto, name: str) -> None:
    """Raise UnsupportedOperatorError for control flow, but for an If that shapes and constants decide."""
    decided = {t.name for t in proto.graph.initializer} | {""}
    for node in proto.graph.node:
        if node.op_type in _CONTROL_FLOW and not (node.op_type == "If" and node.input[0] in decided):
            raise UnsupportedOperatorError(
                node.op_type, node.name, name, f"control flow is not differentiated{_CONTROL_FLOW[node.op_type]}"
            )
        if node.op_type in ("Shape", "Size") or decided.issuperset(node.input):
            decided.update(node.output)


def _standard_quantizers(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model with the runtime's own spelling of quantizers as the standard's, and the opset that they need.

    The runtime had those of 16 bits before the standard did.
    """
    if all(n.domain != MICROSOFT or n.op_type not in _QUANTIZERS for n in proto.graph.node):
        return proto, OPSET
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    wide = {t.name for t in proto.graph.initializer if t.data_type in (onnx.TensorProto.INT16, onnx.TensorProto.UINT16)}
    least = OPSET
    for node in result.graph.node:
        if node.domain == MICROSOFT and node.op_type in _QUANTIZERS:
            node.domain = ""
            if wide.intersection(node.input):
                least = NEWEST_OPSET
    return result, least


def _converted(proto: onnx.ModelProto, version: int, name: str, target: int) -> onnx.ModelProto:
    """The model at the opset `target`. Raises ModelError."""
    early = [n for n in proto.graph.node if n.op_type == "LayerNormalization" and not n.domain and version < 17]
    copied = onnx.ModelProto()
    if early:  # the runtime has had it in the standard's domain before the standard did
        copied.CopyFrom(proto)
        proto = copied
        for node in proto.graph.node:
            if node.op_type == "LayerNormalization" and not node.domain:
                node.domain = MICROSOFT
        if all(o.domain != MICROSOFT for o in proto.opset_import):
            proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = onnx.version_converter.convert_version(proto, target)
    except Exception as error:
        raise ModelError(
            f"{name}: cannot be brought from opset {version} to {target} ({error}); export it at opset {target}"
        ) from error
    for node in result.graph.node:
        if early and node.op_type == "LayerNormalization" and node.domain == MICROSOFT:
            node.domain = ""
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

    `weights` are never folded, so that they stay inputs of what depends on them. Raises ModelError,
    UnsupportedOperatorError.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    if batch is not None:
        _fix_batch(proto, batch, name)
    version = opset_of(proto)
    folding = Folding(proto, weights, name, min(version, NEWEST_OPSET))
    types = folding.run()
    nodes = [
        Node(
            node.op_type, tuple(node.input), tuple(node.output),
            {a.name: attribute(a) for a in node.attribute}, node.name or f"#{i}", node.domain,
        )
        for i, node in enumerate(folding.nodes)
    ]  # fmt: skip
    constants = {i: v for node in nodes for i in node.inputs if (v := folding.value(i)) is not None}
    outputs = [v.name for v in proto.graph.output]
    constants |= {o: v for o in outputs if (v := folding.value(o)) is not None}
    graph = _without_dead(
        Graph(nodes, types, constants, [v.name for v in proto.graph.input], outputs, name, min(version, NEWEST_OPSET))
    )
    _check(graph, version, batch)
    return read_spellings(graph, weights)


def _check(graph: Graph, version: int, batch: int | None) -> None:
    """Raise unless every node is one that opset `NEWEST_OPSET` has, draws no numbers, and has known shapes."""
    for node in graph.nodes:
        if node.op in _CONTROL_FLOW:
            raise UnsupportedOperatorError(
                node.op, node.name, graph.source, f"control flow is not differentiated{_CONTROL_FLOW[node.op]}"
            )
        if node.op in _RANDOM:
            raise UnsupportedOperatorError(
                node.op, node.name, graph.source, "it draws random numbers; export the model for inference"
            )
        for output in node.outputs:
            if output and output not in graph.types:
                raise ModelError(
                    f"{graph.source}: the shape of {output!r} (operator {node.op}, node {node.name!r}) is not known "
                    f"at batch {batch}; export the model with fixed sizes apart from the batch"
                )
        if version > NEWEST_OPSET and node.domain in ("", "ai.onnx"):
            known: set[str] = set()
            if onnx.defs.has(node.op, NEWEST_OPSET):
                known = set(onnx.defs.get_schema(node.op, NEWEST_OPSET).attributes) | {""}
            if not known.issuperset({*node.attributes, ""}):
                raise UnsupportedOperatorError(
                    node.op, node.name, graph.source,
                    f"opset {version} is newer than {NEWEST_OPSET}, and it may mean something else there; export the "
                    f"model at opset {NEWEST_OPSET}",
                )  # fmt: skip


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
    own: list[Node] = []  # no inference knows their results
    for node in nodes:
        domains.add(node.domain)
        own += [node] if node.domain == OURS else []
        used.update(node.inputs)
        protos.append(_node_proto(node))
    graph = helper.make_graph(
        protos, "sanderling",
        [info(n, t) for n, t in inputs.items()], [info(n, t) for n, t in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in constants.items() if n in used],
        value_info=[
            info(n.outputs[0], TensorType("float32", tuple(n.attributes["shape"])))
            for n in own if n.outputs[0] not in outputs
        ],
    )  # fmt: skip
    imports = [helper.make_opsetid(d, opset if d == "" else 1) for d in sorted(domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="sanderling")
    data: bytes = model.SerializeToString()
    return data


def infer_types(model: bytes) -> dict[str, TensorType]:
    """Types of all tensors of a model whose inputs have static shapes, as far as inference gets."""
    return types_of(onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model), data_prop=True))
