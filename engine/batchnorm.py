"""Batch normalization in training mode: spelled out, its running statistics kept up, and back in inference form.

Strategy: the runtime's own operator is not used in this mode, because what it gives may depend on which buffers it
shares (onnxruntime issue 29790). Reading a model (`spell_out`) puts the statistics of the batch in the place of the
running ones: their mean and variance as ordinary nodes, named so that the gradient rule knows that they depend on
the same input and goes through all three ways at once. The new running statistics are further tensors, `UPDATE` +
name, which a step writes and the trainer copies once the step is taken. The exported model is the inference form.

A model with such a node mixes samples: a loss is that of exactly the batch it was computed on (`mixes_samples`).

Source: Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training" (2015); running variance without
bias, as PyTorch keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ModelError, UnsupportedOperatorError
from .graph import DETACHED, Array, Builder, Graph, Node, TensorType
from .plan import UPDATE

if TYPE_CHECKING:
    import onnx


def running_statistics(proto: onnx.ModelProto) -> list[str]:
    """The initializers that hold running statistics of nodes in training mode, in the order of the file."""
    read = {i for n in proto.graph.node if _in_training(n) for i in n.input[3:5]}
    return [t.name for t in proto.graph.initializer if t.name in read]


def inference_form(proto: onnx.ModelProto) -> bytes:
    """The model with its batch normalization in inference form: running statistics, one output."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        if _in_training(node):
            del node.output[1:]
            kept = [a for a in node.attribute if a.name not in ("training_mode", "momentum")]
            del node.attribute[:]
            node.attribute.extend(kept)
    data: bytes = copy.SerializeToString()
    return data


def _in_training(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute)


def spell_out(graph: Graph) -> None:
    """Put the statistics of the batch into every node in training mode; add the new running ones as tensors.

    Raises ModelError where there is one value per channel only, or where other nodes read the running statistics, and
    UnsupportedOperatorError for dropout in training mode.
    """
    _refuse_dropout(graph)
    nodes: list[Node] = []
    latest: dict[str, str] = {}  # a layer that runs twice moves its statistics twice
    places: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.op != "BatchNormalization" or not node.attributes.get("training_mode", 0):
            nodes.append(node)
            continue
        lost = set(node.outputs[1:]) - {""}
        if lost.intersection(graph.outputs) or any(lost.intersection(n.inputs) for n in graph.nodes):
            raise ModelError(
                f"{graph.source}: {node.op} (node {node.name!r}) is in training mode and its running statistics are "
                "read in the model; export it so that only the layer itself uses them"
            )
        written = _Writer(graph, f"{DETACHED}norm{index}.")
        mean, variance, values = _statistics(written, node)
        nodes += written.builder.nodes
        attributes = {"epsilon": node.attributes.get("epsilon", 1e-5)}
        nodes.append(Node(node.op, (*node.inputs[:3], mean, variance), node.outputs[:1], attributes, node.name))
        running = _Writer(graph, f"{DETACHED}norm{index}.new.")
        keep = node.attributes.get("momentum", 0.9)
        for name, value, share in ((node.inputs[3], mean, 1.0), (node.inputs[4], variance, values / (values - 1))):
            latest[name] = running.blend(latest.get(name, name), keep, value, (1 - keep) * share)
        nodes += running.builder.nodes
        places |= dict.fromkeys(node.inputs[3:5], len(nodes))
    for name in sorted(latest, key=lambda n: -places[n]):
        nodes.insert(places[name], Node("Identity", (latest[name],), (UPDATE + name,), name=UPDATE + name))
        graph.types[UPDATE + name] = graph.types[name]
    graph.nodes = nodes


def _refuse_dropout(graph: Graph) -> None:
    """Dropout that drops would do so differently in each session of a step."""
    for node in graph.nodes:
        if node.op != "Dropout" or len(node.inputs) < 3 or not node.inputs[2]:
            continue
        ratio, training = (graph.constants.get(n) for n in node.inputs[1:3])
        if (training is None or training.any()) and (ratio is None or ratio.any()):
            raise UnsupportedOperatorError(
                node.op, node.name, graph.source,
                "it is in training mode, and what it drops could not be repeated; switch the dropout layers off before "
                "the export (`eval()` on them alone, or a ratio of 0), or export the model for inference",
            )  # fmt: skip


class _Writer:
    """Appends nodes to be put into a graph, with their types."""

    def __init__(self, graph: Graph, prefix: str) -> None:
        self.graph, self.builder = graph, Builder(prefix)

    def op(self, op: str, kind: TensorType, *inputs: str, **attributes: Any) -> str:
        """Append a node."""
        name = self.builder.op(op, *inputs, **attributes)
        self.graph.types[name] = kind
        return name

    def constant(self, value: Array) -> str:
        """A constant."""
        name = self.builder.constant(value)
        self.graph.constants[name] = value
        self.graph.types[name] = TensorType(value.dtype.name, value.shape)
        return name

    def blend(self, old: str, keep: float, new: str, share: float) -> str:
        """keep x old + share x new."""
        kind = self.graph.types[new]
        scaled = [
            self.op("Mul", kind, t, self.constant(np.array(f, kind.dtype))) for t, f in ((old, keep), (new, share))
        ]
        return self.op("Add", kind, *scaled)


def _statistics(w: _Writer, node: Node) -> tuple[str, str, int]:
    """Mean and variance of the batch by channel, and of how many values."""
    kind = w.graph.types[node.inputs[0]]
    channels = kind.shape[1]
    values = kind.size // max(channels, 1)
    if values < 2:
        raise ModelError(
            f"{w.graph.source}: {node.op} (node {node.name!r}) is in training mode and sees one value per channel, "
            "which has no variance; use a larger batch"
        )
    others = w.constant(np.array([0, *range(2, len(kind.shape))], np.int64))
    along = TensorType(kind.dtype, (channels,))
    wide = TensorType(kind.dtype, (1, channels, *(1 for _ in kind.shape[2:])))
    mean = w.op("ReduceMean", along, node.inputs[0], others, keepdims=0)
    centred = w.op("Sub", kind, node.inputs[0], w.op("Reshape", wide, mean, w.constant(np.array(wide.shape, np.int64))))
    variance = w.op("ReduceMean", along, w.op("Mul", kind, centred, centred), others, keepdims=0)
    return mean, variance, values


def mixes_samples(graph: Graph) -> str:
    """What makes the loss of a sample depend on the others of its batch, for people; empty where nothing does."""
    for node in graph.nodes:
        if node.op == "BatchNormalization" and node.inputs[3].startswith(DETACHED):
            return f"{node.op} (node {node.name!r}) is in training mode and normalizes over the batch"
    return ""
