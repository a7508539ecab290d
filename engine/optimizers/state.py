"""The running means of one group of weights, as float32 or in a byte per number.

Strategy: the flat array of a group is cut into spans of tensors that are treated alike. Tensors of fewer than 4,096
numbers stay float32 (all of them together are little, and norms and biases suffer most), larger ones are held in the
chosen format, each in blocks of its own, so a block never mixes two tensors. A step unpacks a piece, updates it and
packs it again; nothing larger than a piece is ever unpacked.

Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2022); the float formats after Micikevicius et
al., "FP8 Formats for Deep Learning" (2022), with scales per block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...codec.formats import BLOCK, BlockFormat, Packed, number_format
from ..aligned import aligned_zeros
from ..errors import EngineError
from .updates import OPTIMIZERS, Optimizer, check_optimizer

FloatArray = npt.NDArray[np.float32]

#: Name -> number formats of a running mean with signs and of one without. A mean of squares is divided by, and spans
#: twice the decades of a gradient: linear formats would round most of it to zero, so it takes the dynamic map there.
STATE_FORMATS: dict[str, tuple[str, str] | None] = {
    "float32": None,
    "dynamic8": ("dynamic8", "dynamic8u"),
    "fixed8": ("fixed8", "dynamic8u"),
    "e4m3": ("e4m3", "dynamic8u"),
    "e5m2": ("e5m2", "dynamic8u"),
}
#: Tensors with fewer numbers keep float32 means.
SMALL = 4096
#: Numbers that go through at once.
PIECE = 1 << 15


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor's place in a flat array, and whether its weights decay."""

    offset: int
    count: int
    decays: bool = True


@dataclass(slots=True)
class Span:
    """Neighbours that are treated alike: numbers `start` to `stop` of the flat array."""

    start: int
    stop: int
    decays: bool
    packed: bool
    #: One per running mean.
    means: list[FloatArray] = field(default_factory=list)
    codes: list[Packed] = field(default_factory=list)


def check_state(precision: str) -> None:
    """Raises EngineError for a name that is not in `STATE_FORMATS`."""
    if precision not in STATE_FORMATS:
        raise EngineError(f"there is no optimizer state in {precision!r}; choose one of {', '.join(STATE_FORMATS)}")


def state_bytes(name: str, precision: str, shapes: Iterable[Sequence[int]]) -> int:
    """Bytes that the running means of tensors of these shapes take. Raises EngineError."""
    check_state(precision)
    total = 0
    for count in (math.prod(shape) for shape in shapes):
        packed = precision != "float32" and count >= SMALL
        total += check_optimizer(name) * (count + 4 * -(-count // BLOCK) if packed else 4 * count)
    return total


class Sliced(Protocol):
    """A flat gradient that is handed out piece by piece, each valid until the next is asked for."""

    def __getitem__(self, piece: slice) -> FloatArray: ...


class Pieces(Protocol):
    """Weights that are not one flat array of real numbers, handed out piece by piece."""

    def open(self, start: int, stop: int, decay: float) -> FloatArray:
        """What is to be updated for the numbers from `start` to `stop`, shrunk by the factor `decay`."""

    def close(self, start: int, stop: int, piece: FloatArray) -> None:
        """Take the piece back, updated."""


@dataclass(frozen=True, slots=True)
class _Flat:
    """A flat array, in place."""

    weights: FloatArray

    def open(self, start: int, stop: int, decay: float) -> FloatArray:
        piece = self.weights[start:stop]
        if decay != 1:
            piece *= np.float32(decay)
        return piece

    def close(self, start: int, stop: int, piece: FloatArray) -> None:
        pass


class Scratch:
    """A piece of memory for every array that a step needs beside what it updates; states may share one."""

    def __init__(self) -> None:
        self._arrays: list[FloatArray] = []

    def pieces(self, number: int, count: int) -> list[FloatArray]:
        """Arrays of `count` numbers with anything in them."""
        if len(self._arrays) < number or self._arrays[0].size < count:
            self._arrays = [aligned_zeros(count, np.float32) for _ in range(number)]
        return [a[:count] for a in self._arrays[:number]]


class OptimizerState:
    """The running means of a flat array of weights."""

    def __init__(self, name: str, precision: str, slots: Sequence[Slot], scratch: Scratch | None = None) -> None:
        """Zeros for the tensors at `slots`. Raises EngineError."""
        check_optimizer(name)
        check_state(precision)
        formats = STATE_FORMATS[precision]
        signs = OPTIMIZERS[name].means
        self._formats: list[BlockFormat] = (
            [] if formats is None else [number_format(formats[0] if signed else formats[1]) for signed in signs]
        )
        self._spans = list(spans(slots, bool(self._formats)))
        for span in self._spans:
            count = span.stop - span.start
            if span.packed:
                span.codes = [kind.zeros(count) for kind in self._formats]
            else:
                span.means = [aligned_zeros(count, np.float32) for _ in signs]
        self._scratch = scratch or Scratch()
        self._longest = max((min(PIECE, s.stop - s.start) for s in self._spans), default=0)
        self._packs = any(s.packed for s in self._spans)

    @property
    def nbytes(self) -> int:
        """Bytes of the running means (a few pieces of scratch come on top)."""
        return sum(m.nbytes for s in self._spans for m in s.means) + sum(c.nbytes for s in self._spans for c in s.codes)

    def apply(
        self, optimizer: Optimizer, weights: FloatArray | Pieces, gradient: FloatArray | Sliced, step: int
    ) -> None:
        """One step of all weights, in place. `gradient` is finite and stays as it is."""
        pieces = _Flat(weights) if isinstance(weights, np.ndarray) else weights
        scratch, *unpacked = self._scratch.pieces(1 + len(self._formats) * self._packs, self._longest)
        for span in self._spans:
            decay = 1 - optimizer.learning_rate * optimizer.weight_decay if span.decays else 1.0
            for start in range(span.start, span.stop, PIECE):
                stop = min(start + PIECE, span.stop)
                count, at = stop - start, start - span.start
                w = pieces.open(start, stop, decay)
                if span.packed:
                    means = [u[:count] for u in unpacked]
                    for kind, codes, mean in zip(self._formats, span.codes, means, strict=True):
                        kind.read(codes, at, mean)
                else:
                    means = [m[at : at + count] for m in span.means]
                optimizer.update(w, gradient[start:stop], means, step, scratch[:count])
                pieces.close(start, stop, w)
                if span.packed:
                    for kind, codes, mean in zip(self._formats, span.codes, means, strict=True):
                        kind.write(codes, at, mean)

    def reset(self) -> None:
        """All zeros, as at the start."""
        for array in self.arrays():
            array[...] = 0

    def arrays(self) -> Iterator[npt.NDArray[np.generic]]:
        """Everything that makes up the state, in a fixed order: what to save, and to restore in place."""
        for span in self._spans:
            yield from span.means
            for codes in span.codes:
                yield codes.codes
                yield codes.scales


def spans(slots: Sequence[Slot], pack: bool) -> Iterator[Span]:
    """Tensors that follow each other and are treated alike, as one span; a packed tensor is a span of its own.

    What lies between tensors (padding) belongs to the span before: its gradient is zero.
    """
    current: Span | None = None
    for slot in sorted(slots, key=lambda s: s.offset):
        packed = pack and slot.count >= SMALL
        end = slot.offset + slot.count
        if current is not None and not packed and not current.packed and current.decays == slot.decays:
            current.stop = end
            continue
        if current is not None:
            yield current
        current = Span(slot.offset, end, slot.decays, packed)
    if current is not None:
        yield current
