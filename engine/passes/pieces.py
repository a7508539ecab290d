"""A sum of tensors that are zero outside disjoint ranges of an axis is one Concat.

Gradients of slices arrive so: each is padded with zeros to the size of what was sliced, and then they are added, each
addition passing over the whole. Only a sum that covers the axis without gaps is written as a Concat.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..graph import Node
from .program import Program


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What a tensor holds along an axis: (first, behind the last, tensor) in order; zeros elsewhere."""

    axis: int
    parts: tuple[tuple[int, int, str], ...]

    def with_(self, other: _Pieces) -> _Pieces | None:
        """Both together, if they do not touch the same places."""
        if other.axis != self.axis:
            return None
        parts = sorted((*self.parts, *other.parts))
        apart = all(before[1] <= after[0] for before, after in pairwise(parts))
        return _Pieces(self.axis, tuple(parts)) if apart else None

    def covers(self, length: int) -> bool:
        """Whether nothing but the parts is there."""
        ends = [0, *(p[1] for p in self.parts)]
        return [*(p[0] for p in self.parts), length] == ends


def join(program: Program) -> bool:
    """Write sums of padded pieces as Concat."""
    pieces: dict[str, _Pieces] = {}
    changed = False
    for index, node in enumerate(program.nodes):
        name = node.outputs[0]
        found: _Pieces | None = None
        if node.op == "Pad" and not node.domain:
            found = _padded(program, node)
        elif (
            node.op == "Add"
            and not node.domain
            and all(i in pieces and program.shape(i) == program.shape(name) for i in node.inputs)
        ):
            found = pieces[node.inputs[0]].with_(pieces[node.inputs[1]])
        if found is None:
            continue
        pieces[name] = found
        shape = program.types[name].shape
        if len(found.parts) > 1 and found.covers(shape[found.axis]):
            parts = tuple(tensor for _, _, tensor in found.parts)
            program.nodes[index] = program.make("Concat", parts, program.types[name], output=name, axis=found.axis)
            changed = True
    return changed


def _padded(program: Program, node: Node) -> _Pieces | None:
    """A Pad with zeros along one axis."""
    if node.attributes.get("mode", "constant") != "constant" or len(node.inputs) > 3:
        return None
    pads = program.constants.get(node.inputs[1])
    value = program.constants.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.float32(0)
    inner, outer = program.shape(node.inputs[0]), program.shape(node.outputs[0])
    if pads is None or value is None or np.any(value) or inner is None or outer is None or np.any(pads < 0):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(inner, outer, strict=True)) if a != b]
    if len(axes) != 1:
        return None
    start = int(pads[axes[0]])
    return _Pieces(axes[0], ((start, start + inner[axes[0]], node.inputs[0]),))
