"""Operators that a model spells out in several are read as the one they spell.

Strategy: activations are recognized by their values, not by the shape of the graph, so that every exporter's spelling
is found. For each tensor the elementwise nodes behind it are followed back to a single tensor x; what lies between is
a function of one number, evaluated in double precision on points over the real line and compared with the functions
that the runtime has an operator for. One operator instead of four to eight saves as many passes over the tensor,
forward and backward. Nothing is approximated: the functions agree to the rounding of float32, or stay as they are.

A product with a matrix followed by the addition of a vector is one Gemm on the rows.

Sources: GELU after Hendrycks and Gimpel (2016), HardSwish after Howard et al., "Searching for MobileNetV3" (2019).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .graph import Array, Graph, Node, TensorType

Doubles = npt.NDArray[np.float64]

#: Where functions are compared: densely around the kinks and bends, and far out.
_POINTS: Doubles = np.concatenate(
    [np.linspace(-9, 9, 73) + 0.01, [-3, 0, 3, -1e4, -80, -30, 30, 80, 1e4], np.linspace(-3.5, 3.5, 29)]
)
_TOLERANCE = 2e-6
#: The most nodes that spell one operator.
_LONGEST = 12
#: Gelu became an operator here; what came between 18 and 20 only added to operators.
_GELU_OPSET = 20

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Doubles) -> Doubles:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _clip(x: Doubles, low: Any = -np.inf, high: Any = np.inf) -> Doubles:
    value: Doubles = np.minimum(np.maximum(x, low), high)
    return value


#: Elementwise operator -> its value; attributes by name.
_VALUES: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power,
    "Neg": np.negative, "Exp": np.exp, "Log": np.log, "Sqrt": np.sqrt, "Reciprocal": np.reciprocal, "Abs": np.abs,
    "Erf": _erf, "Tanh": np.tanh, "Sigmoid": _sigmoid, "Relu": lambda x: np.maximum(x, 0),
    "Softplus": lambda x: np.logaddexp(x, 0), "Identity": lambda x: x,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: _clip(alpha * x + beta, 0, 1),
    "Clip": lambda x, low=-np.inf, high=np.inf: _clip(x, low, high),
    "Min": lambda *x: np.minimum.reduce(np.broadcast_arrays(*x)),
    "Max": lambda *x: np.maximum.reduce(np.broadcast_arrays(*x)),
}  # fmt: skip

#: Operator, attributes, value. In this order of preference.
_KNOWN: tuple[tuple[str, dict[str, Any], Callable[[Doubles], Doubles]], ...] = (
    ("Gelu", {}, lambda x: x * (0.5 + 0.5 * _erf(x * math.sqrt(0.5)))),
    (
        "Gelu", {"approximate": "tanh"},
        lambda x: x * (0.5 + 0.5 * np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    ("HardSwish", {}, lambda x: x * _clip(x / 6 + 0.5, 0, 1)),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, lambda x: _clip(x / 6 + 0.5, 0, 1)),
    ("Sigmoid", {}, _sigmoid),
    ("Softplus", {}, lambda x: np.logaddexp(x, 0)),
    ("Relu", {}, lambda x: np.maximum(x, 0)),
)  # fmt: skip


@dataclass(slots=True)
class _Reader:
    """A graph while its spellings are looked for."""

    graph: Graph
    fixed: Mapping[str, Array]  # constants that are no weights
    producers: dict[str, int]
    readers: Counter[str]

    def scalar(self, name: str) -> bool:
        """Whether a name is one known number."""
        return name in self.fixed and self.fixed[name].size == 1

    def inner(self, name: str) -> Node | None:
        """The elementwise node that makes a tensor."""
        index = self.producers.get(name)
        if index is None:
            return None
        node = self.graph.nodes[index]
        plain = node.op in _VALUES and node.domain in ("", "ai.onnx") and len(node.outputs) == 1
        return node if plain else None


def read_spellings(graph: Graph, weights: frozenset[str]) -> Graph:
    """The graph with what is spelled out as single operators. `weights` are never taken for known numbers."""
    fixed = {n: v for n, v in graph.constants.items() if n not in weights}
    producers = {o: i for i, n in enumerate(graph.nodes) for o in n.outputs if o}
    readers = Counter(i for n in graph.nodes for i in n.inputs if i)
    readers.update(graph.outputs)
    reader = _Reader(graph, fixed, producers, readers)
    dropped: set[int] = set()
    for index in reversed(range(len(graph.nodes))):
        if index not in dropped:
            dropped |= _activation(reader, index)
    graph.nodes = [n for i, n in enumerate(graph.nodes) if i not in dropped]
    if any(n.op == "Gelu" for n in graph.nodes):
        graph.opset = max(graph.opset, _GELU_OPSET)
    _biased_products(graph)
    return graph


def _activation(reader: _Reader, index: int) -> set[int]:
    """Write the node as a single operator if it ends a spelling; returns the nodes that are not needed any more."""
    last = reader.graph.nodes[index]
    if reader.inner(last.outputs[0]) is None or reader.graph.types[last.outputs[0]].dtype != "float32":
        return set()
    cone = [index]
    while len(cone) <= _LONGEST:
        members = {o for i in cone for o in reader.graph.nodes[i].outputs}
        open_ = {
            name for i in cone for name in reader.graph.nodes[i].inputs
            if name and name not in members and not reader.scalar(name)
        }  # fmt: skip
        if len(open_) == 1 and len(cone) > 1:
            (source,) = open_
            if reader.graph.types[source] == reader.graph.types[last.outputs[0]]:
                found = _known(reader, sorted(cone), source)
                if found is not None and _closed(reader, cone, index):
                    op, attributes = found
                    reader.graph.nodes[index] = Node(op, (source,), last.outputs, attributes, last.name)
                    return set(cone) - {index}
        # the latest first: what is nearer to the end cannot be what everything starts from
        behind = [reader.producers[n] for n in open_ if reader.inner(n) is not None]
        if not behind:
            break
        cone.append(max(behind))
    return set()


def _closed(reader: _Reader, cone: list[int], last: int) -> bool:
    """Whether nothing outside reads what is made inside."""
    inside = Counter(name for i in cone for name in reader.graph.nodes[i].inputs)
    made = [o for i in cone if i != last for o in reader.graph.nodes[i].outputs]
    return all(inside[name] == reader.readers[name] for name in made)


def _known(reader: _Reader, cone: list[int], source: str) -> tuple[str, dict[str, Any]] | None:
    """The operator that the nodes spell as a function of `source`."""
    values: dict[str, Any] = {source: _POINTS}
    with np.errstate(all="ignore"):
        for index in cone:
            node = reader.graph.nodes[index]
            given = {}
            for position, name in enumerate(node.inputs):
                if name in values:
                    given[position] = values[name]
                elif name:
                    given[position] = float(reader.fixed[name].reshape(-1)[0])
            if node.op == "Clip":  # bounds may be left out
                arguments = {key: given[i] for i, key in ((1, "low"), (2, "high")) if i in given}
                values[node.outputs[0]] = _VALUES["Clip"](given[0], **arguments)
            else:
                values[node.outputs[0]] = _VALUES[node.op](*given.values(), **node.attributes)
        spelled = values[reader.graph.nodes[cone[-1]].outputs[0]]
        for op, attributes, function in _KNOWN:
            wanted = function(_POINTS)
            if np.shape(spelled) == wanted.shape and np.all(
                np.abs(spelled - wanted) <= _TOLERANCE * (1 + np.abs(wanted))
            ):
                return op, dict(attributes)
    return None


def _biased_products(graph: Graph) -> None:
    """x W + b as Gemm on the rows of x, where nothing else reads the product."""
    readers = Counter(i for n in graph.nodes for i in n.inputs if i)
    readers.update(graph.outputs)
    adds = {name: n for n in graph.nodes if n.op == "Add" and not n.domain for name in n.inputs}
    gone: set[str] = set()
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.outputs[0] in gone:
            continue
        add = adds.get(node.outputs[0]) if node.op == "MatMul" and not node.domain else None
        bias = None if add is None else next((i for i in add.inputs if i != node.outputs[0]), None)
        if add is None or bias is None or readers[node.outputs[0]] != 1 or not _rows(graph, node, add, bias):
            nodes.append(node)
            continue
        nodes += _gemm(graph, node, add, bias)
        gone.add(add.outputs[0])
    graph.nodes = nodes


def _rows(graph: Graph, product: Node, add: Node, bias: str) -> bool:
    x, w, b, y = (graph.types[n] for n in (*product.inputs, bias, add.outputs[0]))
    known = bias in graph.constants or bias in graph.inputs
    return (
        len(x.shape) >= 2 and len(w.shape) == 2 and b.shape == w.shape[1:] and known
        and y.shape == (*x.shape[:-1], w.shape[1]) and y.dtype == "float32"
    )  # fmt: skip


def _gemm(graph: Graph, product: Node, add: Node, bias: str) -> list[Node]:
    x, w = product.inputs
    shape, result = graph.types[x].shape, graph.types[add.outputs[0]]
    rows = math.prod(shape[:-1])
    if len(shape) == 2:
        return [Node("Gemm", (x, w, bias), add.outputs, {}, product.name)]

    def named(suffix: str, dims: tuple[int, ...]) -> str:
        name = f"{add.outputs[0]}/{suffix}"
        graph.types[name] = TensorType("int64", (len(dims),))
        graph.constants[name] = np.array(dims, np.int64)
        return name

    flat, made = f"{add.outputs[0]}/rows", f"{add.outputs[0]}/flat"
    graph.types[flat] = TensorType(result.dtype, (rows, shape[-1]))
    graph.types[made] = TensorType(result.dtype, (rows, result.shape[-1]))
    return [
        Node("Reshape", (x, named("rows.shape", (rows, shape[-1]))), (flat,), {}, f"{product.name}/rows"),
        Node("Gemm", (flat, w, bias), (made,), {}, product.name),
        Node("Reshape", (made, named("shape", result.shape)), add.outputs, {}, add.name),
    ]
