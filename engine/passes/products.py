"""Matrix products read transposed factors in place.

A Transpose that swaps the last two axes becomes `transA` or `transB` of the product that reads it: Gemm has these
attributes, MatMul gets them as the runtime's FusedMatMul (float32 only, any batch). Where the transposed tensor is
read by others too, it is made for them all the same and nothing is gained, so it stays.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Node
from .program import Program

DOMAIN = "com.microsoft"
_SIDES = ("transA", "transB")


def absorb_transposes(program: Program) -> bool:
    """Move transposes into the products that read them."""
    producers = program.producers()
    swaps = {n: node.inputs[0] for n, node in producers.items() if _swaps(program, node)}
    blocked = set(program.outputs)
    for node in program.nodes:
        for position, name in enumerate(node.inputs):
            if name in swaps and not (position < 2 and _product(program, node)):
                blocked.add(name)
    usable = {n: t for n, t in swaps.items() if n not in blocked}
    changed = False
    for index, node in enumerate(program.nodes):
        if not _product(program, node) or not any(i in usable for i in node.inputs[:2]):
            continue
        attributes = dict(node.attributes)
        inputs = list(node.inputs)
        for position, side in enumerate(_SIDES):
            if inputs[position] in usable:
                inputs[position] = usable[inputs[position]]
                attributes[side] = 1 - attributes.get(side, 0)
        fused = node.op == "MatMul"
        program.nodes[index] = replace(
            node, op="FusedMatMul" if fused else node.op, inputs=tuple(inputs), attributes=attributes,
            domain=DOMAIN if fused else node.domain,
        )  # fmt: skip
        changed = True
    return changed


def _swaps(program: Program, node: Node) -> bool:
    if node.op != "Transpose" or node.domain or node.inputs[0] not in program.types:
        return False
    rank = len(program.types[node.inputs[0]].shape)
    order = list(node.attributes.get("perm", range(rank)[::-1]))
    return rank >= 2 and order == [*range(rank - 2), rank - 1, rank - 2]


def _product(program: Program, node: Node) -> bool:
    if node.op == "Gemm" and not node.domain:
        return True
    kinds = [program.types.get(i) for i in node.inputs[:2]]
    fits = all(k is not None and k.dtype == "float32" and len(k.shape) >= 2 for k in kinds)
    return fits and ((node.op == "MatMul" and not node.domain) or (node.op == "FusedMatMul" and node.domain == DOMAIN))
