"""A blocked convolution applies the activation that alone reads its result, in its own pass over memory.

Only activations that give the same bits inside the convolution and outside are taken, so that it does not matter
whether something else reads the result in between: Relu, Clip between known bounds, LeakyRelu.
"""

from __future__ import annotations

from dataclasses import replace

from ..blocked import DOMAIN
from ..graph import Node
from .program import Program


def absorb(program: Program) -> bool:
    """Move activations into the convolutions before them."""
    producers = program.producers()
    readers = program.readers()
    gone: set[str] = set()
    names: dict[str, Node] = {}
    for node in program.nodes:
        if not node.inputs or node.domain:
            continue
        before = producers.get(node.inputs[0])
        if before is None or before.op != "Conv" or before.domain != DOMAIN or readers[node.inputs[0]] != 1:
            continue
        attributes = _activation(program, node)
        if attributes and "activation" not in before.attributes:
            names[before.outputs[0]] = replace(
                before, outputs=node.outputs, attributes={**before.attributes, **attributes}
            )
            gone.add(node.outputs[0])
    if not gone:
        return False
    program.nodes = [
        names.get(n.outputs[0], n) if n.outputs else n
        for n in program.nodes
        if not n.outputs or n.outputs[0] not in gone
    ]
    return True


def _activation(program: Program, node: Node) -> dict[str, object]:
    if node.op == "Relu":
        return {"activation": "Relu"}
    if node.op == "LeakyRelu":
        return {"activation": "LeakyRelu", "activation_params": [float(node.attributes.get("alpha", 0.01))]}
    if node.op == "Clip" and len(node.inputs) == 3:
        bounds = [program.constants.get(n) for n in node.inputs[1:]]
        if all(b is not None and b.size == 1 for b in bounds):
            return {"activation": "Clip", "activation_params": [float(b) for b in bounds if b is not None]}
    return {}
