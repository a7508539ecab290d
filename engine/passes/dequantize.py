"""Quantized tensors live as integers: what is read again much later is dequantized again.

A DequantizeLinear turns a byte into four. Where its result is read in the forward pass and once more in the backward
pass, keeping the integers and doing it twice is a pass over memory more, and a quarter of the bytes all the while.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Node
from .program import Program

#: Nodes between two readers over which a result is kept.
_NEAR = 6
_SMALLEST = 4096  # bytes of a result that is worth it


def again(program: Program) -> bool:
    """Give each group of neighbouring readers a DequantizeLinear of its own, right before the first of them."""
    makers = {n.outputs[0]: n for n in program.nodes if n.op == "DequantizeLinear" and _wide(program, n)}
    places = {n.outputs[0]: index for index, n in enumerate(program.nodes)}
    reading: dict[str, list[int]] = {name: [] for name in makers}
    for index, node in enumerate(program.nodes):
        for name in dict.fromkeys(node.inputs):
            if name in reading:
                reading[name].append(index)
    before: dict[int, list[Node]] = {}
    names: dict[int, dict[str, str]] = {}
    changed = False
    for name, readers in reading.items():
        here, last = name, -_NEAR
        for position, index in enumerate(readers):
            if position == 0 or index - last > _NEAR:
                if position:
                    here = program.fresh(program.types[name])
                changed = changed or position > 0 or index - places[name] > _NEAR
                before.setdefault(index, []).append(replace(makers[name], outputs=(here,), name=f"{here}_again"))
            names.setdefault(index, {})[name] = here
            last = index
    if not changed:
        return False
    nodes: list[Node] = []
    for index, node in enumerate(program.nodes):
        if node.outputs[0] in makers:
            continue
        nodes += before.get(index, [])
        given = names.get(index, {})
        nodes.append(replace(node, inputs=tuple(given.get(i, i) for i in node.inputs)) if given else node)
    program.nodes = nodes
    return True


def _wide(program: Program, node: Node) -> bool:
    kind = program.types.get(node.outputs[0])
    return kind is not None and kind.nbytes >= _SMALLEST and node.outputs[0] not in program.outputs
