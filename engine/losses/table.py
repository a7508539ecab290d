"""What a loss is, and the writer of its nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import EngineError, ModelError
from ..graph import Array, Builder, Graph, TensorType

SAMPLE_WEIGHT = "sanderling.sample_weight"
LABELS = "sanderling.labels"
TARGETS = "sanderling.targets"
TEACHER = "sanderling.teacher"
LOSS = "sanderling.loss"

OptionValue = float | tuple[float, ...]
Options = dict[str, OptionValue]


class Writer:
    """Appends loss nodes with their types (float32 unless said)."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.builder = Builder("sanderling.l")

    def op(self, op: str, shape: tuple[int, ...], *inputs: str, **attributes: Any) -> str:
        """Append a node whose result has this shape."""
        name = self.builder.op(op, *inputs, **attributes)
        self.graph.types[name] = TensorType("float32", shape)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.graph.types[name].shape

    def constant(self, value: Array) -> str:
        """A constant."""
        return self._typed(self.builder.constant(value))

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

    def input(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> str:
        """A new run-time input."""
        self.graph.types[name] = TensorType(dtype, shape)
        self.graph.inputs.append(name)
        return name

    def per_sample(self, values: str, divisor: float = 1) -> str:
        """Sum everything but the batch, and divide."""
        shape = self.shape(values)
        if len(shape) > 1:
            axes = self.ints(*range(1, len(shape)))
            values = self.op("ReduceSum", shape[:1], values, axes, keepdims=0)
        return self.op("Mul", shape[:1], values, self.scalar(1 / divisor)) if divisor != 1 else values

    def mean_per_sample(self, values: str) -> str:
        """Mean over everything but the batch."""
        return self.per_sample(values, int(np.prod(self.shape(values)[1:], dtype=np.int64)))


class Loss(ABC):
    """One loss: what it writes behind the model's output, and what it makes of a batch's targets."""

    #: Options with their defaults.
    defaults: ClassVar[Options] = {}

    @abstractmethod
    def write(self, w: Writer, output: str, options: Options) -> str:
        """Append nodes and inputs; returns the name of one value per sample, [N]. Raises ModelError, EngineError."""

    def whole(self, graph: Graph, output: str) -> str:
        """Why the loss exists for exactly one batch only; empty where it is a sum over the samples."""
        return ""

    def check_options(self, options: Options) -> None:
        """Raises EngineError for options that make no sense."""
        assert options.keys() == self.defaults.keys()

    def prepare(self, targets: dict[str, Array], options: Mapping[str, OptionValue], classes: int) -> float:
        """Check the targets {input name: [N, ...]} of a batch (replacing arrays where the graph wants others), and
        return what the sum of all samples' values is divided by. Raises DataError."""
        return float(len(next(iter(targets.values()))))


def number(options: Mapping[str, OptionValue], name: str) -> float:
    """An option that is one number. Raises EngineError."""
    value = options[name]
    if isinstance(value, tuple):
        raise EngineError(f"{name} must be one number, not {len(value)}")
    return float(value)


def several(options: Mapping[str, OptionValue], name: str) -> tuple[float, ...]:
    """An option that is one number or some."""
    value = options[name]
    return value if isinstance(value, tuple) else (float(value),)


#: What may stand between an activation and the output; Dropout does nothing in an inference graph.
_SEEN_THROUGH = (
    "Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip
#: Operators whose results have their channels at axis 1, and those that mix the last axis.
_CHANNELS_FIRST = (
    "Conv", "ConvTranspose", "Resize", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization",
    "InstanceNormalization", "GroupNormalization",
)  # fmt: skip
_CHANNELS_LAST = ("Gemm", "MatMul", "LSTM", "GRU", "RNN", "Transpose", "LayerNormalization", "Gather")


def _producers(w: Writer) -> dict[str, Any]:
    return {o: n for n in (*w.graph.nodes, *w.builder.nodes) for o in n.outputs}


def class_axis(w: Writer, output: str, options: Mapping[str, OptionValue], loss: str) -> int:
    """Which axis of the output holds the classes: as the option `axis` says; if that is 0, the axis 1 of what comes
    from convolutions, else the last. Raises ModelError, EngineError."""
    shape = w.shape(output)
    asked = int(number(options, "axis"))
    axis = asked if asked > 0 else len(shape) - 1 if asked == -1 or not asked else asked + len(shape)
    if asked == 0 and len(shape) > 2:
        producers, name = _producers(w), output
        while (node := producers.get(name)) is not None and node.op not in _CHANNELS_LAST:
            if node.op in _CHANNELS_FIRST:
                axis = 1
                break
            name = next((i for i in node.inputs if i in producers), "")
    if not 1 <= axis < max(len(shape), 2):
        raise EngineError(f"axis={asked}: output {output!r} of shape {list(shape)} has no such axis behind the batch")
    if len(shape) < 2 or shape[axis] < 2:
        raise ModelError(
            f"{w.graph.source}: {loss} needs logits of shape [N, classes, ...], output {output!r} has shape "
            f"{list(shape)}; use binary_cross_entropy or mse, or choose another output"
        )
    return axis


def before_activation(w: Writer, output: str, op: str, axis: int | None = None) -> str:
    """The output, or what a final activation (Softmax over an axis, Sigmoid) is applied to, in the output's shape.

    Nodes behind it that keep values and axis are seen through: exporters and the conversion of old opsets leave an
    Identity or a Reshape there, and a softmax of a softmax would hardly learn.
    """
    shape = w.shape(output)
    producers = _producers(w)
    name = output
    while (node := producers.get(name)) is not None:
        given = w.graph.types[node.inputs[0]]
        rank = len(given.shape)
        same = given.shape == shape or (axis in (None, len(shape) - 1) and given.shape[-1:] == shape[-1:])
        if not rank or not shape or not same:
            break
        at = (node.attributes.get("axis", -1) + rank) % rank
        fits = axis is None or at == (axis if given.shape == shape else rank - 1)
        if node.op == op and fits and given.dtype == "float32":
            if given.shape == shape:
                return str(node.inputs[0])
            return w.op("Reshape", shape, node.inputs[0], w.ints(*shape))
        if node.op not in _SEEN_THROUGH:
            break
        name = node.inputs[0]
    return output
