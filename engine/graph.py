"""The graph that planning works on: nodes, types and constants, free of protobuf.

Strategy: a small immutable node and a plain container. A `Builder` appends nodes and names their outputs; the loss,
the gradient rules and the model definitions all write through it. Protobuf is touched in `onnxio.py` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
#: Tensors whose names begin so count as constants for gradients: a later rule accounts for all they depend on.
DETACHED = "sanderling.detached."

#: Domain of operators that only we know: the rules write them, the passes replace them.
OURS = "sanderling"
#: (x, dY) to dW of a convolution, of the attribute `shape`. The other attributes are those of Conv, but `pads` behind
#: are negative where no window reaches the end.
FILTER_GRADIENT = "ConvFilterGradient"
#: (x, y, dY) to dX of a MaxPool, of the attribute `shape`. The other attributes are those of MaxPool, and what it pads,
#: `before` and `behind` (negative where no window reaches the end).
MAX_POOL_GRADIENT = "MaxPoolGradient"


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type (numpy name) and static shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def floating(self) -> bool:
        """Whether a gradient can flow through it."""
        return self.dtype in ("float32", "float64", "float16")

    @property
    def gradient(self) -> TensorType:
        """The type of its gradient: its own, and float32 for integers that stand for real numbers."""
        return self if self.floating else TensorType("float32", self.shape)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. An omitted optional input is the empty name, as in ONNX."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """What a node runs again and again (a subgraph in ONNX): a closed function of its inputs, seen by no pass.

    The last `captured` inputs are the same in every run: the node that holds the body names them behind its own inputs,
    so that whoever reads `Node.inputs` knows all that it depends on. `onnxio` spells them as ONNX does, by outer name.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    dtype: str
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    captured: int


@dataclass(slots=True)
class Graph:
    """Nodes in topological order. `types` covers every tensor; `constants` holds values known when planning."""

    nodes: list[Node]
    types: dict[str, TensorType]
    constants: dict[str, Array]
    inputs: list[str]
    outputs: list[str]
    source: str = "model"
    opset: int = 18


#: Writes one turn of a loop: (builder, states, slices, captured) -> (new states, results of the turn).
Loop = Callable[["Builder", Sequence[str], Sequence[str], Sequence[str]], tuple[Sequence[str], Sequence[str]]]


class Builder:
    """Appends nodes; names outputs `<prefix><number>`; shares equal constants."""

    def __init__(self, prefix: str = "t") -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self._prefix = prefix
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._bodies = 0

    def op(self, op: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any) -> str:
        """Append a node and return its first output; `name` names that output."""
        return self.multi(op, inputs, outputs, name, **attributes)[0]

    def multi(
        self, op: str, inputs: Sequence[str], outputs: int, name: str = "", domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Append a node and return all its outputs."""
        stem = f"{self._prefix}{len(self.nodes)}"
        names = tuple(name or stem if i == 0 else f"{name or stem}.{i}" for i in range(outputs))
        self.nodes.append(Node(op, tuple(inputs), names, attributes, name=f"{stem}_{op}", domain=domain))
        return names

    def scan(
        self, states: Sequence[str], slices: Sequence[str], captured: Sequence[str], body: Loop,
        backwards: bool = False, dtype: str = "float32",
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:  # fmt: skip
        """Append a loop over the first axis of `slices`; returns the states at its end and the stacked results.

        `body(builder, states, slices, captured)` writes one turn through a builder of its own and returns the new
        states and the turn's results. `backwards` takes the slices, and stacks the results, from the last to the first.
        """
        self._bodies += 1
        inner = Builder(f"{self._prefix}{self._bodies}:")
        count = len(states) + len(slices) + len(captured)
        formal = [f"{inner._prefix}i{i}" for i in range(count)]
        split = len(states) + len(slices)
        after, results = body(inner, formal[: len(states)], formal[len(states) : split], formal[split:])
        # a body must not hand an input through as a result, nor one tensor twice
        outputs: list[str] = []
        for name in (*after, *results):
            outputs.append(inner.op("Identity", name) if name in formal or name in outputs else name)
        function = Body(tuple(inner.nodes), tuple(formal), dtype, tuple(outputs), inner.constants, len(captured))
        names = self.multi(
            "Scan", (*states, *slices, *captured), len(outputs), body=function, num_scan_inputs=len(slices),
            scan_input_directions=[int(backwards)] * len(slices),
            scan_output_directions=[int(backwards)] * len(results),
        )  # fmt: skip
        return names[: len(states)], names[len(states) :]

    def constant(self, value: Array) -> str:
        """The name of a constant with this value."""
        value = np.ascontiguousarray(value) if value.ndim else value
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._shared:
            self._shared[key] = f"{self._prefix}c{len(self._shared)}"
            self.constants[self._shared[key]] = value
        return self._shared[key]

    def ints(self, *values: int) -> str:
        """A one-dimensional int64 constant: axes, shapes, pads."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A float32 constant of rank 0."""
        return self.constant(np.array(value, np.float32))
