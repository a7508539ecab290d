"""Limits for gradients, by value and by norm.

Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013); the small number in
the factor as in PyTorch's `clip_grad_norm_`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .errors import EngineError

#: Squares of gradients of this squared norm still add up to a float32 in a running mean.
_TOO_LARGE = 1e34


def check_clipping(norm: float | None, value: float | None) -> None:
    """Raises EngineError unless both are positive numbers, or None."""
    for name, limit in (("clip_norm", norm), ("clip_value", value)):
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise EngineError(f"{name}={limit} must be a finite number above 0, or None for no clipping")


def squared_norm(gradient: npt.NDArray[np.float32]) -> float:
    """The sum of squares of a flat array; infinity or NaN if a number is not finite, or too large to be squared."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(gradient, gradient))
    return square if square < _TOO_LARGE else math.inf


def norm_factor(square: float, limit: float) -> float:
    """What gradients with this sum of squares are multiplied by, so that their norm is at most `limit`."""
    return min(1.0, limit / (math.sqrt(square) + 1e-6))
