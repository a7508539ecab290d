"""Bits in and out: a writer and reader for small side information, and vectorized packing for the bulk.

All bits are most significant first. Numbers in side information are Exp-Golomb codes (as in ISO/IEC 14496-10, clause
9.1): small numbers take few bits and no number is too large. The bulk never goes through the scalar reader: `pack`
places all codes at once and `unpack` gathers all raw fields at once, both from precomputed bit positions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import CodecError

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

#: Longest number that side information can hold, in bits.
_LONGEST_NUMBER = 66
#: Fields are placed and gathered in pieces of this many bits: with up to 7 bits of offset they fit a 24-bit window.
_PIECE = 16


def zigzag(value: int) -> int:
    """Fold a signed number into a natural one: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`."""
    return -((value + 1) >> 1) if value & 1 else value >> 1


class BitWriter:
    """Collects bits, most significant first."""

    def __init__(self) -> None:
        self._bits: list[str] = []
        self.length = 0

    def bits(self, value: int, count: int) -> None:
        """`count` bits holding `value` (0 <= value < 2**count)."""
        if count:
            self._bits.append(format(value, f"0{count}b"))
            self.length += count

    def number(self, value: int, order: int = 0) -> None:
        """A natural number in Exp-Golomb code of `order`: 2 * floor(log2(value / 2**order + 1)) + 1 + order bits."""
        value += 1 << order
        self.bits(value, 2 * value.bit_length() - 1 - order)

    def signed(self, value: int, order: int = 0) -> None:
        """A signed number, folded by `zigzag`."""
        self.number(zigzag(value), order)

    def to_bytes(self) -> bytes:
        """All bits, padded with zeros to whole bytes."""
        size = -(-self.length // 8)
        return (int("".join(self._bits) or "0", 2) << (8 * size - self.length)).to_bytes(size, "big")


class BitReader:
    """Reads what `BitWriter` wrote; `CodecError` beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def _peek(self, count: int) -> int:
        first, last = self.position >> 3, (self.position + count + 7) >> 3
        piece = self._data[first:last].ljust(last - first, b"\0")
        return (int.from_bytes(piece, "big") >> (8 * last - self.position - count)) & ((1 << count) - 1)

    def bits(self, count: int) -> int:
        """The next `count` bits as a natural number."""
        if self.position + count > 8 * len(self._data):
            raise CodecError("the blob ends inside its header: it was cut off; fetch it again")
        value = self._peek(count)
        self.position += count
        return value

    def number(self, order: int = 0, largest: int = 2**64 - 1) -> int:
        """The next Exp-Golomb number; `CodecError` if it exceeds `largest`."""
        zeros = _LONGEST_NUMBER - self._peek(_LONGEST_NUMBER).bit_length()
        if zeros >= _LONGEST_NUMBER:
            raise CodecError(f"no number at bit {self.position} of the header: the blob is damaged")
        value = self.bits(2 * zeros + 1 + order) - (1 << order)
        if value > largest:
            raise CodecError(f"{value} at bit {self.position} of the header exceeds the limit of {largest}")
        return value

    def signed(self, order: int = 0) -> int:
        """The next signed number."""
        return unzigzag(self.number(order))

    def align(self) -> int:
        """Skip the padding (which must be zeros) up to the next whole byte; returns that byte's index."""
        if self.bits(-self.position % 8):
            raise CodecError("padding bits are not zero: the blob is damaged")
        return self.position >> 3


def windows(data: bytes, margin: int) -> npt.NDArray[np.uint32]:
    """For every byte of `data`, and `margin` zero bytes after it, the 24 bits that start there."""
    padded = np.zeros(len(data) + margin + 2, np.uint32)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    result: npt.NDArray[np.uint32] = (padded[:-2] << np.uint32(16)) | (padded[1:-1] << np.uint32(8)) | padded[2:]
    return result


def pack(values: U64, lengths: I64, total: int) -> bytes:
    """Place `values[i]` in `lengths[i]` (0 to 64) bits, one after another; `total` is the sum of the lengths."""
    size = -(-total // 8)
    ends = np.cumsum(lengths)
    out = np.zeros(size + 3, np.int64)
    for shift in range(0, 64, _PIECE):
        chosen = np.flatnonzero(lengths > shift)
        if not len(chosen):
            break
        length = np.minimum(lengths[chosen] - shift, _PIECE)
        start = ends[chosen] - shift - length
        mask = (np.int64(1) << length) - 1
        piece = (values[chosen] >> np.uint64(shift)).astype(np.int64) & mask
        piece <<= 24 - length - (start & 7)
        first = start >> 3
        # No two fields share a bit, so sums are unions; float sums of bytes are exact.
        for index in range(3):
            byte = (piece >> (16 - 8 * index)) & 255
            out += np.bincount(first + index, byte, size + 3).astype(np.int64)
    return out[:size].astype(np.uint8).tobytes()


def unpack(window: npt.NDArray[np.uint32], start: int, lengths: I64) -> U64:
    """Gather fields of `lengths[i]` (0 to 64) bits that lie one after another from bit `start` on.

    The caller has checked that `start` plus all lengths lies within the data of `windows`.
    """
    ends = np.cumsum(lengths) + start
    values = np.zeros(len(lengths), np.uint64)
    for shift in range(0, 64, _PIECE):
        chosen = np.flatnonzero(lengths > shift)
        if not len(chosen):
            break
        length = np.minimum(lengths[chosen] - shift, _PIECE)
        begin = ends[chosen] - shift - length
        piece = window[begin >> 3].astype(np.int64) >> (24 - length - (begin & 7))
        piece &= (np.int64(1) << length) - 1
        values[chosen] |= piece.astype(np.uint64) << np.uint64(shift)
    return values
