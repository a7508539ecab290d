"""The table of gradients: an entry per operator and input; the walker looks entries up and knows no operator.

Strategy: a rule is a function of a `Site` (one node, the gradient of its outputs, a builder) that appends nodes and
returns the name of the gradient of one input, in that input's shape. The rules of one node share their work: a node
equal to one that the site has written before is not written again, so a rule may call the helpers that another rule of
the same node calls too (`shared` also spares a long helper's own time). Operators through which no gradient flows are
listed in `STOPS`, with the reason; what is in neither table is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np

from ..errors import UnsupportedOperatorError
from ..graph import Array, Builder, Graph, Node

T = TypeVar("T")


class Site:
    """One node of the forward graph while the gradients of its inputs are written."""

    def __init__(self, graph: Graph, builder: Builder, node: Node, gradients: Sequence[str | None]) -> None:
        self.graph = graph
        self.builder = builder
        self.node = node
        self.gradients = gradients
        self._written: dict[tuple[str, tuple[str, ...], str], str] = {}
        self._parts: dict[tuple[str, int, int], tuple[str, ...]] = {}
        self._shared: dict[Callable[[Site], Any], Any] = {}

    @property
    def g(self) -> str:
        """The gradient of the first output."""
        gradient = self.gradients[0]
        if gradient is None:
            self.refuse("only a secondary output is used")
        return gradient

    @property
    def y(self) -> str:
        """The first output."""
        return self.node.outputs[0]

    def x(self, index: int = 0) -> str:
        """An input."""
        return self.node.inputs[index]

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] != ""

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an input."""
        return self.graph.types[self.node.inputs[index]].shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.graph.types[self.node.outputs[0]].shape

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.attributes.get(name, default)

    def value(self, index: int) -> Array:
        """The value of an input that must be known when planning (axes, pads, indices)."""
        if self.node.inputs[index] not in self.graph.constants:
            self.refuse(f"its input {index} is only known at run time")
        return self.graph.constants[self.node.inputs[index]]

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node, unless this site has an equal one; its first output."""
        if not all(isinstance(v, (int, float, str, list, tuple)) for v in attributes.values()):
            return self.builder.op(op, *inputs, **attributes)
        key = op, inputs, repr(sorted(attributes.items()))
        if key not in self._written:
            self._written[key] = self.builder.op(op, *inputs, **attributes)
        return self._written[key]

    def parts(self, tensor: str, axis: int, count: int) -> tuple[str, ...]:
        """Equal parts of a tensor along an axis; the tensor itself for one."""
        key = tensor, axis, count
        if key not in self._parts:
            whole = (tensor,)
            self._parts[key] = (
                whole if count == 1 else self.builder.multi("Split", whole, count, axis=axis, num_outputs=count)
            )
        return self._parts[key]

    def shared(self, work: Callable[[Site], T]) -> T:
        """The result of `work(site)`, which is called once however many rules of the node ask for it."""
        if work not in self._shared:
            self._shared[work] = work(self)
        result: T = self._shared[work]
        return result

    def ints(self, *values: int) -> str:
        """An int64 constant."""
        return self.builder.ints(*values)

    def scalar(self, value: float) -> str:
        """A constant of rank 0, in the element type of the node."""
        output = next(o for o in self.node.outputs if o)
        return self.builder.constant(np.array(value, self.graph.types[output].dtype))

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """Append a Reshape to a static shape."""
        return self.op("Reshape", tensor, self.ints(*shape))

    def total(self, tensor: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """Append a ReduceSum over axes; nothing for no axes."""
        return self.op("ReduceSum", tensor, self.ints(*axes), keepdims=keepdims) if axes else tensor

    def unbroadcast(self, tensor: str, shape: Sequence[int], index: int) -> str:
        """Sum a tensor of the given shape down to the shape of input `index`, which was broadcast to it."""
        target = self.shape(index)
        return self.sum_to(tensor, shape, target)

    def sum_to(self, tensor: str, shape: Sequence[int], target: Sequence[int]) -> str:
        """Sum a tensor down to `target`, a shape that broadcasts to its own."""
        lead = len(shape) - len(target)
        axes = [*range(lead), *(lead + i for i, n in enumerate(target) if n == 1 and shape[lead + i] != 1)]
        summed = self.total(tensor, axes)
        return self.reshape(summed, target) if lead else summed

    def refuse(self, reason: str) -> NoReturn:
        """This node cannot be trained through."""
        raise UnsupportedOperatorError(self.node.op, self.node.name, self.graph.source, reason)


Rule = Callable[[Site], str]


@dataclass(frozen=True, slots=True)
class Entry:
    """The rules of one operator: by input position, and one for every further position (`rest`)."""

    family: str
    rules: dict[int, Rule]
    rest: Callable[[Site, int], str] | None = None

    def rule(self, index: int) -> Rule | None:
        """The rule for an input, if there is one."""
        if index in self.rules:
            return self.rules[index]
        rest = self.rest
        return None if rest is None else lambda site: rest(site, index)


#: Operator -> its gradients. Filled by the decorators below when the family files are imported.
RULES: dict[str, Entry] = {}
#: Operator -> why no gradient flows through it. Its inputs count as constants.
STOPS: dict[str, str] = {}
#: Operators whose integers stand for real numbers: a gradient flows through them, and on through integers.
QUANTIZERS: set[str] = set()
#: Integer types that a value may be quantized to.
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")


def widens(graph: Graph, node: Node) -> bool:
    """Whether a Cast takes every integer of its input to the same integer."""
    kinds = [graph.types[name].dtype for name in (node.inputs[0], node.outputs[0])]
    if not all(kind in INTEGERS for kind in kinds):
        return False
    narrow, wide = (np.iinfo(kind) for kind in kinds)
    return bool(wide.min <= narrow.min and narrow.max <= wide.max)


def integer_remedy(op: str) -> str:
    """What to do about an operator that computes with quantized integers; empty for any other."""
    if not (op.startswith(("QLinear", "DynamicQuantize", "QGemm", "QAttention", "MatMulNBits"))
            or op.endswith(("Integer", "IntegerToFloat"))):  # fmt: skip
        return ""
    return (
        "it computes with integers, for inference only; quantize the float model statically in the QDQ format "
        "(onnxruntime.quantization.quantize_static with quant_format=QuantFormat.QDQ), which trains"
    )


#: Operator -> why it is refused where a gradient would have to pass.
REFUSED: dict[str, str] = {}


def gradient(op: str, index: int) -> Callable[[Rule], Rule]:
    """Register the gradient with respect to one input of an operator."""

    def register(rule: Rule) -> Rule:
        entry = RULES.setdefault(op, Entry(rule.__module__.rpartition(".")[2], {}))
        if index in entry.rules:
            raise ValueError(f"{op} has two rules for input {index}")
        entry.rules[index] = rule
        return rule

    return register


def gradient_each(op: str) -> Callable[[Callable[[Site, int], str]], Callable[[Site, int], str]]:
    """Register one rule for all inputs of an operator that takes any number of them."""

    def register(rule: Callable[[Site, int], str]) -> Callable[[Site, int], str]:
        RULES[op] = Entry(rule.__module__.rpartition(".")[2], {}, rule)
        return rule

    return register


def stop(reason: str, *ops: str) -> None:
    """List operators through which no gradient flows."""
    STOPS.update(dict.fromkeys(ops, reason))


def refused(reason: str, *ops: str) -> None:
    """List operators that have no rule, though a gradient could pass."""
    REFUSED.update(dict.fromkeys(ops, reason))
