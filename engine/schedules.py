"""Learning rates as functions of the step.

Strategy: a schedule is a small immutable value; its rate depends on the number of the step (from 1) and on nothing
else, so training that resumes at step n goes on as it would have. Schedules are saved with the trainer.

Sources: warm-up after Goyal et al., "Accurate, Large Minibatch SGD" (2017); cosine after Loshchilov and Hutter, "SGDR"
(2017); one cycle after Smith and Topin, "Super-Convergence" (2018), with cosine slopes.
"""

from __future__ import annotations

import math

import msgspec

from .errors import EngineError


class _Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Numbers that make up a schedule; checked when it is made, by hand or from a file."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise EngineError(f"{type(self).__name__}: {name}={value} is not a finite number of at least 0")


class Constant(_Schedule, frozen=True, tag="constant"):
    """The same rate at every step."""

    learning_rate: float

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 1."""
        return self.learning_rate


class Linear(_Schedule, frozen=True, tag="linear"):
    """From 0 up to `learning_rate` within `warmup` steps, then straight down to `final` at `steps`; `final` after."""

    learning_rate: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 1."""
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        return self.final + (self.learning_rate - self.final) * (1 - _share(step, self.warmup, self.steps))


class Cosine(_Schedule, frozen=True, tag="cosine"):
    """From 0 up to `learning_rate` within `warmup` steps, then half a cosine to `final` at `steps`; `final` after."""

    learning_rate: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 1."""
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        return _cosine(self.learning_rate, self.final, _share(step, self.warmup, self.steps))


class Steps(_Schedule, frozen=True, tag="steps"):
    """`learning_rate`, multiplied by `factor` after every `every` steps."""

    learning_rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _Schedule.__post_init__(self)
        if self.every < 1:
            raise EngineError("Steps: every must be at least 1")

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 1."""
        return self.learning_rate * self.factor ** ((step - 1) // self.every)


class OneCycle(_Schedule, frozen=True, tag="one-cycle"):
    """From peak / `start_divisor` up to the peak `learning_rate` in the share `rise` of `steps`, then down to the
    start's rate / `end_divisor`, both along half a cosine."""

    learning_rate: float
    steps: int
    rise: float = 0.3
    start_divisor: float = 25.0
    end_divisor: float = 1e4

    def __post_init__(self) -> None:
        _Schedule.__post_init__(self)
        if not (0 < self.rise < 1 and self.start_divisor >= 1 and self.end_divisor >= 1):
            raise EngineError("OneCycle: rise must lie between 0 and 1, and both divisors be at least 1")

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 1."""
        low = self.learning_rate / self.start_divisor
        top = self.rise * self.steps
        if step <= top:
            return _cosine(low, self.learning_rate, step / top)
        return _cosine(self.learning_rate, low / self.end_divisor, _share(step, top, self.steps))


Schedule = Constant | Linear | Cosine | Steps | OneCycle


def as_schedule(learning_rate: float | Schedule) -> Schedule:
    """A number as a schedule. Raises EngineError."""
    if isinstance(learning_rate, _Schedule):
        return learning_rate
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        raise EngineError(f"the learning rate {learning_rate} is not a finite number of at least 0")
    return Constant(float(learning_rate))


def _share(step: int, begin: float, end: float) -> float:
    """How much of the way from `begin` to `end` lies behind a step, 0 to 1."""
    return min(max((step - begin) / (end - begin), 0.0), 1.0) if end > begin else 1.0


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2
