"""What passes work on: a list of nodes in the order in which they run, with the type of every tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..graph import Array, Node, TensorType


@dataclass(slots=True)
class Program:
    """One model before it is serialized. `inputs` arrive from outside (weights among them), `outputs` leave."""

    nodes: list[Node]
    types: dict[str, TensorType]
    constants: dict[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    block: int = 0  # channels per block of the runtime's blocked layout, 0 for none
    threads: int = 1
    exact: frozenset[str] = frozenset()  # results that are to have the bits of the operator as it is written
    #: Inputs that arrive, and outputs that must leave, in blocks; outputs that may. `blocked` is right for all of them
    #: after the pass for the layout: `types` then gives their shape in blocks.
    blocked: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()
    loose: frozenset[str] = frozenset()  # outputs that may leave in any shape of their size
    #: Weights whose forms are made again for each reader rather than kept.
    lean: frozenset[str] = frozenset()
    _shared: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _count: int = 0

    def producers(self) -> dict[str, Node]:
        """{tensor: the node that makes it}."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def readers(self) -> Counter[str]:
        """How often each tensor is read; an output is read once more."""
        count = Counter(name for node in self.nodes for name in node.inputs if name)
        count.update(self.outputs)
        return count

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The static shape of a tensor, if it is known."""
        kind = self.types.get(name)
        return None if kind is None else kind.shape

    def fresh(self, kind: TensorType) -> str:
        """A new name for a tensor of a type."""
        self._count += 1
        name = f"s.l{self._count}"
        self.types[name] = kind
        return name

    def constant(self, value: Array) -> str:
        """The name of a constant with this value."""
        value = np.ascontiguousarray(value) if value.ndim else value
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._shared:
            name = self.fresh(TensorType(value.dtype.name, value.shape))
            self.constants[name] = value
            self._shared[key] = name
        return self._shared[key]

    def forget_dropped(self) -> None:
        """Shared constants that were dropped are made anew when they are asked for again."""
        self._shared = {key: name for key, name in self._shared.items() if name in self.constants}

    def ints(self, *values: int) -> str:
        """A one-dimensional int64 constant."""
        return self.constant(np.array(values, np.int64))

    def make(
        self, op: str, inputs: tuple[str, ...], kind: TensorType, domain: str = "", output: str = "", **attributes: Any
    ) -> Node:
        """A node with one output, named `output` or anew, of a type."""
        name = output or self.fresh(kind)
        self.types[name] = kind
        return Node(op, inputs, (name,), attributes, f"{name}_{op}", domain)

    def reshape(self, tensor: str, shape: tuple[int, ...], output: str = "") -> Node:
        """A Reshape to a static shape."""
        kind = TensorType(self.types[tensor].dtype, shape)
        return self.make("Reshape", (tensor, self.ints(*shape)), kind, output=output)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The node with its inputs read from other names."""
    if not any(i in names for i in node.inputs):
        return node
    return replace(node, inputs=tuple(names.get(i, i) for i in node.inputs))
