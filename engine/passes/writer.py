"""Appends typed nodes for a pass."""

from __future__ import annotations

from typing import Any

from ..graph import Array, Node, TensorType
from .program import Program


class Writer:
    """A list of nodes that a pass writes into a program; every tensor gets its type."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[Node] = []

    def op(
        self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], domain: str = "", output: str = "",
        dtype: str = "float32", **attributes: Any,
    ) -> str:  # fmt: skip
        """Append a node; returns its output, which gets this shape."""
        node = self.program.make(op, inputs, TensorType(dtype, tuple(shape)), domain, output, **attributes)
        self.nodes.append(node)
        return node.outputs[0]

    def reshape(self, tensor: str, shape: tuple[int, ...], output: str = "") -> str:
        """Append a Reshape, unless the tensor has the shape and needs no other name."""
        kind = self.program.types[tensor]
        if kind.shape == tuple(shape) and not output:
            return tensor
        return self.op("Reshape", (tensor, self.ints(*shape)), shape, output=output, dtype=kind.dtype)

    def transpose(self, tensor: str, *order: int, output: str = "") -> str:
        """Append a Transpose."""
        shape = self.program.types[tensor].shape
        return self.op("Transpose", (tensor,), tuple(shape[i] for i in order), output=output, perm=list(order))

    def ints(self, *values: int) -> str:
        """An int64 constant."""
        return self.program.ints(*values)

    def constant(self, value: Array) -> str:
        """A constant."""
        return self.program.constant(value)
