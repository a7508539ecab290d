"""What depends on weights alone is made again for each of its readers, where memory is short.

A convolution's filter in the blocked layout is wanted in the forward pass and, turned, in the backward pass; kept in
between, the forms of all filters are a second set of weights. Made again, there is one at a time.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Node
from .program import Program


def rederive(program: Program) -> bool:
    """Write nodes that read nothing but `program.lean` inputs and constants right before each node that reads them."""
    makers: dict[str, Node] = {}
    known = {*program.lean, *program.constants, ""}
    for node in program.nodes:
        pure = known.issuperset(node.inputs) and any(i not in program.constants for i in node.inputs if i)
        if pure and len(node.outputs) == 1 and node.outputs[0] not in program.outputs:
            makers[node.outputs[0]] = node
            known.add(node.outputs[0])
    if not makers:
        return False
    nodes: list[Node] = []
    written: set[str] = set()
    for node in program.nodes:
        if node.outputs[0] in makers:
            continue
        wanted = [i for i in dict.fromkeys(node.inputs) if i in makers]
        if wanted:
            names: dict[str, str] = {}
            for name in wanted:
                _write(program, name, makers, names, written, nodes)
            node = replace(node, inputs=tuple(names.get(i, i) for i in node.inputs))
        nodes.append(node)
    program.nodes = nodes
    return True


def _write(
    program: Program, name: str, makers: dict[str, Node], names: dict[str, str], written: set[str], nodes: list[Node]
) -> None:
    """Append what makes `name`; `names` has what it and all before it are called for this reader."""
    if name in names:
        return
    node = makers[name]
    for source in node.inputs:
        if source in makers:
            _write(program, source, makers, names, written, nodes)
    names[name] = name if name not in written else program.fresh(program.types[name])
    written.add(name)
    inputs = tuple(names.get(i, i) for i in node.inputs)
    nodes.append(replace(node, inputs=inputs, outputs=(names[name],), name=f"{names[name]}_{node.op}"))
