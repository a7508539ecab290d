"""Levels for tensors that are to take a given number of bytes together.

Strategy: with one price of a bit in squared error for all tensors, no bit could do more good in another tensor than in
its own: that is the least error for the bits (equal slopes; Shoham and Gersho, 1988). So there is one number to search
for, the price. Each tensor takes the step, of some near the square root of the price, whose error and bits cost least.
Bits are predicted (`rounding.py`), so a price is found by bisection without coding anything; then the tensors are
rounded and coded in earnest, and what that takes more or less than predicted corrects the next prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from . import magnitudes, quantize, rounding
from .magnitudes import SCALE, Magnitudes
from .quantize import Choice, Quantized
from .rounding import WEIGHT, Search
from .steps import OCTAVE

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

#: Prices between two step numbers.
_PRICES = 16
#: The weight of a tensor whose step has the number of the price, and other step numbers that are looked at.
_WEIGHT, _OTHERS = WEIGHT * 11 // 64, (-2, 2)
_LARGEST_WEIGHT = 1 << 20
#: How far thresholds are raised at most to get from one price to the next.
_HIGHEST = 2 * rounding.UNIT
#: Codings in earnest at most, and which share of the bytes wanted (in 1/64) is near enough.
_CODINGS, _NEAR = 7, 63


class Prices:
    """What tensors become at a price.

    Prices are whole numbers, 16 to a step number, each dearer than the one before; their scale is a logarithm. From one
    to the next many classes may give up their last levels at once (at low rates, error is almost a straight line over
    bits); what is between the two is reached by raising the thresholds of the lower price.
    """

    def __init__(self, measured: Sequence[Magnitudes]) -> None:
        self._all = measured
        self._live = [m for m in measured if m.exponent is not None]
        self._shift = OCTAVE * (np.array([m.exponent for m in self._live], np.int64) - SCALE)
        self._search = Search(self._live)
        self._low = _PRICES * (int(self._shift.min()) - OCTAVE)
        self._high = _PRICES * (int(self._shift.max()) + quantize.NUMBERS)

    def within(self, bits: float) -> Iterator[Choice | None]:
        """What each tensor is rounded with (None if it is all zero) so that about `bits` are predicted, or less."""
        low, high = self._low, self._high
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._find(middle)[1] <= bits else (middle, high)
        numbers, _, thresholds = self._find(low)
        lowest, highest = 0, _HIGHEST
        while lowest < highest:
            middle = (lowest + highest) // 2
            predicted = self._predicted(numbers, thresholds + middle)
            lowest, highest = (lowest, middle) if predicted <= bits else (middle + 1, highest)
        parts = iter(np.split(thresholds + lowest, self._search.starts[1:-1]))
        number = iter(numbers.tolist())
        for each in self._all:
            yield None if each.exponent is None else Choice(next(number), next(parts))

    def _predicted(self, numbers: I64, thresholds: I64) -> float:
        return math.fsum(self._search.find(numbers, numbers, 0, thresholds).bits.tolist())

    def _find(self, price: int) -> tuple[I64, float, I64]:
        """Step numbers (on the scale of magnitudes) of the tensors that are not zero, bits of all, and thresholds."""
        best = np.full(len(self._live), np.inf)
        numbers, bits = np.zeros(len(self._live), np.int64), np.zeros(len(self._live))
        thresholds = np.zeros((int(self._search.starts[-1]), rounding.TOP), np.int64)
        for other in (0, *_OTHERS):
            number = np.clip(price // _PRICES - self._shift + other, 0, quantize.NUMBERS)
            weight = self._weights(price, number)
            found = self._search.find(number, weight)
            size = rounding.step_size(number).astype(np.float64)
            cost = found.error + found.bits * (weight.astype(np.float64) * (size * size) / WEIGHT)
            better = cost < best
            best = np.where(better, cost, best)
            numbers, bits = np.where(better, number, numbers), np.where(better, found.bits, bits)
            rows = np.repeat(better, np.diff(self._search.starts))
            thresholds = np.where(rows[:, None], found.thresholds, thresholds)
        return numbers, math.fsum(bits.tolist()), thresholds

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


def fit(
    tensors: Sequence[F32], most: int, smallest: int, code: Callable[[Sequence[Quantized]], bytes]
) -> tuple[bytes, Sequence[Quantized]]:
    """(blob, levels) of at most `most` bytes, close to it; `code` makes a blob, of zeros one of `smallest` bytes."""
    best: Sequence[Quantized] = [quantize.zero(tensor) for tensor in tensors]
    measured = [magnitudes.measure(tensor) for tensor in tensors]
    if all(m.exponent is None for m in measured):
        return code(best), best
    prices, blob = Prices(measured), b""
    goal = most - smallest - (most >> 8)
    bits, enough, too_many = 8.0 * goal, 0.0, math.inf
    for _ in range(_CODINGS):
        made = [
            quantize.zero(tensor) if choice is None else quantize.rounded(tensor, each, choice)[0]
            for tensor, each, choice in zip(tensors, measured, prices.within(bits), strict=True)
        ]
        coded = code(made)
        if len(coded) > most:
            too_many = bits
        else:
            enough = bits
            if len(coded) == len(blob):
                break  # levels are as fine as they get
            if len(coded) > len(blob):
                blob, best = coded, made
            if len(coded) * 64 >= most * _NEAR:
                break
        bits *= goal / max(len(coded) - smallest, 1)
        if not enough < bits < too_many:
            bits = (enough + too_many) / 2
    return (blob, best) if blob else (code(best), best)
