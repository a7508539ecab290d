"""Codebooks: weights that share at most 256 values, an index of one byte for each.

Strategy: the values are those of k-means in one dimension, where clusters are intervals of the sorted data: with
running sums over it, a turn of Lloyd's algorithm is a search for the borders and a division, whatever the number of
weights. Clusters begin where the data are dense (as often as the root of the density), ends included. Zero is always a
value of the codebook, and exactly that, so pruned weights stay pruned. Data of few different values are kept exactly.

Sources: Han, Mao, Dally, "Deep Compression" (2016), weight sharing; Lloyd, "Least squares quantization in PCM" (1982);
point density: Panter and Dite (1951), who have the cube root.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from .blocks import HUGE

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

#: Values of a codebook at most: an index is a byte.
LARGEST_CODEBOOK = 256
#: Turns of Lloyd's algorithm at most; it ends when no border moves.
_TURNS = 100
#: Bins of the density from which clusters begin.
_BINS = 4096
#: Weights that are looked up at once.
_PIECE = 1 << 16


@dataclass(frozen=True)
class Codebook:
    """`values`: float32 [k], ascending, all different, one of them zero."""

    values: F32

    @staticmethod
    def fit(weights: F32, size: int) -> Codebook:
        """At most `size` (2 to 256) values with a small squared error for `weights` of any shape.

        Raises `CodecError` for another size, and for weights that are NaN, infinite or from 2^127 on.
        """
        if not 2 <= size <= LARGEST_CODEBOOK:
            raise CodecError(f"a codebook of {size} values is asked for: 2 to {LARGEST_CODEBOOK} are possible")
        data = np.sort(np.ascontiguousarray(weights, np.float32), axis=None)
        # NaN is last, and fails the comparison.
        if data.size and not (data[0] > -HUGE and data[-1] < HUGE):
            raise CodecError("a codebook cannot hold NaN or infinity (from 2^127 on): check the weights before")
        begins = np.flatnonzero(np.diff(data, prepend=np.float32(np.nan)) != 0) if data.size else np.zeros(0, np.int64)
        different = np.union1d(data[begins], np.zeros(1, np.float32))
        return Codebook((different if len(different) <= size else _lloyd(data, size)) + np.float32(0))

    def encode(self, weights: F32) -> U8:
        """The index of the nearest value for each weight, in its shape; of two equally near ones the upper."""
        flat = np.ascontiguousarray(weights, np.float32).reshape(-1)
        codes = np.empty(flat.size, np.uint8)
        borders = _borders(self.values)
        for part in _pieces(flat.size):
            codes[part] = np.searchsorted(borders, flat[part].astype(np.float64), side="right")
        return codes.reshape(np.shape(weights))

    def decode(self, codes: U8) -> F32:
        """The values of indices. Raises `CodecError` for an index that has none."""
        if codes.size and int(codes.max()) >= len(self.values):
            raise CodecError(f"index {int(codes.max())} is beyond a codebook of {len(self.values)} values")
        result: F32 = self.values.take(codes)
        return result

    def bound(self, weights: F32) -> F32:
        """How far each weight may move: half the gap that it lies in, or what it is beyond the outermost values."""
        flat = np.asarray(weights, np.float64)
        above = np.clip(np.searchsorted(self.values, flat), 1, max(len(self.values) - 1, 1))
        low, high = self.values.astype(np.float64)[[above - 1, np.minimum(above, len(self.values) - 1)]]
        found = np.maximum((high - low) / 2, np.maximum(low - flat, flat - high))
        result: F32 = np.nextafter(found.astype(np.float32), np.float32(np.inf))
        return result


def _lloyd(data: F32, size: int) -> F32:
    """The values for sorted data of more than `size` different ones."""
    sums = np.concatenate([[0.0], np.cumsum(data, dtype=np.float64)])
    values = _begin(data, size)
    ends = np.zeros(0, np.int64)
    for _ in range(_TURNS):
        found = np.concatenate([[0], np.searchsorted(data, _borders(values)), [data.size]])
        if np.array_equal(found, ends):
            break
        ends = found
        counts = np.diff(ends)
        used = counts > 0
        means = np.diff(sums[ends])[used] / counts[used]
        values = _with_zero(means.astype(np.float32))
    return values


def _begin(data: F32, size: int) -> F32:
    """Values to begin with."""
    low, high = float(data[0]), float(data[-1])
    edges = low + (high - low) / _BINS * np.arange(_BINS + 1)
    counts = np.diff(np.searchsorted(data, edges[1:-1]), prepend=0, append=data.size)
    dense = np.cumsum(np.sqrt(counts.astype(np.float64)))
    places = np.searchsorted(dense, dense[-1] / size * (np.arange(size) + 0.5))
    middles = (edges[:-1] + edges[1:]) / 2
    return _with_zero(middles[places].astype(np.float32))


def _with_zero(values: F32) -> F32:
    """Ascending and different, the one nearest to zero moved there."""
    values[np.argmin(np.abs(values))] = 0
    return np.unique(values)


def _borders(values: F32) -> F64:
    wide = values.astype(np.float64)
    result: F64 = (wide[:-1] + wide[1:]) / 2
    return result


def _pieces(count: int) -> Iterator[slice]:
    for start in range(0, count, _PIECE):
        yield slice(start, min(start + _PIECE, count))
