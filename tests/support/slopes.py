"""A plan's gradients against slopes of its own loss: for models that exist in no other framework.

Strategy: along each weight's gradient the loss must rise by the gradient's length. The slope is a central difference in
float32 at steps from 1e-5 to 1e-2 of the weight's length; steps whose difference rounding would blur by
more than a tenth are left out. At a kink or for a curved loss a single step is off, and one alone may agree by chance:
the error is the larger one of two neighbouring steps, for the best such pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sanderling.engine import Trainer

Array = npt.NDArray[Any]
#: Relative rounding of a loss in float32.
_ROUNDING = 2e-7


@dataclass(frozen=True)
class Slopes:
    """Relative errors of slopes: the largest, the median, how many weights were compared and how many are flat."""

    weights: int
    flat: int
    worst: float
    median: float
    where: str


def slope_errors(
    trainer: Trainer, inputs: dict[str, Array], targets: Any, names: Sequence[str] | None = None
) -> Slopes:
    """Compare the gradient of each weight with the loss's slope along it.

    A weight whose slope is blurred at every step, or that the loss does not depend on, is counted as flat.
    """
    loss, gradients = trainer.gradients(inputs, targets)
    weights = trainer.weights()
    chosen = list(names or weights)
    errors: dict[str, float] = {}
    for name in chosen:
        gradient = np.asarray(gradients.get(name, np.zeros(1)), np.float64)
        length = float(np.linalg.norm(gradient))
        size = float(np.linalg.norm(weights[name])) or 1.0
        found = []
        for step in size * np.geomspace(1e-2, 1e-5, 7):
            if not length or _ROUNDING * abs(loss) > 0.1 * step * length:
                break
            ends = []
            for sign in (1, -1):
                moved = weights[name] + sign * step / length * gradient
                trainer.set_weights({name: moved.astype(np.float32)})
                ends.append(trainer.gradients(inputs, targets)[0])
            found.append(abs((ends[0] - ends[1]) / (2 * step) - length) / length)
        trainer.set_weights({name: weights[name]})
        if len(found) > 1:
            errors[name] = min(max(pair) for pair in pairwise(found))
    if not errors:
        return Slopes(len(chosen), len(chosen), float("inf"), float("inf"), "")
    worst = max(errors, key=lambda n: errors[n])
    return Slopes(len(chosen), len(chosen) - len(errors), errors[worst], float(np.median(list(errors.values()))), worst)
