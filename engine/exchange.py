"""Where everything lies that passes between the sessions of a step. Needs neither numpy nor a runtime.

Strategy: from the steps' reads and writes follow the lifetimes of tensors and gradients; `lifetimes.place` gives
them offsets in one buffer. A gradient that arrives in parts from several sessions has a place for the sum, and each
later part one of its own for the length of its step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .lifetimes import Span, last_uses, place
from .loss import LOSS
from .plan import GRADIENT, UPDATE, Description

_ITEM = {
    "float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4, "float16": 2, "int16": 2,
    "uint16": 2,
}  # fmt: skip
_LINE = 16  # float32 numbers: every tensor of a flat array starts on a cache line


def padded(shape: tuple[int, ...]) -> int:
    """Numbers that a tensor of this shape takes in a flat array, aligned."""
    return -(-math.prod(shape) // _LINE) * _LINE


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array of this numpy type and shape."""
    return math.prod(shape) * _ITEM.get(dtype, 1)


def kind_of(name: str, kinds: Mapping[str, str]) -> str:
    """The element type of a tensor or gradient. The gradient of integers that stand for real numbers is float32."""
    kind = kinds.get(name.removeprefix(GRADIENT), "float32")
    return kind if kind.startswith("float") or not name.startswith(GRADIENT) else "float32"


_GROUP = "group "


@dataclass(slots=True)
class Exchange:
    """Places in the buffer between sessions. A slot is the name of a place."""

    offsets: dict[str, int] = field(default_factory=dict)
    size: int = 0
    #: {step that completes them: weights}.
    groups: dict[int, tuple[str, ...]] = field(default_factory=dict)
    #: (step, name): the slot that the session writes, or reads.
    writers: dict[tuple[int, str], str] = field(default_factory=dict)
    readers: dict[tuple[int, str], str] = field(default_factory=dict)
    #: (step, name): the slot of the other summand: of the sum so far, for a later part.
    parts: dict[tuple[int, str], str] = field(default_factory=dict)
    #: {slot: its bytes, and the first and the last step that need it}.
    spans: dict[str, Span] = field(default_factory=dict)

    @property
    def crossing_bytes(self) -> int:
        """Bytes of what crosses cuts and of its gradients, without those of weights."""
        return place({name: span for name, span in self.spans.items() if not name.startswith(_GROUP)})[1]

    @staticmethod
    def group_slot(step: int) -> str:
        """The slot of the flat gradient of the group that this step completes."""
        return f"{_GROUP}{step}"


def arrange(info: Description) -> Exchange:
    """Lifetimes and offsets of all that passes between the steps of a plan."""
    steps = info.steps
    kinds = {t.name: t.dtype for t in info.tensors}
    shapes = {t.name: t.shape for t in (*info.tensors, *info.weights)}
    trained = set(info.trainable)
    last = last_uses([s.reads for s in steps])
    final: dict[str, int] = {}  # weight: the step that completes its gradient
    for index, step in enumerate(steps):
        for name in step.writes:
            if name.startswith(GRADIENT) and name.removeprefix(GRADIENT) in trained:
                final[name.removeprefix(GRADIENT)] = index
    result = Exchange()
    spans: dict[str, Span] = {}
    for index in sorted(set(final.values())):
        names = tuple(w for w, at in final.items() if at == index)
        result.groups[index] = names
        spans[Exchange.group_slot(index)] = Span(4 * sum(padded(shapes[n]) for n in names), index, index)

    def size(name: str) -> int:
        return bytes_of(kind_of(name, kinds), shapes[name.removeprefix(GRADIENT)])

    begun: set[str] = set()
    for index, step in enumerate(steps):
        for name in step.writes:
            base = name.removeprefix(GRADIENT)
            weight = name.startswith(GRADIENT) and base in trained
            if name == LOSS or name.startswith(UPDATE) or (weight and final[base] == index):
                if weight and name in begun:
                    result.parts[index, name] = name
                continue
            end = final[base] if weight else last.get(name, index)
            slot = name
            if name in begun:  # a further part
                slot = f"{name} from {index}"
                result.parts[index, name] = name
                end = index
            else:
                begun.add(name)
            spans[slot] = Span(size(name), index, end)
            result.writers[index, name] = slot
        for name in step.reads:
            if name in begun:
                result.readers[index, name] = name
    result.spans = spans
    result.offsets, result.size = place(spans)
    return result
