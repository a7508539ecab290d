"""A result leaves in the shape in which it is made, where whoever takes it allows that.

A Reshape costs nothing inside a step, but one that makes a result has to copy it: the result has its place outside. The
gradient of a weight is taken as the numbers that it is, so its Reshape is dropped.
"""

from __future__ import annotations

from dataclasses import replace

from .program import Program, renamed


def drop_reshapes(program: Program) -> bool:
    """Hand out what a last Reshape of a `loose` output reads."""
    producers = program.producers()
    outputs = set(program.outputs)
    names: dict[str, str] = {}
    for node in program.nodes:
        if node.op != "Reshape" or node.domain or node.outputs[0] not in program.loose:
            continue
        source = node.inputs[0]
        maker = producers.get(source)
        if maker is None or maker.op == "Reshape" or source in outputs or source in names:
            continue
        names[source] = node.outputs[0]
    if not names:
        return False
    gone = set(names.values())
    # whatever else reads the result reads it in its old shape
    read = {i for n in program.nodes for i in n.inputs if i in gone}
    names = {s: t for s, t in names.items() if t not in read}
    gone = set(names.values())
    for source, target in names.items():
        program.types[target] = program.types[source]
    program.nodes = [
        replace(renamed(n, names), outputs=tuple(names.get(o, o) for o in n.outputs))
        for n in program.nodes if not gone.intersection(n.outputs)
    ]  # fmt: skip
    return bool(names)
