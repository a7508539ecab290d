"""Gradients of one group, added up over micro-batches and calls, as float32 or in a byte per number.

Strategy: as the optimizer's state: small tensors stay float32, large ones may be packed in blocks of their own, and
only a piece is unpacked at a time, to be added to or to be handed to the optimizer. Packed sums are rounded anew with
every micro-batch, so they are near the sum, not equal to it. Memory is taken once and kept for the next step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codec.formats import BLOCK, BlockFormat, number_format
from .clipping import squared_norm
from .optimizers.state import PIECE, STATE_FORMATS, Scratch, Slot, spans

FloatArray = npt.NDArray[np.float32]


class GradientSum:
    """The sum for the tensors at `slots` of a flat gradient. `precision`: a name of `STATE_FORMATS`."""

    def __init__(self, slots: Sequence[Slot], precision: str, scratch: Scratch | None = None) -> None:
        formats = STATE_FORMATS[precision]
        self._format: BlockFormat | None = None if formats is None else number_format(formats[0])
        self._spans = list(spans([Slot(s.offset, s.count) for s in slots], formats is not None))
        self._scratch = scratch or Scratch()
        self._factor, self._limit = 1.0, 0.0
        self.empty = True

    def add(self, gradient: FloatArray) -> None:
        """Add a flat gradient. It must be finite where it is packed (ValueError)."""
        if self.empty:
            self._allocate()
        for span in self._spans:
            if not span.packed and self.empty:
                span.means[0][...] = gradient[span.start : span.stop]
            elif not span.packed:
                span.means[0] += gradient[span.start : span.stop]
            else:
                assert self._format is not None
                for start in range(0, span.stop - span.start, PIECE):
                    part = gradient[span.start + start : min(span.start + start + PIECE, span.stop)]
                    if not self.empty:
                        (total,) = self._scratch.pieces(1, part.size)
                        self._format.read(span.codes[0], start, total)
                        total += part
                        part = total
                    self._format.write(span.codes[0], start, part)
        self.empty = False

    def _allocate(self) -> None:
        for span in self._spans:
            count = span.stop - span.start
            if span.packed and not span.codes:
                assert self._format is not None
                span.codes = [self._format.zeros(count)]
            elif not span.packed and not span.means:
                span.means = [np.zeros(count, np.float32)]

    def clear(self) -> None:
        """Begin anew."""
        self._factor, self._limit = 1.0, 0.0
        self.empty = True

    @property
    def square(self) -> float:
        """The sum of squares of all numbers; infinity or NaN as `squared_norm`."""
        total = 0.0
        for span in self._spans:
            for start in range(span.start, span.stop, PIECE):
                total += squared_norm(self[start : min(start + PIECE, span.stop)])
        return total

    def flat(self, size: int) -> FloatArray:
        """All of it as one array, of a gradient of `size` numbers."""
        found = np.zeros(size, np.float32)
        for span in self._spans:
            for start in range(span.start, span.stop, PIECE):
                stop = min(start + PIECE, span.stop)
                found[start:stop] = self[start:stop]
        return found

    def scale(self, factor: float, limit: float | None) -> None:
        """What is read from now on is multiplied by `factor`, then kept within -limit and limit."""
        self._factor, self._limit = factor, limit or 0.0

    def __getitem__(self, piece: slice) -> FloatArray:
        """A piece of at most `PIECE` numbers, valid until the next one is asked for."""
        start, stop = int(piece.start), int(piece.stop)
        if self._format is None and not self.empty and len(self._spans) == 1:
            (span,) = self._spans
            return self._scaled(span.means[0][start - span.start : stop - span.start])
        total, part = self._scratch.pieces(2, PIECE + BLOCK)
        out = total[: stop - start]
        out[...] = 0
        for span in self._spans:
            first, last = max(start, span.start), min(stop, span.stop)
            if first >= last:
                continue
            if span.packed and not self.empty:
                assert self._format is not None
                begin = (first - span.start) // BLOCK * BLOCK
                values = part[: last - span.start - begin]
                self._format.read(span.codes[0], begin, values)
                out[first - start : last - start] = values[first - span.start - begin :]
            elif not self.empty:
                out[first - start : last - start] = span.means[0][first - span.start : last - span.start]
        return self._scaled(out)

    def _scaled(self, piece: FloatArray) -> FloatArray:
        """In place: a sum is read once after it was told its scale."""
        if self._factor != 1:
            piece *= np.float32(self._factor)
        if self._limit:
            np.clip(piece, np.float32(-self._limit), np.float32(self._limit), out=piece)
        return piece

    def arrays(self) -> Iterator[npt.NDArray[Any]]:
        """Everything that makes up the sum, in a fixed order: what to save, and to restore in place."""
        self._allocate()
        for span in self._spans:
            yield from span.means
            for codes in span.codes:
                yield codes.codes
                yield codes.scales
