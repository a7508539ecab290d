"""Mean absolute error, and Huber's: quadratic near 0, straight beyond. Targets: float32 of the output's shape.

Source: Huber, "Robust Estimation of a Location Parameter" (1964), scaled as PyTorch's `huber_loss`; divided by delta it
is their `smooth_l1_loss`.
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import EngineError
from .table import TARGETS, Loss, Options, Writer, number


class Absolute(Loss):
    """The mean of |output - target| over everything; at 0 its slope is 0."""

    def write(self, w: Writer, output: str, options: Options) -> str:
        """Mean per sample."""
        shape = w.shape(output)
        difference = w.op("Sub", shape, output, w.input(TARGETS, shape))
        return w.mean_per_sample(w.op("Abs", shape, difference))


class Huber(Loss):
    """d^2 / 2 for differences d up to `delta`, delta (|d| - delta / 2) beyond."""

    defaults: ClassVar[Options] = {"delta": 1.0}

    def check_options(self, options: Options) -> None:
        """`delta` is above 0."""
        if not 0 < number(options, "delta") < float("inf"):
            raise EngineError("huber needs a delta above 0")

    def write(self, w: Writer, output: str, options: Options) -> str:
        """c (d - c / 2), with c = d kept within -delta and delta: mean per sample."""
        shape, delta = w.shape(output), number(options, "delta")
        difference = w.op("Sub", shape, output, w.input(TARGETS, shape))
        kept = w.op("Clip", shape, difference, w.scalar(-delta), w.scalar(delta))
        rest = w.op("Sub", shape, difference, w.op("Mul", shape, kept, w.scalar(0.5)))
        return w.mean_per_sample(w.op("Mul", shape, kept, rest))
