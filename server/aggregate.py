"""Many devices' changes to one: weighted sums that can be added up in any order, by any number of workers.

A contribution is what one device learned on one base: the sum of its deltas in this merge. It is never held by itself:
each delta is decoded straight into a running sum with its contribution's weight (`Partial`), so memory is one model
in float64 whatever the number of devices. Partial sums add up (`Partial.add`): associative, commutative but for float64
rounding.

The default strategy follows FedBuff (Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2022),
with the polynomial staleness discount of FedAsync (Xie et al., 2019): a device that learned on a base `s` releases old
counts (1 + s)^-exponent of a fresh one. Samples weigh as in FedAvg (McMahan et al., 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sanderling.codec import CodecLimits, accumulate

from .errors import MergeError

Weights = dict[str, npt.NDArray[np.float32]]
Sums = dict[str, npt.NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one device learned on one base. `samples`: of its latest delta, for devices train on all they have stored;
    `histogram`: labelled samples by class, of the same delta."""

    device: str
    base_version: int
    samples: int
    staleness: int
    histogram: Sequence[int] = ()


class Strategy(Protocol):
    """How much a contribution counts, and what becomes of the sum."""

    def weight(self, contribution: Contribution) -> float:
        """At least 0; only the ratio between contributions matters."""

    def apply(self, current: Mapping[str, npt.NDArray[np.float32]], partial: Partial) -> Weights:
        """The new weights. Raises `MergeError` if nothing counted."""


@dataclass(slots=True)
class Partial:
    """A partial weighted sum of contributions: `total` is the sum of weight x change, `weight` of the weights."""

    total: Sums
    weight: float = 0.0
    contributions: list[tuple[Contribution, float]] = field(default_factory=list)

    @classmethod
    def zero(cls, like: Mapping[str, npt.NDArray[np.float32]]) -> Partial:
        """The sum of nothing, for weights of these shapes."""
        return cls({name: np.zeros(array.shape, np.float64) for name, array in like.items()})

    def take(self, contribution: Contribution, blobs: Sequence[bytes], weight: float, limits: CodecLimits) -> None:
        """Add a contribution, given as the coded deltas that it is the sum of. Raises `CodecError`."""
        for blob in blobs:
            accumulate(blob, self.total, weight, limits=limits)
        self.weight += weight
        self.contributions.append((contribution, weight))

    def add(self, other: Partial) -> None:
        """Add another worker's partial sum."""
        for name, values in other.total.items():
            self.total[name] += values
        self.weight += other.weight
        self.contributions += other.contributions


@dataclass(frozen=True, slots=True)
class StalenessAverage:
    """new = current + learning_rate x weighted mean of contributions; see the module's text for the weights."""

    staleness_exponent: float = 0.5
    learning_rate: float = 1.0

    def weight(self, contribution: Contribution) -> float:
        """samples x (1 + staleness)^-exponent."""
        return float(contribution.samples * (1 + contribution.staleness) ** -self.staleness_exponent)

    def apply(self, current: Mapping[str, npt.NDArray[np.float32]], partial: Partial) -> Weights:
        """The new weights, float32. Raises `MergeError` if no contribution counted or the result is not finite."""
        if not partial.weight > 0:
            raise MergeError("no contribution has any weight", "look at the deltas' samples")
        scale = self.learning_rate / partial.weight
        new = {name: (array + scale * partial.total[name]).astype(np.float32) for name, array in current.items()}
        for name, array in new.items():
            if not np.isfinite(array).all():
                raise MergeError(f"weight {name!r} is not finite after the merge", "a device sent wild values")
        return new


def interpolate(
    a: Mapping[str, npt.NDArray[np.float32]], b: Mapping[str, npt.NDArray[np.float32]], t: float
) -> Weights:
    """(1 - t) a + t b, weight by weight.

    >>> interpolate({"w": np.float32([0, 2])}, {"w": np.float32([4, 2])}, 0.25)["w"].tolist()
    [1.0, 2.0]
    """
    return {name: ((1 - t) * array + t * b[name]).astype(np.float32) for name, array in a.items()}
