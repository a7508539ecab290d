"""Optimizers on flat float32 arrays, in place.

Strategy: a group of weights is one flat array, so one step is a handful of vector operations however many tensors
there are; long arrays go through in blocks that stay in the cache, so temporaries are small.

Sources: momentum after Sutskever et al., "On the importance of initialization and momentum" (2013), in PyTorch's
form; Adam after Kingma and Ba (2015) with decoupled weight decay after Loshchilov and Hutter (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .errors import EngineError

FloatArray = npt.NDArray[np.float32]
_BLOCK = 1 << 15


class Optimizer(Protocol):
    """Updates a flat array of weights from its gradient and its own state (rows of the same length)."""

    @property
    def rows(self) -> int:
        """float32 numbers of state per weight."""

    @property
    def learning_rate(self) -> float:
        """Step size."""

    def update(self, weights: FloatArray, gradient: FloatArray, state: FloatArray, step: int) -> None:
        """One step, in place; `state` is [rows, n], `step` counts from 1."""


@dataclass(frozen=True, slots=True)
class Sgd:
    """Stochastic gradient descent with momentum."""

    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0

    @property
    def rows(self) -> int:
        """The velocity."""
        return 1

    def update(self, weights: FloatArray, gradient: FloatArray, state: FloatArray, step: int) -> None:
        """v = momentum v + g; w -= rate (v + decay w)."""
        rate = np.float32(self.learning_rate)
        for start in range(0, weights.size, _BLOCK):
            w, g, v = (a[start : start + _BLOCK] for a in (weights, gradient, state[0]))
            v *= np.float32(self.momentum)
            v += g
            if self.weight_decay:
                w *= np.float32(1 - self.learning_rate * self.weight_decay)
            w -= rate * v


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam, with decoupled weight decay."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    @property
    def rows(self) -> int:
        """The means of the gradient and of its square."""
        return 2

    def update(self, weights: FloatArray, gradient: FloatArray, state: FloatArray, step: int) -> None:
        """m and v are running means of g and g^2; w -= rate m' / (sqrt(v') + epsilon), bias-corrected."""
        one = np.float32(1)
        b1, b2 = np.float32(self.beta1), np.float32(self.beta2)
        root = math.sqrt(1 - self.beta2**step)
        rate = np.float32(self.learning_rate * root / (1 - self.beta1**step))
        epsilon = np.float32(self.epsilon * root)
        for start in range(0, weights.size, _BLOCK):
            w, g, m, v = (a[start : start + _BLOCK] for a in (weights, gradient, state[0], state[1]))
            m *= b1
            m += (one - b1) * g
            v *= b2
            scratch = g * g
            scratch *= one - b2
            v += scratch
            np.sqrt(v, out=scratch)
            scratch += epsilon
            np.divide(m, scratch, out=scratch)
            scratch *= rate
            if self.weight_decay:
                w *= np.float32(1 - self.learning_rate * self.weight_decay)
            w -= scratch


OPTIMIZERS: dict[str, type[Sgd] | type[Adam]] = {"sgd": Sgd, "adam": Adam}


def check_optimizer(name: str) -> int:
    """State numbers per weight of an optimizer. Raises EngineError."""
    if name not in OPTIMIZERS:
        raise EngineError(f"there is no optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    return {"sgd": 1, "adam": 2}[name]


def make_optimizer(name: str, learning_rate: float, options: dict[str, float]) -> Optimizer:
    """An optimizer by name. Raises EngineError for options that it does not have or that make no sense."""
    check_optimizer(name)
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        raise EngineError(f"the learning rate {learning_rate} is not a finite number of at least 0")
    known = {k for k in OPTIMIZERS[name].__dataclass_fields__ if k != "learning_rate"}
    if set(options) - known:
        raise EngineError(f"{name} has no option {sorted(set(options) - known)}; it has {sorted(known)}")
    return OPTIMIZERS[name](learning_rate=learning_rate, **options)
