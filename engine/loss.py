"""Losses, written as ONNX nodes behind the model's output.

Strategy: every loss is a value per sample, weighted by the run-time input `SAMPLE_WEIGHT` and summed. The weights
are 1/N for the N samples of a batch and 0 for padding, so a batch of any size runs through sessions of one fixed
micro-batch, and gradients of micro-batches simply add up to the gradient of the mean.

Sources: distillation after Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import EngineError, ModelError
from .graph import Builder, Graph, Node, TensorType

SAMPLE_WEIGHT = "sanderling.sample_weight"
LABELS = "sanderling.labels"
TARGETS = "sanderling.targets"
TEACHER = "sanderling.teacher"
LOSS = "sanderling.loss"
#: What may stand between a softmax and the output; Dropout does nothing in an inference graph.
_SEEN_THROUGH = ("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


class _Writer:
    """Appends loss nodes with their types (float32 unless said)."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.builder = Builder("sanderling.l")

    def op(self, op: str, shape: tuple[int, ...], *inputs: str, **attributes: Any) -> str:
        """Append a node whose result has this shape."""
        name = self.builder.op(op, *inputs, **attributes)
        self.graph.types[name] = TensorType("float32", shape)
        return name

    def scalar(self, value: float) -> str:
        """A constant of rank 0."""
        return self._typed(self.builder.scalar(value))

    def ints(self, *values: int) -> str:
        """An int64 constant."""
        return self._typed(self.builder.ints(*values))

    def _typed(self, name: str) -> str:
        value = self.builder.constants[name]
        self.graph.types[name] = TensorType(value.dtype.name, value.shape)
        return name

    def input(self, name: str, kind: TensorType) -> str:
        """A new run-time input."""
        self.graph.types[name] = kind
        self.graph.inputs.append(name)
        return name


def _per_sample(w: _Writer, values: str, shape: tuple[int, ...], mean_over: int) -> str:
    """Sum everything but the batch and divide by a count."""
    batch = shape[0]
    if len(shape) > 1:
        values = w.op("ReduceSum", (batch,), values, w.ints(*range(1, len(shape))), keepdims=0)
    return w.op("Mul", (batch,), values, w.scalar(1 / mean_over)) if mean_over != 1 else values


def _logits(w: _Writer, output: str) -> str:
    """The output, or what a final softmax over the classes is applied to, in the output's shape.

    Nodes behind the softmax that keep values and classes are seen through: exporters and the conversion of old
    opsets leave an Identity or a Reshape there, and a softmax of a softmax would hardly learn.
    """
    shape = w.graph.types[output].shape
    producers = {o: n for n in (*w.graph.nodes, *w.builder.nodes) for o in n.outputs}
    name = output
    while (node := producers.get(name)) is not None:
        given = w.graph.types[node.inputs[0]]
        rank = len(given.shape)
        if not rank or not shape or given.shape[-1] != shape[-1]:
            break
        if node.op == "Softmax" and node.attributes.get("axis", -1) in (-1, rank - 1) and given.dtype == "float32":
            if given.shape == shape:
                return node.inputs[0]
            return w.op("Reshape", shape, node.inputs[0], w.ints(*shape))
        if node.op not in _SEEN_THROUGH:
            break
        name = node.inputs[0]
    return output


def _classes(graph: Graph, output: str, loss: str) -> tuple[int, ...]:
    shape = graph.types[output].shape
    if len(shape) < 2 or shape[-1] < 2:
        raise ModelError(
            f"{graph.source}: {loss} needs logits of shape [N, classes], output {output!r} has shape {list(shape)}; "
            "use mse, or choose another output"
        )
    return shape


def _hard(w: _Writer, log_probabilities: str, shape: tuple[int, ...]) -> str:
    labels = w.input(LABELS, TensorType("int64", shape[:-1]))
    ends = w.builder.constant(np.array([0, 1], np.float32))
    w.graph.types[ends] = TensorType("float32", (2,))
    one_hot = w.op("OneHot", shape, labels, w.ints(shape[-1]), ends, axis=-1)
    picked = w.op("Mul", shape, log_probabilities, one_hot)
    return _per_sample(w, w.op("Neg", shape, picked), shape, int(np.prod(shape[1:-1])))


def _cross_entropy(w: _Writer, output: str, options: dict[str, float]) -> str:
    logits = _logits(w, output)
    shape = _classes(w.graph, logits, "cross_entropy")
    return _hard(w, w.op("LogSoftmax", shape, logits, axis=-1), shape)


def _mse(w: _Writer, output: str, options: dict[str, float]) -> str:
    shape = w.graph.types[output].shape
    targets = w.input(TARGETS, TensorType("float32", shape))
    difference = w.op("Sub", shape, output, targets)
    square = w.op("Mul", shape, difference, difference)
    return _per_sample(w, square, shape, int(np.prod(shape[1:])))


def _distillation(w: _Writer, output: str, options: dict[str, float]) -> str:
    temperature, hard_weight = options["temperature"], options["hard_weight"]
    logits = _logits(w, output)
    shape = _classes(w.graph, logits, "distillation")
    inverse = w.scalar(1 / temperature)
    teacher = w.op("Mul", shape, w.input(TEACHER, TensorType("float32", shape)), inverse)
    wanted = w.op("LogSoftmax", shape, teacher, axis=-1)
    given = w.op("LogSoftmax", shape, w.op("Mul", shape, logits, inverse), axis=-1)
    gap = w.op("Mul", shape, w.op("Exp", shape, wanted), w.op("Sub", shape, wanted, given))
    soft = _per_sample(w, gap, shape, int(np.prod(shape[1:-1])))
    # Hinton's factor: gradients of the soft part shrink with the square of the temperature
    soft = w.op("Mul", shape[:1], soft, w.scalar(temperature**2 * (1 - hard_weight)))
    if hard_weight == 0:
        return soft
    hard = _hard(w, w.op("LogSoftmax", shape, logits, axis=-1), shape)
    return w.op("Add", shape[:1], soft, w.op("Mul", shape[:1], hard, w.scalar(hard_weight)))


#: Loss -> (its writer, default options).
LOSSES: dict[str, tuple[Callable[[_Writer, str, dict[str, float]], str], dict[str, float]]] = {
    "cross_entropy": (_cross_entropy, {}),
    "mse": (_mse, {}),
    "distillation": (_distillation, {"temperature": 2.0, "hard_weight": 0.5}),
}


def loss_options(loss: str, given: dict[str, float]) -> dict[str, float]:
    """The options of a loss, defaults filled in. Raises EngineError for what does not exist or is out of range."""
    if loss not in LOSSES:
        raise EngineError(f"there is no loss {loss!r}; choose one of {', '.join(LOSSES)}")
    unknown = set(given) - set(LOSSES[loss][1])
    if unknown:
        raise EngineError(f"loss {loss} has no option {sorted(unknown)}; it has {sorted(LOSSES[loss][1]) or 'none'}")
    options = LOSSES[loss][1] | given
    if loss == "distillation" and not (options["temperature"] > 0 and 0 <= options["hard_weight"] <= 1):
        raise EngineError("distillation needs a temperature above 0 and a hard_weight between 0 and 1")
    return options


def attach_loss(graph: Graph, loss: str, options: dict[str, float], output: str | None) -> str:
    """Append a loss to the graph, which then ends in `LOSS`; returns the name of the model output that it reads."""
    chosen = graph.outputs[0] if output is None else output
    if chosen not in graph.outputs:
        raise ModelError(f"{graph.source}: has no output {chosen!r}; it has {', '.join(graph.outputs)}")
    batch = graph.types[chosen].shape[0] if graph.types[chosen].shape else 0
    if batch != graph.types[graph.inputs[0]].shape[0]:
        raise ModelError(f"{graph.source}: the first dimension of output {chosen!r} is not the batch")
    writer = _Writer(graph)
    read, kind = chosen, graph.types[chosen]
    if not kind.floating:
        others = [o for o in graph.outputs if graph.types[o].floating]
        raise ModelError(
            f"{graph.source}: output {chosen!r} is {kind.dtype}, and only real numbers can be trained; "
            + (f"choose another output ({', '.join(others)})" if others else "export the model before this conversion")
        )
    if kind.dtype != "float32":  # losses are computed in float32
        read = writer.op("Cast", kind.shape, chosen, to=1)
    per_sample = LOSSES[loss][0](writer, read, options)
    weight = writer.input(SAMPLE_WEIGHT, TensorType("float32", (batch,)))
    weighted = writer.op("Mul", (batch,), per_sample, weight)
    total = writer.op("ReduceSum", (), weighted, writer.ints(0), keepdims=0)
    graph.nodes += [*writer.builder.nodes, Node("Identity", (total,), (LOSS,), name="loss")]
    graph.types[LOSS] = TensorType("float32", ())
    graph.constants |= writer.builder.constants
    graph.outputs = [LOSS]
    return chosen
