"""The graph that planning works on: nodes, types and constants, free of protobuf.

Strategy: a small immutable node and a plain container. A `Builder` appends nodes and names their outputs; the loss,
the gradient rules and the model definitions all write through it. Protobuf is touched in `onnxio.py` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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


class Builder:
    """Appends nodes; names outputs `<prefix><number>`; shares equal constants."""

    def __init__(self, prefix: str = "t") -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self._prefix = prefix
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}

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
