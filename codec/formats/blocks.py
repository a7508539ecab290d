"""Blocks of 256 values that share a scale, and the plainest map: linear int8.

Strategy: an array is cut into blocks; what a block becomes is left to three small methods of a format (scale, encode,
decode) that see a matrix of whole blocks, so everything is vectorized; the last, shorter block is a matrix of one row.
Long arrays go through in pieces that stay in the cache, so temporaries stay small.

Source of blockwise scales: Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2022).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CodecError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]

#: Values that share a scale.
BLOCK = 256
#: Values that go through at once: 128 KiB of float32.
_PIECE = 128 * BLOCK
#: Magnitudes from here on are refused like infinity: rounded up, they would become it.
HUGE = np.float32(2.0**127)
#: A block whose largest magnitude is below this is stored as zeros: its products with the map would be subnormal.
TINY = np.float32(2.0**-100)


@dataclass(slots=True)
class Packed:
    """`codes`: uint8 [n]; `scales`: float32 [blocks], 0 for a block of zeros."""

    codes: U8
    scales: Scales

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.codes.nbytes + self.scales.nbytes


class BlockFormat(ABC):
    """A map of 256 codes and a rule for the scale of a block. Subclasses see matrices [blocks, width]."""

    name: str

    @abstractmethod
    def scales(self, blocks: F32) -> Scales:
        """The scale of each row, 0 where the row is to be zero; not finite where the row is not."""

    @abstractmethod
    def encode(self, blocks: F32, scales: Scales, codes: U8) -> None:
        """Codes of rows under scales [blocks, 1], none of them zero."""

    @abstractmethod
    def decode(self, codes: U8, scales: Scales, out: F32) -> None:
        """Values of rows of codes under scales [blocks, 1]."""

    @abstractmethod
    def row_bound(self, blocks: F32) -> F32:
        """The largest error of each value, beyond what a whole block of zeros loses."""

    def nbytes(self, count: int) -> int:
        """Bytes that `count` values take: a byte each, and four per block."""
        return count + 4 * -(-count // BLOCK)

    def zeros(self, count: int) -> Packed:
        """`count` packed zeros, to be written to."""
        return Packed(np.zeros(count, np.uint8), np.zeros(-(-count // BLOCK), np.float32))

    def pack(self, values: F32) -> Packed:
        """Pack values of any shape, in order. Raises CodecError for NaN and infinity."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        packed = self.zeros(flat.size)
        self.write(packed, 0, flat)
        return packed

    def unpack(self, packed: Packed) -> F32:
        """float32 [n]."""
        out = np.empty(packed.codes.size, np.float32)
        self.read(packed, 0, out)
        return out

    def write(self, packed: Packed, start: int, values: F32) -> None:
        """Replace the values from `start` (a multiple of 256) on. Raises CodecError for NaN and infinity.

        `values` is contiguous, and must end at the end of a block or of the array.
        """
        first = start // BLOCK
        for begin, rows in _matrices(values):
            at = start + begin
            codes = packed.codes[at : at + rows.size].reshape(rows.shape)
            block = first + begin // BLOCK
            scales = packed.scales[block : block + len(rows)]
            found = self.scales(rows)
            if not np.isfinite(found).all():
                raise CodecError(
                    f"{self.name}: cannot hold NaN or infinity (from 2^127 on); check the values before packing them"
                )
            scales[...] = found
            empty = found == 0
            some = bool(empty.any())
            if some:
                found[empty] = 1
            self.encode(rows, found[:, None], codes)
            if some:
                codes[empty] = 0

    def read(self, packed: Packed, start: int, out: F32) -> None:
        """Unpack the values from `start` (a multiple of 256) on into `out`, which ends where `write` could end."""
        first = start // BLOCK
        for begin, rows in _matrices(out):
            at = start + begin
            codes = packed.codes[at : at + rows.size].reshape(rows.shape)
            block = first + begin // BLOCK
            self.decode(codes, packed.scales[block : block + len(rows), None], rows)

    def bound(self, values: F32) -> F32:
        """How far each value may move when packed and unpacked, in its shape."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        out = np.empty_like(flat)
        for begin, rows in _matrices(flat):
            out[begin : begin + rows.size] = self.row_bound(rows).reshape(-1)
        return (out + TINY).reshape(np.shape(values))


def _matrices(flat: F32) -> Iterator[tuple[int, F32]]:
    """(position, view as [blocks, 256]) of whole blocks, then the rest as [1, fewer]."""
    whole = flat.size // BLOCK * BLOCK
    for begin in range(0, whole, _PIECE):
        yield begin, flat[begin : min(begin + _PIECE, whole)].reshape(-1, BLOCK)
    if whole < flat.size:
        yield whole, flat[whole:].reshape(1, -1)


def largest(blocks: F32) -> Scales:
    """The largest magnitude of each row, 0 below `TINY`, infinity from `HUGE` on; NaN stays NaN.

    Magnitudes are compared as integers (their bits without the sign), which is several times faster, NaN being above
    infinity.
    """
    bits = np.left_shift(blocks.view(np.uint32), np.uint32(1)).max(axis=1)
    found: Scales = np.right_shift(bits, np.uint32(1)).view(np.float32)
    found[found < TINY] = 0
    found[found >= HUGE] = np.inf
    return found


class Linear(BlockFormat):
    """int8: code * (largest magnitude / 127), codes -127 to 127. Error: at most half a step, 1/254 of the largest."""

    name = "int8"

    def scales(self, blocks: F32) -> Scales:
        """The largest magnitude."""
        return largest(blocks)

    def encode(self, blocks: F32, scales: Scales, codes: U8) -> None:
        """Round to nearest, ties to even."""
        steps = blocks / scales
        steps *= np.float32(127)
        np.rint(steps, out=steps)
        codes.view(np.int8)[...] = steps

    def decode(self, codes: U8, scales: Scales, out: F32) -> None:
        """Division first: code 127 gives the scale exactly."""
        np.divide(codes.view(np.int8), np.float32(127), out=out)
        out *= scales

    def row_bound(self, blocks: F32) -> F32:
        """Half a step, and the rounding of the arithmetic."""
        return np.broadcast_to(largest(blocks)[:, None] * np.float32((0.5 + 1e-4) / 127), blocks.shape)
