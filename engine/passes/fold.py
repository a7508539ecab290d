"""Constant folding: what depends on constants alone is computed when planning.

A value that is larger than what it is made of stays an expression (an Expand to a large shape): it would live in the
model's bytes and for the whole step, where the expression lives as long as it is needed.
"""

from __future__ import annotations

from .. import onnxio
from ..graph import Node, TensorType
from ..runtime import run_once
from .common import RANDOM
from .program import Program

_SMALL = 16 * 2**10  # bytes: values up to this size are folded whatever they are made of


def fold(program: Program) -> bool:
    """Replace nodes whose inputs are all constants by their values."""
    weights = set(program.inputs)
    known = {n for n in program.constants if n not in weights} | {""}
    chosen = []
    kept = []
    for node in program.nodes:
        if _foldable(program, node, known):
            chosen.append(node)
            known.update(node.outputs)
        else:
            kept.append(node)
    if not chosen:
        return False
    wanted = [o for node in chosen for o in node.outputs if o]
    used = {i for node in chosen for i in node.inputs}
    constants = {n: v for n, v in program.constants.items() if n in used}
    model = onnxio.to_bytes(chosen, {}, dict.fromkeys(wanted), constants, program.opset)
    for name, value in zip(wanted, run_once(model, {}, wanted), strict=True):
        program.constants[name] = value
        program.types[name] = TensorType(value.dtype.name, value.shape)
    program.nodes = kept
    # an output of the program must be made by a node
    for name in program.outputs:
        if name in wanted:
            value = program.constants[name]
            inner = program.constant(value)
            del program.constants[name]
            program.nodes.append(program.make("Identity", (inner,), program.types[name], output=name))
    return True


def _foldable(program: Program, node: Node, known: set[str]) -> bool:
    if node.domain or node.op in RANDOM or not any(node.inputs) or not all(i in known for i in node.inputs):
        return False
    if node.op == "Identity" and node.outputs[0] in program.outputs:
        return False
    made = 0
    for name in node.outputs:
        kind = program.types.get(name)
        if name and kind is None:
            return False
        made += kind.nbytes if kind is not None else 0
    given = sum(program.types[i].nbytes for i in node.inputs if i)
    return made <= max(given, _SMALL)
