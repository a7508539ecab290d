"""Operators that the runtime has no kernel for, written out in those it has.

It would write them out by itself, with a copy of the tensor in between and out of sight of what counts memory. Last
of all, so that what they are written in is not shared with the backward pass, which would keep it alive.
"""

from __future__ import annotations

from ..graph import Node
from .program import Program


def write_out(program: Program) -> bool:
    """HardSwish is x times a hard sigmoid of x."""
    nodes: list[Node] = []
    for node in program.nodes:
        if node.op != "HardSwish" or node.domain or node.outputs[0] not in program.types:
            nodes.append(node)
            continue
        x, kind = node.inputs[0], program.types[node.outputs[0]]
        gate = program.make("HardSigmoid", (x,), kind, alpha=1 / 6, beta=0.5)
        nodes += [gate, program.make("Mul", (x, gate.outputs[0]), kind, output=node.outputs[0])]
    changed = len(nodes) > len(program.nodes)
    program.nodes = nodes
    return changed
