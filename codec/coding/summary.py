"""In words, how an array would be coded by itself: for people who look at a blob, not for decoders."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import arrays, plan, ways
from .division import UNLABELLED, Shape
from .modes import RUNS, Way

Integers = npt.NDArray[np.signedinteger]


def summary(array: Integers) -> str:
    """In how many classes, by which lines, and in which modes the encoder codes the items of an array."""
    (planned, *others), total = plan.plan([(Shape.of(array.shape), arrays.narrow(array))])
    if planned.constant:
        return "constant"
    parts: list[list[Integers]] = [[] for _ in range(total)]
    by: list[str] = []
    for template in others:
        if template.division is None:
            parts[template.code].append(template.values.reshape(-1))
        else:
            template.division.order().divide(template.values, parts)
    if planned.division is None:
        parts[planned.code].append(planned.values.reshape(-1))
    else:
        planned.division.order().divide(planned.values, parts)
        by += ["rows"] if planned.division.by_row else []
        by += ["columns"] if planned.division.by_column != UNLABELLED else []
    modes = dict.fromkeys(_name(ways.choose(np.concatenate(part))[0].way) for part in parts)
    classes = f"{total} class{'es' if total > 1 else ''}{' of ' + ' and '.join(by) if by else ''}"
    signs = ", chained signs" if planned.signs.chained else ", signs by line" if planned.signs.changed else ""
    signs += ", a template" if others else ", mirrored" if planned.mirrored else ""
    return f"{classes}, {'/'.join(modes)}{signs}"


def _name(way: Way) -> str:
    if way.mode == RUNS:
        return "runs"
    return "plain" if way.extent == 1 else f"{way.extent}-tuples"
