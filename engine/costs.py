"""What nodes cost in time, for choosing between ways to train. Pure arithmetic on shapes.

Strategy: a node takes the longer of its multiplications and its memory traffic, and a call besides. The rates are
those of one core of a present small machine; only their proportions decide, and a plan that was tried carries the
measured time. They are constants, and not measured per machine, so that a plan is the same wherever it is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .graph import Node, TensorType

#: Seconds per multiply-add, per byte read or written, per node, and per session run.
MULTIPLY_ADD, BYTE, CALL, SESSION = 4e-11, 1.5e-10, 3e-6, 3e-5


def multiply_adds(node: Node, types: Mapping[str, TensorType]) -> int:
    """Multiply-adds of a convolution or matrix product, 0 for anything else."""
    if not all(n in types for n in (*node.inputs[:2], *node.outputs[:1])) or not node.outputs[0]:
        return 0
    if node.op in ("Conv", "FusedConv"):
        return types[node.outputs[0]].size * math.prod(types[node.inputs[1]].shape[1:])
    if node.op == "ConvTranspose":
        return types[node.inputs[0]].size * math.prod(types[node.inputs[1]].shape[1:])
    if node.op in ("Gemm", "MatMul", "FusedMatMul", "FusedGemm"):
        shape = types[node.inputs[0]].shape
        inner = shape[0 if node.attributes.get("transA", 0) else -1] if shape else 1
        return types[node.outputs[0]].size * inner
    if node.op in ("LSTM", "GRU", "RNN") and len(node.inputs) > 2 and node.inputs[2] in types:
        time, batch = types[node.inputs[0]].shape[:2]
        return time * batch * (types[node.inputs[1]].size + types[node.inputs[2]].size)
    return 0


def seconds(node: Node, types: Mapping[str, TensorType]) -> float:
    """Expected time of one node."""
    moved = sum(types[n].nbytes for n in {*node.inputs, *node.outputs} if n in types)
    return CALL + max(MULTIPLY_ADD * multiply_adds(node, types), BYTE * moved)


def total_seconds(nodes: Iterable[Node], types: Mapping[str, TensorType]) -> float:
    """Expected time of nodes one after the other."""
    return sum(seconds(node, types) for node in nodes)
