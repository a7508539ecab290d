"""Mean squared error. Targets: float32 of the output's shape."""

from __future__ import annotations

from .table import TARGETS, Loss, Options, Writer


class Squared(Loss):
    """The mean of (output - target)^2 over everything."""

    def write(self, w: Writer, output: str, options: Options) -> str:
        """Mean per sample."""
        shape = w.shape(output)
        difference = w.op("Sub", shape, output, w.input(TARGETS, shape))
        return w.mean_per_sample(w.op("Mul", shape, difference, difference))
