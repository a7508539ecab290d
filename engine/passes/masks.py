"""Masks of quantizers: made where the tensor is made that they look at, instead of where they are used.

A backward pass asks whether a number was saturated, which is one byte, of a tensor of four bytes a number that nothing
else needs any more (what comes after reads the quantized one). Comparing early lets go of it. Where others need the
tensor until then, the mask is made late.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..graph import Node
from .program import Program

_CLIPS = ("Clip", "Max", "Min")
#: Bytes of a number, where a truth value takes one.
_NUMBER = 4


def hoist(program: Program) -> bool:
    """Move comparisons of a tensor with itself, clipped to constants, to right after the node that makes it."""
    producers = program.producers()
    places = {name: index for index, node in enumerate(program.nodes) for name in node.outputs if name}
    readers = program.readers()
    reads: dict[str, list[int]] = {}
    for index, node in enumerate(program.nodes):
        for name in node.inputs:
            reads.setdefault(name, []).append(index)
    moved: dict[str, list[Node]] = {}
    taken: set[int] = set()
    for index, node in enumerate(program.nodes):
        if node.op != "Equal" or node.inputs[0] not in producers:
            continue
        chain = _clipped(program, producers, readers, node)
        if chain is None or places[chain[0].outputs[0]] == places[node.inputs[0]] + 1:
            continue
        others = [r for r in reads[node.inputs[0]] if program.nodes[r] is not chain[0] and r != index]
        made, last = places[node.inputs[0]], max(others, default=places[node.inputs[0]])
        if _NUMBER * (index - max(last, made)) <= index - made:
            continue  # the tensor stays for others nearly as long: the mask would come on top of it
        moved.setdefault(node.inputs[0], []).extend([*chain, node])
        taken.update([index, *(places[step.outputs[0]] for step in chain)])
    if not moved:
        return False
    nodes: list[Node] = []
    for index, node in enumerate(program.nodes):
        if index in taken:
            continue
        nodes.append(node)
        for name in node.outputs:
            nodes += moved.get(name, [])
    program.nodes = nodes
    return True


def _clipped(
    program: Program, producers: Mapping[str, Node], readers: Mapping[str, int], node: Node
) -> list[Node] | None:
    """The nodes that clip the first input of a comparison into its second, in order, if nothing else reads them."""
    source, name = node.inputs
    chain: list[Node] = []
    while name != source:
        step = producers.get(name)
        if step is None or step.op not in _CLIPS or readers[name] != 1 or len(chain) > 1:
            return None
        inputs = [i for i in step.inputs if i and i not in program.constants]
        if len(inputs) != 1:
            return None
        chain.insert(0, step)
        name = inputs[0]
    return chain
