"""Nodes that move nothing: removed, or made a Reshape, which moves nothing either.

Rules:
1. Identity, Dropout (of one output), Cast to the same type, Expand to the same shape: readers read the input.
2. Squeeze, Unsqueeze, Flatten: a Reshape to the static shape, so that equal ones look equal.
3. Reshape of a Reshape: reads the first's input; to the input's own shape: readers read the input.
4. Transpose of a Transpose: one Transpose. One that moves only axes of length 1: a Reshape.
5. Identity whose result leaves the program: its input is made under that name, where nothing else fixes it.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Node
from .program import Program, renamed

_COPIES = ("Identity", "Dropout")
_SHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def remove(program: Program) -> bool:
    """Apply the rules once, in order of the nodes."""
    names: dict[str, str] = {}
    made: dict[str, Node] = {}
    kept: list[Node] = []
    outputs = set(program.outputs)
    changed = False
    for original in program.nodes:
        node = renamed(original, names)
        new = _simpler(program, node, made)
        if new is None and node.outputs[0] not in outputs:
            names[node.outputs[0]] = node.inputs[0]
            changed = True
            continue
        if new is not None:
            changed |= new is not node
            node = new
        kept.append(node)
        made.update((o, node) for o in node.outputs if o)
    program.nodes = kept
    return _hand_out(program) or changed


def _simpler(program: Program, node: Node, made: dict[str, Node]) -> Node | None:
    """The node, or what replaces it; None if its input does."""
    if node.domain or not node.inputs or not node.inputs[0] or len([o for o in node.outputs if o]) != 1:
        return node
    source, result = program.types.get(node.inputs[0]), program.types.get(node.outputs[0])
    if node.op in _COPIES:
        return None if node.op == "Identity" or len(node.inputs) < 3 or not node.inputs[2] else node
    if source is None or result is None:
        return node
    if node.op in ("Cast", "Expand") and source == result:
        return None
    if node.op in _SHAPES:
        if source == result:
            return None
        before = made.get(node.inputs[0])
        tensor = before.inputs[0] if before is not None and before.op == "Reshape" else node.inputs[0]
        if tensor != node.inputs[0] and program.types.get(tensor) == result:
            return replace(node, op="Identity", inputs=(tensor,), attributes={})
        if node.op == "Reshape" and tensor == node.inputs[0] and _plain_shape(program, node, result.shape):
            return node
        return program.reshape(tensor, result.shape, output=node.outputs[0])
    if node.op == "Transpose":
        return _transposed(program, node, made)
    return node


def _plain_shape(program: Program, node: Node, shape: tuple[int, ...]) -> bool:
    value = program.constants.get(node.inputs[1])
    return value is not None and tuple(value.tolist()) == shape


def _transposed(program: Program, node: Node, made: dict[str, Node]) -> Node | None:
    rank = len(program.types[node.inputs[0]].shape)
    order = list(node.attributes.get("perm", range(rank)[::-1]))
    tensor = node.inputs[0]
    before = made.get(tensor)
    if before is not None and before.op == "Transpose":
        first = list(before.attributes.get("perm", range(rank)[::-1]))
        order, tensor = [first[i] for i in order], before.inputs[0]
    shape = program.types[tensor].shape
    result = program.types[node.outputs[0]]
    long = [axis for axis in order if shape[axis] != 1]
    if order == [*range(rank)] and tensor == node.inputs[0]:
        return None
    if long == sorted(long):
        if shape == result.shape:
            return replace(node, op="Identity", inputs=(tensor,), attributes={})
        return program.reshape(tensor, result.shape, output=node.outputs[0])
    if tensor == node.inputs[0]:
        return node
    return replace(node, inputs=(tensor,), attributes={"perm": order})


def _hand_out(program: Program) -> bool:
    """Rule 5."""
    producers = program.producers()
    taken = set(program.outputs)
    names: dict[str, str] = {}
    for node in program.nodes:
        if node.op == "Identity" and not node.domain and node.outputs[0] in taken:
            inner = node.inputs[0]
            if inner in producers and inner not in taken and inner not in names:
                names[inner] = node.outputs[0]
    if not names:
        return False
    gone = set(names.items())
    nodes = []
    for node in program.nodes:
        if node.op == "Identity" and not node.domain and (node.inputs[0], node.outputs[0]) in gone:
            continue
        outputs = tuple(names.get(o, o) for o in node.outputs)
        nodes.append(replace(renamed(node, names), outputs=outputs))
    program.nodes = nodes
    return True
