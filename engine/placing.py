"""Where nodes stand that turn weights into what operators read: right before the reader, each reader its own.

Models put them anywhere (quantizers write them first of all), and the order of nodes is what segments are cut from:
a dequantized weight that stands far from its reader would cross every cut between as a copy in real numbers, and live
from one to the other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from .graph import Graph, Node

#: Operators with one result that give the same again for the same inputs, at little cost.
_CHEAP = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")


def near_use(graph: Graph, weights: Collection[str]) -> None:
    """Move and copy, in place, the nodes that depend on weights and constants alone to where they are read."""
    held = {*weights, *graph.constants, ""}
    makers: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op in _CHEAP and held.issuperset(node.inputs):
            held.update(node.outputs)
            makers[node.outputs[0]] = node
    taken: set[str] = set()
    nodes: list[Node] = []

    def make(name: str) -> str:
        """Write the nodes that make a tensor; returns the name that it has here."""
        node = makers[name]
        inputs = tuple(make(i) if i in makers else i for i in node.inputs)
        here, count = name, 1
        while here in taken:
            count += 1
            here = f"{name}/{count}"
        taken.add(here)
        graph.types[here] = graph.types[name]
        nodes.append(replace(node, inputs=inputs, outputs=(here,)))
        return here

    for node in graph.nodes:
        if node.outputs[0] in makers:
            continue
        names = {i: make(i) for i in dict.fromkeys(node.inputs) if i in makers}
        nodes.append(replace(node, inputs=tuple(names.get(i, i) for i in node.inputs)) if names else node)
    for name in graph.outputs:
        if name in makers and name not in taken:
            make(name)
    graph.nodes = nodes
