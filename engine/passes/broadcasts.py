"""Arithmetic reads what was expanded for it: the runtime broadcasts by itself.

The gradient of a mean or a sum is its result spread over what was reduced; mostly it goes into arithmetic at once,
and the spread tensor is never needed. A node with an operand that has the result's shape reads an Expand's input.
"""

from __future__ import annotations

from dataclasses import replace

from .program import Program

_ARITHMETIC = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"}
)


def absorb_expands(program: Program) -> bool:
    """Read through Expand where the result's shape stays."""
    spread = {n.outputs[0]: n.inputs[0] for n in program.nodes if n.op == "Expand" and not n.domain}
    changed = False
    for index, node in enumerate(program.nodes):
        if node.op not in _ARITHMETIC or node.domain or not any(i in spread for i in node.inputs):
            continue
        result = program.shape(node.outputs[0])
        inputs = list(node.inputs)
        for position, name in enumerate(inputs):
            others = [program.shape(o) for p, o in enumerate(inputs) if p != position]
            if name in spread and result is not None and result in others:
                inputs[position] = spread[name]
        if tuple(inputs) != node.inputs:
            program.nodes[index] = replace(node, inputs=tuple(inputs))
            changed = True
    return changed
