"""Which level a magnitude becomes: the one that is cheapest in error and bits together.

Strategy: a magnitude of u steps becomes the level n for which (u - n)^2 + weight * bits(n) is least, `bits` being what
level n costs in its class, by the entropy of that class's levels. As a function of u these costs are parabolas, so
each class has **thresholds**: from the n-th on a magnitude becomes at least n. Levels that never pay have none to
themselves: a class may well use 0 and 2 only. Bits follow from thresholds and thresholds from bits; a few turns
settle both. (Entropy-constrained scalar quantization: Chou, Lookabaugh, Gray, 1989; in video coders, rate-distortion-
optimized quantization.) All turns are taken on the running sums of `magnitudes.py`; then one pass over the tensor
looks each magnitude up.

Small tensors share their classes' costs by expected size in steps, as they will share codes; others have their own.
From level 8 on, levels are nearest ones, and an octave of them has one cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from . import magnitudes
from .coding import fixed
from .magnitudes import SCALE, Magnitudes
from .steps import OCTAVE, multiply

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

#: Levels that have thresholds: 1 to TOP.
TOP = 8
#: Thresholds are in units of 1 / UNIT step, weights in units of 1 / WEIGHT of a squared step for each bit.
UNIT, WEIGHT = 256, 1024
#: Octaves of levels from TOP on.
_TALL = 15
#: A look-up table has this many entries for each step, so thresholds are multiples of this.
_FINE = 64
GRAIN = UNIT // _FINE
#: Tensors from this size on have costs of their own.
_OWN = 1 << 12
#: Lowest thresholds. Half a step and a bit: the difference to the level is exact in float32 then (Sterbenz). Higher
#: levels may reach down if they are cheap, but not below the level before.
LOWEST = np.array([UNIT // 2 + GRAIN, *(UNIT * n - UNIT * 3 // 4 for n in range(2, TOP + 1))], np.int64)
#: Thresholds to begin with: a little dead zone.
_FIRST = UNIT * np.arange(1, TOP + 1) - UNIT * 13 // 32
_HUGE = 1 << 60
#: Elements of a piece: its temporaries stay in the cache.
_PIECE = 1 << 15

_LEVELS = np.arange(TOP + 1)
#: [i, j] for levels i < j: twice their distance, and the difference of their squares in units of thresholds.
_APART = np.maximum(2 * (_LEVELS[None, :] - _LEVELS[:, None]), 1)
_SQUARES = UNIT * (_LEVELS[None, :] ** 2 - _LEVELS[:, None] ** 2)
_ABOVE = _LEVELS[None, :] > _LEVELS[:, None]
#: Bits of a token besides its entropy: a sign, and for an octave of levels the place in it.
_EXTRA = np.array([0, *[1] * (TOP - 1), *(1 + 3 + k for k in range(_TALL + 1))], np.int64) << fixed.FRACTION


def step_size(numbers: I64) -> I64:
    """The sizes of steps by their numbers (at least 0), on the scale of scaled magnitudes."""
    return (OCTAVE + numbers % OCTAVE) << (numbers // OCTAVE)


@dataclass(frozen=True)
class Found:
    """What some steps and weights lead to.

    `thresholds` of each group of classes of each tensor, tensors one after another [groups, TOP]; of each tensor the
    expected `error`, the sum of squares on the scale of magnitudes, and the `bits` [tensors].
    """

    thresholds: I64
    error: F64
    bits: F64


class Search:
    """Predicts error and bits of tensors, for any steps and weights, from their magnitudes."""

    def __init__(self, measured: Sequence[Magnitudes]) -> None:
        self._tensors = len(measured)
        sizes = [len(m.scales) for m in measured]
        self._tensor = np.repeat(np.arange(len(measured)), sizes)
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self._sums = np.concatenate([m.sums for m in measured])
        self._scales = np.concatenate([m.scales for m in measured])
        self._own = np.array([m.size >= _OWN for m in measured], np.bool_)[self._tensor]
        self._every = np.array([m.every for m in measured], np.float64)
        self._totals = self._sums[:, :, -1]

    def find(self, numbers: I64, weights: I64, turns: int = 4, start: I64 | None = None) -> Found:
        """Take some turns at a step number and a weight for each tensor, from thresholds `start` on.

        Without turns, `start` is what error and bits are predicted for.
        """
        steps = step_size(numbers)[self._tensor]
        weight = weights[self._tensor]
        pools, pool = self._pools(steps)
        tall = (2 * UNIT * TOP - UNIT // 2) << np.arange(_TALL, dtype=np.int64)
        tall_places = magnitudes.positions(tall * steps[:, None])
        thresholds = np.broadcast_to(_FIRST, (len(steps), TOP)) if start is None else start
        for turn in range(turns + 1):
            places = np.concatenate([magnitudes.positions(thresholds * steps[:, None]), tall_places], axis=1)
            counts = _between(self._below(0, places), self._totals[:, 0] << magnitudes.FRACTION)
            costs = _costs(counts, pools, pool)
            if turn < turns:
                thresholds = _thresholds(costs[:, : TOP + 1], weight)
        bits = (counts * costs).sum(axis=1)
        # Sums are on a coarser scale than steps.
        whole, first, second = (each.astype(np.float64) for each in self._moments(places[:, : TOP + 1]))
        size = steps * 2.0 ** (magnitudes.SUM_SCALE - SCALE)
        squares = whole[:, TOP] * (size * size / 12)
        for level in range(TOP):
            squares += second[:, level] - first[:, level] * (2 * level * size) + whole[:, level] * (level * size) ** 2
        squares *= 4.0 ** (SCALE - magnitudes.SUM_SCALE) / (1 << magnitudes.FRACTION)
        error = np.rint(np.maximum(squares, 0)).astype(np.int64)
        return Found(thresholds, self._by_tensor(error) * self._every, self._by_tensor(bits) * self._every * 2.0**-22)

    def _below(self, power: int, places: I64) -> I64:
        """Counts (or sums of `power`) below places, times 2**FRACTION, as if bins were filled evenly."""
        index, part = places >> magnitudes.FRACTION, places & ((1 << magnitudes.FRACTION) - 1)
        rows = np.arange(len(places))[:, None]
        low = self._sums[rows, power, index]
        high = self._sums[rows, power, np.minimum(index + 1, magnitudes.BINS)]
        result: I64 = (low << magnitudes.FRACTION) + (high - low) * part
        return result

    def _moments(self, places: I64) -> tuple[I64, I64, I64]:
        """Counts, sums and sums of squares between places, times 2**FRACTION.

        A place cuts a bin in two, each with its own mean.
        """
        index, part = places >> magnitudes.FRACTION, places & ((1 << magnitudes.FRACTION) - 1)
        index = np.minimum(index, magnitudes.BINS - 1)
        rows = np.arange(len(places))[:, None]
        count = self._sums[rows, 0, index + 1] - self._sums[rows, 0, index]
        low, width = (each[index] for each in magnitudes.edges())
        rest = (1 << magnitudes.FRACTION) - part
        whole, first, second = (self._below(power, places) for power in range(3))
        first -= (count * width * part * rest) >> (magnitudes.FRACTION + 1)
        over = low * width + width * width * (rest + 2 * part) // (3 << magnitudes.FRACTION)
        second -= ((count * part * rest) * over) >> magnitudes.FRACTION
        totals = self._totals.T << magnitudes.FRACTION
        return _between(whole, totals[0]), _between(first, totals[1]), _between(second, totals[2])

    def _pools(self, steps: I64) -> tuple[int, I64]:
        """How many sets of costs there are, and which one each class has."""
        relative = self._scales - (fixed.log2(steps) >> (fixed.FRACTION - 1))
        keys = np.where(self._own, 1000 + np.arange(len(steps)), np.clip(relative, -20, 20))
        kinds, pool = np.unique(keys, return_inverse=True)
        return len(kinds), pool.reshape(-1)

    def _by_tensor(self, values: I64) -> F64:
        result = np.zeros(self._tensors, np.int64)
        np.add.at(result, self._tensor, values)
        return result.astype(np.float64)


def _between(below: I64, total: I64) -> I64:
    """From what is below each of some ascending places, what is between them, before the first and after the last."""
    result = np.empty((len(below), below.shape[1] + 1), np.int64)
    result[:, :-1] = below
    result[:, -1] = total
    result[:, 1:] -= below
    return result


def _costs(counts: I64, pools: int, pool: I64) -> I64:
    """Bits (times 2**16) of each token, for each class, when a set of costs is that of the entropy of its pool."""
    pooled = np.zeros((pools, counts.shape[1]), np.int64)
    np.add.at(pooled, pool, counts)
    pooled += 1
    result: I64 = (_log2(pooled.sum(axis=1))[:, None] - _log2(pooled) + _EXTRA)[pool]
    return result


@cache
def _logarithms() -> I64:
    """log2(1 + (i + 1/2) / 1024), times 2**16."""
    return fixed.log2(2 * np.arange(1024, dtype=np.int64) + 2049) - (11 << fixed.FRACTION)


def _log2(numbers: I64) -> I64:
    """log2, times 2**16, of positive whole numbers: to a thousandth, and several times as fast as `fixed.log2`."""
    bits = numbers.astype(np.float32).view(np.int32)
    result: I64 = _logarithms()[(bits >> 13) & 1023]
    result += ((bits >> 23) - 127) << fixed.FRACTION
    return result


def _thresholds(costs: I64, weight: I64) -> I64:
    """Where the lower envelope of the parabolas of all levels passes from below level n to n or more."""
    apart = costs[:, None, :] - costs[:, :, None]
    shift = (WEIGHT.bit_length() - 1) + fixed.FRACTION - (UNIT.bit_length() - 1)
    crossing = (_SQUARES + ((weight[:, None, None] * apart) >> shift)) // _APART
    highest = np.maximum.accumulate(np.where(_ABOVE, crossing, -_HUGE), axis=1)
    found = np.where(_ABOVE, highest, _HUGE)[:, :TOP].min(axis=2)
    found = np.clip((found + GRAIN // 2) & -GRAIN, LOWEST, TOP * UNIT)
    return np.maximum.accumulate(found, axis=1)


def apply(tensor: F32, measured: Magnitudes, number: int, thresholds: I64) -> tuple[I32, F32, int]:
    """(levels, residual, error) of a tensor that is not all zero: one pass.

    `number` is the step's on the scale of scaled magnitudes, `thresholds` are those of the tensor's groups of classes
    [groups, TOP]. The residual is exact in float32; the error is its sum of squares on the scale of scaled
    magnitudes, rounded up.
    """
    assert measured.exponent is not None
    step = int(step_size(np.array([number], np.int64))[0])
    table = _table(measured, thresholds)
    last = np.float32(TOP * _FINE)
    # A residual is at most TOP steps: on this scale it has at most 22 bits.
    finer = 19 - step.bit_length()
    flat = np.ascontiguousarray(tensor).reshape(-1)
    classes = measured.classes()
    levels = np.empty(flat.size, np.int32)
    residual = np.empty(flat.size, np.float32)
    error = 0
    for start in range(0, flat.size, _PIECE):
        part = flat[start : start + _PIECE]
        here = slice(start, start + len(part))
        fine = magnitudes.scaled(part, measured.exponent)
        fine *= np.float32(_FINE / step)
        index = np.minimum(fine, last).astype(np.int32)
        if classes is not None:
            index += np.multiply(classes[here], np.int32(table.shape[1]), dtype=np.int32)
        level = table.take(index).astype(np.float32)
        if index.size and float(fine.max()) >= last:
            far = np.flatnonzero(fine >= last)
            level[far] = np.rint(fine[far] * np.float32(1 / _FINE))
        np.copysign(level, part, out=level)
        levels[here] = level
        multiply(level, number + OCTAVE * (measured.exponent - SCALE))
        np.subtract(part, level, out=residual[here])
        left = np.rint(magnitudes.scaled(residual[here], measured.exponent - finer)).astype(np.int64)
        error += int(np.dot(left, left))
    error = -(-error >> 2 * finer) if finer >= 0 else error << -2 * finer
    return levels.reshape(tensor.shape), residual.reshape(tensor.shape), error


def _table(measured: Magnitudes, thresholds: I64) -> U8:
    """The level of each class and fine position [CLASSES, TOP * _FINE + 1]."""
    entries = np.arange(TOP * _FINE + 1) * GRAIN
    table = (thresholds[:, None, :] <= entries[:, None]).sum(axis=2, dtype=np.uint8)
    result: U8 = table[measured.groups]
    return result
