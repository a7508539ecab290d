"""The formulas of the optimizers, on a piece of a flat float32 array, in place.

Strategy: a running mean is kept without its factor 1 - beta where that saves a pass over memory; the factor goes
into the step size. Every operation writes into an array that is there already. Means of gradients that stay away (a
unit that no sample switches on) would decay into subnormal numbers, on which processors are tens of times slower:
every `_FADING` steps what no weight could feel any more is cleared away.

Sources: momentum after Sutskever et al., "On the importance of initialization and momentum" (2013), in PyTorch's
form; Adam after Kingma and Ba (2015) with decoupled weight decay after Loshchilov and Hutter (2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import EngineError

FloatArray = npt.NDArray[np.float32]


#: A mean of gradients that is smaller than this moves no weight that float32 can tell from another.
_FAINT = np.float32(1e-30)
#: A mean of squares stays at or above this (not 0: it is divided by), which is far below what epsilon leaves visible.
_FLOOR = np.float32(1e-36)
#: Steps between two looks for faint means; few enough that none gets from the limits above to the subnormal ones.
_FADING = 32


class Optimizer(Protocol):
    """Updates a piece of the weights from its gradient and its running means."""

    #: For each running mean whether it has signs.
    means: ClassVar[tuple[bool, ...]]

    @property
    def learning_rate(self) -> float:
        """Step size."""

    @property
    def weight_decay(self) -> float:
        """Share of a weight, per step and learning rate, that is taken off."""

    def update(
        self, weights: FloatArray, gradient: FloatArray, means: Sequence[FloatArray], step: int, scratch: FloatArray
    ) -> None:
        """One step on arrays of one length, in place (`gradient` stays); `step` counts from 1."""


@dataclass(frozen=True, slots=True)
class Sgd:
    """Stochastic gradient descent with momentum."""

    means: ClassVar[tuple[bool, ...]] = (True,)
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0

    def update(
        self, weights: FloatArray, gradient: FloatArray, means: Sequence[FloatArray], step: int, scratch: FloatArray
    ) -> None:
        """v = momentum v + g; w -= rate v. Without momentum v is not kept."""
        velocity = gradient
        if self.momentum:
            (velocity,) = means
            velocity *= np.float32(self.momentum)
            velocity += gradient
            if step % _FADING == 0:
                _clear_faint(velocity, scratch)
        np.multiply(velocity, np.float32(self.learning_rate), out=scratch)
        weights -= scratch


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam, with decoupled weight decay."""

    means: ClassVar[tuple[bool, ...]] = (True, False)
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def update(
        self, weights: FloatArray, gradient: FloatArray, means: Sequence[FloatArray], step: int, scratch: FloatArray
    ) -> None:
        """w -= rate m / (sqrt(v) + epsilon), with m and v the bias-corrected means of g and g^2.

        Kept are m / (1 - beta1) and v / (1 - beta2), not corrected.
        """
        first, second = means
        root = math.sqrt((1 - self.beta2**step) / (1 - self.beta2))
        rate = np.float32(self.learning_rate * (1 - self.beta1) / (1 - self.beta1**step) * root)
        first *= np.float32(self.beta1)
        first += gradient
        np.multiply(gradient, gradient, out=scratch)
        second *= np.float32(self.beta2)
        second += scratch
        if step % _FADING == 0:
            _clear_faint(first, scratch)
            np.maximum(second, _FLOOR, out=second)
        np.sqrt(second, out=scratch)
        scratch += np.float32(self.epsilon * root)
        np.divide(first, scratch, out=scratch)
        scratch *= rate
        weights -= scratch


def _clear_faint(mean: FloatArray, scratch: FloatArray) -> None:
    """Set numbers of a magnitude below `_FAINT` to zero, in place."""
    np.abs(mean, out=scratch)
    np.greater_equal(scratch, _FAINT, out=scratch)
    mean *= scratch


OPTIMIZERS: dict[str, type[Sgd] | type[Adam]] = {"sgd": Sgd, "adam": Adam}
#: Options that are shares of a running mean: at 1 it would never forget.
_SHARES = ("momentum", "beta1", "beta2")


def check_optimizer(name: str) -> int:
    """Running means per weight of an optimizer. Raises EngineError."""
    if name not in OPTIMIZERS:
        raise EngineError(f"there is no optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    return len(OPTIMIZERS[name].means)


def make_optimizer(name: str, learning_rate: float, options: Mapping[str, float]) -> Optimizer:
    """An optimizer by name. Raises EngineError for options that it does not have or that make no sense."""
    check_optimizer(name)
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        raise EngineError(f"the learning rate {learning_rate} is not a finite number of at least 0")
    known = {k for k in OPTIMIZERS[name].__dataclass_fields__ if k not in ("learning_rate", "means")}
    if set(options) - known:
        raise EngineError(f"{name} has no option {sorted(set(options) - known)}; it has {sorted(known)}")
    for option, value in options.items():
        if not (math.isfinite(value) and value >= 0 and (value < 1 or option not in _SHARES)):
            limit = "at least 0 and below 1" if option in _SHARES else "a finite number of at least 0"
            raise EngineError(f"{name}: {option}={value} makes no sense; it must be {limit}")
    return OPTIMIZERS[name](learning_rate=learning_rate, **options)
