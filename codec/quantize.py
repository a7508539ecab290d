"""Levels for tensors: as few bits as a promise of quality allows, or as little error as a number of bytes allows.

`quality` is the share of energy (squared length) that the decoded form accounts for: at 0.9 the error has at most a
tenth of the energy, a signal-to-noise ratio of 10 dB.

Strategy: what every tensor is rounded with comes from predictions (`prices.py`). Then tensors are rounded in earnest,
and what that shows decides: a tensor whose error is more than its part is rounded again, more finely; levels that take
more bytes or fewer than predicted correct the next prediction.

Everything that decides is whole numbers or single operations of IEEE 754, so the same floats give the same bytes on
every platform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from . import magnitudes, rounding
from .magnitudes import SCALE, Magnitudes
from .prices import Choice, Prices
from .steps import OCTAVE

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

#: Share of energy that `encode_delta` sends if not told otherwise.
DEFAULT_QUALITY = 0.9
#: Of the error that is allowed, predictions (from all elements, and from a sample) aim at this, so that the first
#: rounding mostly keeps the promise.
_AIM, _AIM_SAMPLED = 1 - 1 / 512, 1 - 1 / 128
#: Notches of a step number, and how much lower thresholds are at each.
_NOTCHES, _NOTCH = 16, rounding.GRAIN
#: Predictions for so few elements are corrected by first roundings.
_SMALL = 1 << 16
#: First roundings at most, and which share of the allowed error is near enough.
_TRIES, _CLOSE = 3, 31 / 32
#: Codings in earnest at most, and which share of the bytes wanted is near enough.
_CODINGS, _NEAR = 7, 63 / 64


@dataclass(frozen=True)
class Quantized:
    """A tensor as it is coded: levels, the number of their step (None if all are zero), and what they leave over."""

    levels: I32
    step: int | None
    residual: F32


def keep(tensors: Sequence[F32], quality: float) -> Iterator[Quantized]:
    """Finite tensors of whose energy, of all together, the share `quality` (between 0 and 1) arrives."""
    measured = [magnitudes.measure(tensor) for tensor in tensors]
    allowed = (1 - quality) * math.fsum(m.absolute(m.energy) for m in measured)
    choices: Sequence[Choice | None] = [None] * len(tensors)
    if any(m.exponent is not None for m in measured):
        prices = Prices(measured)
        choices = prices.within_error(allowed * (_AIM if all(m.every == 1 for m in measured) else _AIM_SAMPLED))
        if sum(tensor.size for tensor in tensors) <= _SMALL:
            choices = _tried(tensors, measured, prices, allowed, choices)
    predicted = math.fsum(choice.error for choice in choices if choice is not None)
    part = allowed / predicted if predicted else 0.0
    unused = 0.0 if predicted else allowed
    for tensor, each, choice in zip(tensors, measured, choices, strict=True):
        if choice is None:
            yield zero(tensor)
        else:
            unused += choice.error * part
            result, error = _within(tensor, each, choice, unused)
            unused -= error
            yield result


def fit(
    tensors: Sequence[F32], most: int, smallest: int, code: Callable[[Iterable[Quantized]], bytes]
) -> tuple[bytes, Iterator[Quantized]]:
    """A blob of at most `most` bytes, close to it, and what is in it; `code` makes a blob.

    `smallest`, which is not above `most`, is the size of a blob of zeros. Tensors are rounded once more when what is in
    the blob is asked for, so that not all levels are held at once.
    """
    measured = [magnitudes.measure(tensor) for tensor in tensors]

    def made(choices: Sequence[Choice | None]) -> Iterator[Quantized]:
        for tensor, each, choice in zip(tensors, measured, choices, strict=True):
            yield zero(tensor) if choice is None else _rounded(tensor, each, choice)[0]

    best: Sequence[Choice | None] = [None] * len(tensors)
    blob = b""
    goal = most - smallest - most / 256
    bits, enough, too_many = 8.0 * goal, 0.0, math.inf
    prices = Prices(measured) if any(m.exponent is not None for m in measured) else None
    for _ in range(_CODINGS if prices is not None else 0):
        assert prices is not None
        choices = prices.within_bits(bits)
        coded = code(made(choices))
        if len(coded) > most:
            too_many = bits
        else:
            enough = bits
            if len(coded) == len(blob):
                break  # levels are as fine as they get
            if len(coded) > len(blob):
                blob, best = coded, choices
            if len(coded) >= most * _NEAR:
                break
        bits *= goal / max(len(coded) - smallest, 1)
        if not enough < bits < too_many:
            bits = (enough + too_many) / 2
    return blob or code(made(best)), made(best)


def _tried(
    tensors: Sequence[F32], measured: Sequence[Magnitudes], prices: Prices, allowed: float, first: list[Choice | None]
) -> list[Choice | None]:
    """Choices whose errors are true ones, and nearly what is allowed: for a few elements, predictions are coarse."""
    aim, choices, best, most, before = allowed * _AIM, first, first, 0.0, -1.0
    for _ in range(_TRIES):
        true = [
            choice and replace(choice, error=_rounded(tensor, each, choice)[1])
            for tensor, each, choice in zip(tensors, measured, choices, strict=True)
        ]
        error = math.fsum(choice.error for choice in true if choice is not None)
        if most < error <= allowed:
            best, most = true, error
        if allowed * _CLOSE <= error <= allowed or error in (0.0, before):
            break
        before = error
        aim *= allowed * (1 + _CLOSE) / 2 / error
        choices = prices.within_error(aim)
    return best


def zero(tensor: F32) -> Quantized:
    """A tensor of which nothing is sent."""
    return Quantized(np.zeros(tensor.shape, np.int32), None, tensor)


def _within(tensor: F32, measured: Magnitudes, choice: Choice, allowed: float) -> tuple[Quantized, float]:
    """A tensor rounded as chosen, or more finely, so that its error (the second result) is at most what is allowed."""
    result, error = _rounded(tensor, measured, choice)
    notch, change = 0, 1
    while error > allowed and notch < _NOTCHES * (choice.number + 1):
        notch, change = notch + change, change * 2
        result, error = _rounded(tensor, measured, _finer(choice, notch))
    return result, error


def _finer(choice: Choice, notches: int) -> Choice:
    """A choice of a smaller step, or of lower thresholds within a step number."""
    numbers, lower = divmod(notches, _NOTCHES)
    if numbers > choice.number:  # as fine as it gets
        return Choice(0, np.broadcast_to(rounding.LOWEST, choice.thresholds.shape), 0.0)
    return Choice(choice.number - numbers, np.maximum(choice.thresholds - lower * _NOTCH, rounding.LOWEST), 0.0)


def _rounded(tensor: F32, measured: Magnitudes, choice: Choice) -> tuple[Quantized, float]:
    """A tensor that is not all zero, rounded; and its error."""
    assert measured.exponent is not None
    levels, residual, error = rounding.apply(tensor, measured, choice.number, choice.thresholds)
    absolute = measured.absolute(error)
    if not levels.any():
        return zero(tensor), absolute
    return Quantized(levels, choice.number + OCTAVE * (measured.exponent - SCALE), residual), absolute
