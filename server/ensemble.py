"""What many teachers say together about the proxy samples, class by class.

Two ways of asking, and the validation slice decides which: `plain`, the mean of the teachers' softened probabilities,
and `histogram`, where a teacher's say in a class is its share of all labelled samples of that class: a device that has
never seen a class does not talk others out of it (label skew; after FedDF, Lin et al. 2020, and the per-class weighting
of FedAUX/FedET-like ensembles). Teachers are asked one after the other and only two sums are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Keeps a class that no teacher claims askable, and logarithms finite.
_FLOOR = 1e-7


def soften(logits: npt.NDArray[np.floating], temperature: float) -> Floats:
    """Softmax of logits / temperature along the last axis, in float64.

    >>> soften(np.zeros((1, 4), np.float32), 2.0).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    powers = np.exp(scaled)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


class Ensemble:
    """Teachers' softened probabilities over `samples` x `classes`."""

    def __init__(self, samples: int, classes: int, temperature: float) -> None:
        self.temperature = temperature
        self.teachers = 0
        self._plain: Floats = np.zeros((samples, classes))
        self._weighted: Floats = np.zeros((samples, classes))
        self._shares: Floats = np.zeros(classes)

    def ask(self, logits: npt.NDArray[np.floating], histogram: Sequence[float]) -> None:
        """Add a teacher: its logits [samples, classes], and its labelled samples by class (missing classes: none)."""
        probabilities = soften(logits, self.temperature)
        classes = probabilities.shape[1]
        share = np.zeros(classes)
        known = np.asarray(histogram, np.float64)[:classes]
        share[: len(known)] = known
        share += 1.0  # everybody has some say, or a class in no histogram would have none at all
        self._plain += probabilities
        self._weighted += share * probabilities
        self._shares += share
        self.teachers += 1

    def plain(self) -> Floats:
        """The mean of the teachers, [samples, classes], rows summing to 1."""
        return self._plain / max(self.teachers, 1)

    def histogram_weighted(self) -> Floats:
        """Each class weighted by who has seen it, [samples, classes], rows summing to 1."""
        mixed = self._weighted / np.maximum(self._shares, 1.0)
        return np.asarray(mixed / np.maximum(mixed.sum(axis=1, keepdims=True), _FLOOR))

    def as_logits(self, probabilities: Floats) -> npt.NDArray[np.float32]:
        """Logits whose softmax at this temperature is `probabilities`: what the distillation loss takes."""
        return (self.temperature * np.log(np.maximum(probabilities, _FLOOR))).astype(np.float32)
