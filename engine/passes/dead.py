"""Dead code: nodes that no output depends on, and constants that no node reads."""

from __future__ import annotations

from .program import Program


def remove(program: Program) -> bool:
    """Drop what has no effect."""
    alive = set(program.outputs)
    kept = []
    for node in reversed(program.nodes):
        if alive.intersection(node.outputs):
            kept.append(node)
            alive.update(node.inputs)
    kept.reverse()
    constants = {n: v for n, v in program.constants.items() if n in alive}
    changed = len(kept) < len(program.nodes) or len(constants) < len(program.constants)
    program.nodes, program.constants = kept, constants
    program.forget_dropped()
    return changed
