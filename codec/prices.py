"""One price of a bit, in squared error, for all tensors.

Strategy: with one price for all, no bit could do more good in another tensor than in its own: that is the least error
for the bits, and the fewest bits for the error (equal slopes; Shoham and Gersho, 1988). So there is one number to
search for. At a price, each tensor takes the step, of some near the square root of the price, whose error and bits cost
least together. Error and bits are predicted (`rounding.py`), so a price is found by bisection without coding anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import rounding
from .magnitudes import SCALE, Magnitudes
from .rounding import WEIGHT, Search
from .steps import OCTAVE, step_size

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

#: Step numbers on the scale of magnitudes: levels have at most 17 bits, and a step is at most twice the largest value.
NUMBERS = OCTAVE * (SCALE - 2)
#: Prices between two step numbers.
_PRICES = 16
#: The weight of a tensor whose step has the number of the price, and other step numbers that are looked at.
_WEIGHT, _OTHERS = WEIGHT * 11 // 64, (-2, 2)
_LARGEST_WEIGHT = 1 << 20
#: Prices to either side of the last one where a search begins.
_NEAR = 8
#: Steps that a group of classes takes from one price to the next.
_SIXTEENTHS = 16


@dataclass(frozen=True)
class Choice:
    """What a tensor is rounded with: a step number on the scale of magnitudes, and thresholds [groups, TOP].

    `error` is the predicted sum of squares.
    """

    number: int
    thresholds: I64
    error: float


@dataclass(frozen=True)
class _Point:
    """Step numbers, thresholds, predicted bits and errors of all tensors at a price."""

    numbers: I64
    thresholds: I64
    bits: F64
    errors: F64


class Prices:
    """What tensors become at prices.

    Prices are whole numbers, 16 to a step number, each dearer than the one before; their scale is a logarithm. From one
    to the next many classes may give up their last levels at once (at low rates, error is almost a straight line over
    bits). As good as either is some of both: what is between two prices takes the lower for some classes, the higher
    for others.
    """

    def __init__(self, measured: Sequence[Magnitudes]) -> None:
        """Of tensors some of which are not all zero."""
        self._all = measured
        self._live = [m for m in measured if m.exponent is not None]
        self._shift = OCTAVE * (np.array([m.exponent for m in self._live], np.int64) - SCALE)
        self._search = Search(self._live)
        self._least, self._most = int(self._shift.min()) - 2 * OCTAVE, int(self._shift.max()) + NUMBERS + 2
        # Where the last search ended: the next one is for something near it.
        self._price = 0
        self._others: I64 | None = None

    def within_bits(self, bits: float) -> list[Choice | None]:
        """What each tensor is rounded with (None if it is all zero) so that about `bits` are predicted, or less."""
        return self._choices(lambda point: math.fsum(point.bits.tolist()) > bits, True)

    def within_error(self, error: float) -> list[Choice | None]:
        """The same for about this sum of squares, or less."""
        return self._choices(lambda point: math.fsum(point.errors.tolist()) <= error, False)

    def _choices(self, finer: Callable[[_Point], bool], beyond: bool) -> list[Choice | None]:
        """Choices at the border of what is `finer`: just beyond it, or just before."""
        least, most = _PRICES * self._least, _PRICES * self._most
        if self._others is None:
            low, high = self._least, self._most
            others = np.zeros(len(self._live), np.int64)
            while low + 1 < high:  # whole step numbers first
                middle = (low + high) // 2
                low, high = (middle, high) if finer(self._at(middle * _PRICES, others, 2)) else (low, middle)
            self._price, self._others = low * _PRICES + _PRICES // 2, self._best(low * _PRICES)
        others = self._others
        low, high = self._price - _NEAR, self._price + _NEAR
        while not finer(self._at(low, others)) and low > least:
            low, high = low - 2 * _NEAR, low
        while finer(self._at(high, others)) and high < most:
            low, high = high, high + 2 * _NEAR
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if finer(self._at(middle, others)) else (low, middle)
        self._price = low
        lower = self._at(low, others)
        higher = self._with(lower.numbers, high)  # the same steps, as what is between cannot have both
        while finer(higher) and high < most:
            high += _PRICES // 4
            higher = self._with(lower.numbers, high)
        low, high = 0, len(lower.thresholds) * _SIXTEENTHS
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if finer(self._between(lower, higher, middle)) else (low, middle)
        point = self._between(lower, higher, high if beyond else low)
        parts = np.split(point.thresholds, self._search.starts[1:-1])
        found = map(Choice, point.numbers.tolist(), parts, point.errors.tolist())
        return [None if each.exponent is None else next(found) for each in self._all]

    def _between(self, lower: _Point, higher: _Point, part: int) -> _Point:
        """Some groups of classes as in `higher`, one on its way there, and the others as in `lower`; same steps."""
        whole, sixteenths = divmod(part, _SIXTEENTHS)
        thresholds = lower.thresholds.copy()
        thresholds[:whole] = higher.thresholds[:whole]
        way = (higher.thresholds - lower.thresholds)[whole : whole + 1] * sixteenths // _SIXTEENTHS
        thresholds[whole : whole + 1] += way
        thresholds -= thresholds % rounding.GRAIN
        found = self._search.find(lower.numbers, lower.numbers, 0, thresholds)
        return _Point(lower.numbers, thresholds, found.bits, self._absolute(found.error))

    def _absolute(self, error: F64) -> F64:
        """Sums of squares of tensors, from those of their scaled magnitudes."""
        return np.ldexp(error, 2 * (self._shift // OCTAVE))

    def _at(self, price: int, others: I64, turns: int = 4) -> _Point:
        """What tensors become with steps whose numbers differ by `others` from that of the price."""
        numbers = np.clip(price // _PRICES - self._shift + others, 0, NUMBERS)
        return self._with(numbers, price, turns)

    def _with(self, numbers: I64, price: int, turns: int = 4) -> _Point:
        """What tensors become with steps of these numbers."""
        found = self._search.find(numbers, self._weights(price, numbers), turns)
        return _Point(numbers, found.thresholds, found.bits, self._absolute(found.error))

    def _best(self, price: int) -> I64:
        """By how much the number of each tensor's step should differ from that of the price."""
        step = step_size(price // _PRICES)
        least = np.full(len(self._live), np.inf)
        best = np.zeros(len(self._live), np.int64)
        for other in (0, *_OTHERS):
            point = self._at(price, np.full(len(self._live), other, np.int64))
            cost = point.errors + point.bits * (step * step * (_WEIGHT / WEIGHT))
            best, least = np.where(cost < least, other, best), np.minimum(cost, least)
        return best

    def _weights(self, price: int, number: I64) -> I64:
        """Price / squared step, for the steps that tensors have."""
        at, part = divmod(price, _PRICES)
        low, high = (_squared(at + i) << (2 * i * (at % OCTAVE == OCTAVE - 1)) for i in (0, 1))
        result = []
        for own in (number + self._shift).tolist():
            octaves = 2 * (at // OCTAVE - own // OCTAVE)
            above, below = _WEIGHT * (low * (_PRICES - part) + high * part), _squared(own) * _PRICES
            weight = (above << octaves if octaves >= 0 else above >> -octaves) // below
            result.append(min(weight, _LARGEST_WEIGHT))
        return np.array(result, np.int64)


def _squared(number: int) -> int:
    """The squared step, in units of its octave's."""
    return (OCTAVE + number % OCTAVE) ** 2
