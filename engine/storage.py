"""The weights of a group in memory: real numbers in one flat array, integers in one for each element type.

Strategy: a group has one flat index, which gradients and the optimizer's state follow. Real weights come first in it
and lie in memory as they lie in the index, so that a model without integers is updated in place. Integers take their
own bytes only; an optimizer is handed a piece of zeros for them, and what it has made of it is the change by which
they move (`quantized.move`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .aligned import aligned_zeros
from .exchange import padded
from .plan import Quantization
from .quantized import IntegerArray, dequantize_part, move

FloatArray = npt.NDArray[np.float32]


@dataclass(slots=True)
class Group:
    """Weights whose gradients are complete after the same step, as views of one flat array."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    offsets: list[int] = field(default_factory=list)
    size: int = 0

    def __post_init__(self) -> None:
        for shape in self.shapes:
            self.offsets.append(self.size)
            self.size += padded(shape)

    def gaps(self, flat: FloatArray) -> list[FloatArray]:
        """What lies between the tensors of a flat array."""
        ends = [o + int(np.prod(s, dtype=np.int64)) for o, s in zip(self.offsets, self.shapes, strict=True)]
        return [flat[end:begin] for end, begin in zip(ends, [*self.offsets[1:], self.size], strict=True) if end < begin]

    def views(self, flat: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """{name: view in its shape} of a flat array."""
        return {
            name: flat[offset : offset + int(np.prod(shape, dtype=np.int64))].reshape(shape)
            for name, shape, offset in zip(self.names, self.shapes, self.offsets, strict=True)
        }


def group_of(names: list[str], shapes: Mapping[str, tuple[int, ...]], quantized: Mapping[str, Quantization]) -> Group:
    """A group of these weights, the real ones first."""
    ordered = sorted(names, key=lambda n: quantized[n].dtype if n in quantized else "")
    return Group(ordered, [shapes[n] for n in ordered])


@dataclass(frozen=True, slots=True)
class _Integers:
    """One integer weight: its place in the group's index, and its numbers, flat."""

    offset: int
    numbers: IntegerArray
    how: Quantization


class Storage:
    """The weights of one group. `views`: {name: array in its shape and element type}; `random`: what rounds."""

    def __init__(self, group: Group, quantized: Mapping[str, Quantization], random: np.random.Generator | None) -> None:
        self._random = random
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._integers: list[_Integers] = []
        self.views: dict[str, npt.NDArray[Any]] = {}
        offsets = dict(zip(group.names, group.offsets, strict=True))
        shapes = dict(zip(group.names, group.shapes, strict=True))
        for dtype in ("float32", *sorted({how.dtype for n, how in quantized.items() if n in offsets})):
            names = [n for n in group.names if (quantized[n].dtype if n in quantized else "float32") == dtype]
            part = Group(names, [shapes[n] for n in names])
            self._arrays[dtype] = aligned_zeros(part.size, dtype)
            self.views |= part.views(self._arrays[dtype])
            if dtype != "float32":
                self._integers += [_Integers(offsets[n], self.views[n].reshape(-1), quantized[n]) for n in names]

    @property
    def real(self) -> FloatArray:
        """The real weights, as the group's index begins."""
        return self._arrays["float32"]

    def arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """(element type, flat array): what to save, and to restore in place."""
        yield from self._arrays.items()

    def open(self, start: int, stop: int, decay: float) -> FloatArray:
        """What an optimizer is to update for this piece of the index, shrunk by `decay`; then call `close`."""
        real = self.real
        if not self._integers or stop <= real.size:
            piece = real[start:stop]
            if decay != 1:
                piece *= np.float32(decay)
            return piece
        piece = np.zeros(stop - start, np.float32)
        if start < real.size:
            piece[: real.size - start] = real[start:] * np.float32(decay)
        if decay != 1:
            for weight, first, last in self._parts(start, stop):
                part = dequantize_part(weight.numbers[first:last], weight.how, first)
                part *= np.float32(decay - 1)
                piece[weight.offset + first - start : weight.offset + last - start] = part
        return piece

    def close(self, start: int, stop: int, piece: FloatArray) -> None:
        """Take what an optimizer has made of a piece; integers are rounded at random."""
        real = self.real
        if not self._integers or stop <= real.size or self._random is None:
            return
        if start < real.size:
            real[start:] = piece[: real.size - start]
        for weight, first, last in self._parts(start, stop):
            change = piece[weight.offset + first - start : weight.offset + last - start]
            move(weight.numbers[first:last], change, weight.how, first, self._random)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[_Integers, int, int]]:
        """Integer weights that a piece of the index meets: (weight, first and last number of it)."""
        begin = max(bisect_right(self._integers, start, key=lambda w: w.offset) - 1, 0)
        for weight in self._integers[begin:]:
            if weight.offset >= stop:
                break
            first, last = max(start - weight.offset, 0), min(stop - weight.offset, weight.numbers.size)
            if first < last:
                yield weight, first, last
