"""Common subexpressions: equal operators on equal inputs are computed once.

A recomputed operator is in a program of its own, so that this never undoes a recomputation.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from ..graph import Node
from .program import Program, renamed

#: Operators that give something else each time.
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def merge(program: Program) -> bool:
    """Keep the first of equal nodes. One that makes an output of the program is kept as well."""
    first: dict[Hashable, tuple[str, ...]] = {}
    names: dict[str, str] = {}
    kept: list[Node] = []
    outputs = set(program.outputs)
    shared: dict[Hashable, str] = {}
    fixed = outputs.union(program.inputs)  # an input stays itself, whatever its value is now
    for name, value in program.constants.items():
        if name not in fixed:
            content = (value.dtype.str, value.shape, value.tobytes())
            if shared.setdefault(content, name) != name:
                names[name] = shared[content]
    for original in program.nodes:
        node = renamed(original, names)
        key = (
            None
            if node.op in RANDOM
            else (node.op, node.domain, node.inputs, _frozen(node.attributes), len(node.outputs))
        )
        earlier = first.get(key) if key is not None else None
        if earlier is not None and not outputs.intersection(node.outputs):
            names.update(zip(node.outputs, earlier, strict=True))
            continue
        if key is not None and earlier is None and all(node.outputs):
            first[key] = node.outputs
        kept.append(node)
    program.nodes = kept
    return bool(names)


def _frozen(attributes: Mapping[str, Any]) -> Hashable:
    return tuple(sorted((k, _value(v)) for k, v in attributes.items()))


def _value(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, (list, tuple)):
        return ("list", *(_value(v) for v in value))
    if isinstance(value, (str, bytes, int, float)):
        return (type(value).__name__, value)
    return ("object", id(value))  # the body of a loop: equal only to itself
