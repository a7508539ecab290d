"""Levels for tensors: as few bits as a promise allows.

`quality` is the share of a tensor's energy (its squared length) that its decoded form accounts for: at 0.9 the error
has at most a tenth of the energy of the tensor, a signal-to-noise ratio of 10 dB.

Strategy: the uniform step and the price of a bit (`weight`, in squared steps) are chosen together. For a few weights,
the largest step that keeps the promise is found by bisection on predicted errors; the pair with the fewest predicted
bits wins, and its weight is raised until the promise is just kept. Then the tensor itself is rounded (`rounding.py`),
and its true error decides: should it be too large, the next try is finer.

Everything that decides is whole numbers or single operations of IEEE 754, so the same floats give the same bytes on
every platform.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import magnitudes, rounding
from .magnitudes import SCALE, Magnitudes
from .rounding import WEIGHT, Search
from .steps import OCTAVE

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

#: Share of energy that `encode_delta` sends if not told otherwise.
DEFAULT_QUALITY = 0.9
#: Step numbers on the scale of scaled magnitudes: levels have at most 17 bits, and a step at most twice the peak.
NUMBERS = OCTAVE * (SCALE - 2)
#: Weights that are tried: about 0.11 is best for many bits per weight, and 0.25 for few.
_WEIGHTS = (WEIGHT * 7 // 64, WEIGHT * 11 // 64, WEIGHT // 4)
#: Of what is allowed, predictions aim at this less (in 1/1024), so that the first try mostly keeps the promise.
_MARGIN = 4
#: How many step numbers a larger weight may take.
_NEAR = 7
#: Halvings of the last search for a weight.
_HALVINGS = 4
#: Notches of a step number, and how much lower thresholds are at each.
_NOTCHES, _NOTCH = 8, rounding.UNIT // 40
#: Tensors up to this size are rounded again, more coarsely, if their error is below this (in 1/16 of what is allowed).
_SMALL, _UNUSED = 1 << 12, 15


@dataclass(frozen=True)
class Quantized:
    """A tensor as it is coded: levels, the number of their step (None if all are zero), and what they leave over."""

    levels: I32
    step: int | None
    residual: F32


def quantize(tensors: Sequence[F32], quality: float) -> Iterator[Quantized]:
    """Finite tensors, each of which keeps `quality` (between 0 and 1)."""
    measured = [magnitudes.measure(tensor) for tensor in tensors]
    lost = (1 << 32) - round(quality * (1 << 32))
    allowed = [m.energy * lost >> 32 for m in measured]
    live = [i for i, m in enumerate(measured) if m.exponent is not None]
    chosen = dict(zip(live, _choose([measured[i] for i in live], [allowed[i] for i in live]), strict=True))
    for index, (tensor, each) in enumerate(zip(tensors, measured, strict=True)):
        yield _kept(tensor, each, allowed[index], chosen[index]) if index in chosen else zero(tensor)


@dataclass(frozen=True)
class Choice:
    """A step number on the scale of magnitudes, and the thresholds of each group of classes [groups, TOP]."""

    number: int
    thresholds: I64


def _choose(measured: Sequence[Magnitudes], allowed: Sequence[int]) -> list[Choice]:
    """What each tensor is to be rounded with, none of them all zero."""
    if not measured:
        return []
    search = Search(measured)
    most = np.array(allowed, np.float64) * ((1024 - _MARGIN) / 1024)
    best = np.full(len(measured), np.inf)
    numbers, weights = np.zeros((2, len(measured)), np.int64)
    low, high = numbers, np.full(len(measured), NUMBERS, np.int64)
    for weight in _WEIGHTS:
        same = np.full(len(measured), weight, np.int64)
        while (low < high).any():
            middle = (low + high + 1) // 2
            found = search.find(middle, same, 3)
            low, high = _halved(found.error <= most, low, middle, high)
        found = search.find(low, same)
        # What is not used of the allowed error is worth bits, at the price that the weight says.
        size = rounding.step_size(low).astype(np.float64)
        bits = found.bits - (most - found.error) / (size * size * (weight / WEIGHT))
        better = bits < best
        best = np.where(better, bits, best)
        numbers, weights = np.where(better, low, numbers), np.where(better, weight, weights)
        low, high = np.maximum(low - _NEAR, 0), low  # a larger weight needs smaller steps, but not much
    low, high = weights, weights * 13 // 8
    for _ in range(_HALVINGS):
        middle = (low + high + 1) // 2
        found = search.find(numbers, middle)
        low, high = _halved(found.error <= most, low, middle, high)
    found = search.find(numbers, low)
    parts = np.split(found.thresholds, search.starts[1:-1])
    return [Choice(*each) for each in zip(numbers.tolist(), parts, strict=True)]


def _halved(fits: npt.NDArray[np.bool_], low: I64, middle: I64, high: I64) -> tuple[I64, I64]:
    """Brackets after a look at their middles: `low` fits, what is above `high` does not."""
    return np.where(fits, middle, low), np.where(fits, high, middle - 1)


def _kept(tensor: F32, measured: Magnitudes, allowed: int, choice: Choice) -> Quantized:
    """Round such that the error is at most what is allowed: more finely, or more coarsely, than chosen if need be."""

    def tried(notch: int) -> tuple[Quantized, int]:
        return rounded(tensor, measured, _notched(choice, notch))

    result, error = tried(0)
    notch, change = 0, 1
    while error > allowed and notch > -_NOTCHES * choice.number - _NOTCHES:
        notch, change = notch - change, change * 2
        result, error = tried(notch)
    change = _NOTCHES * 2 if notch == 0 else -notch // 2
    while change and tensor.size <= _SMALL and error * 16 < allowed * _UNUSED:
        coarser, more = tried(notch + change)
        if more <= allowed:
            result, error, notch = coarser, more, notch + change
        change //= 2
    return result


def _notched(choice: Choice, notch: int) -> Choice:
    """A choice that is coarser, or finer if `notch` is negative: thresholds sink within a step number."""
    up, lower = divmod(notch, -_NOTCHES)
    if up > choice.number:  # as fine as it gets
        return Choice(0, np.broadcast_to(rounding.LOWEST, choice.thresholds.shape))
    return Choice(choice.number - up, np.maximum(choice.thresholds + lower * _NOTCH, rounding.LOWEST))


def rounded(tensor: F32, measured: Magnitudes, choice: Choice) -> tuple[Quantized, int]:
    """A tensor that is not all zero, rounded; and its error (squares, on the scale of magnitudes)."""
    assert measured.exponent is not None
    levels, residual, error = rounding.apply(tensor, measured, choice.number, choice.thresholds)
    if not levels.any():
        return zero(tensor), error
    return Quantized(levels, choice.number + OCTAVE * (measured.exponent - SCALE), residual), error


def zero(tensor: F32) -> Quantized:
    """A tensor of which nothing is sent."""
    return Quantized(np.zeros(tensor.shape, np.int32), None, tensor)
