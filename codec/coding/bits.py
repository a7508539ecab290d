"""Bits in and out: a writer and reader for small side information, and vectorized packing for the bulk.

All bits are most significant first. Numbers in side information are Exp-Golomb codes (as in ISO/IEC 14496-10, clause
9.1): small numbers take few bits and no number is too large. The bulk never goes through the scalar reader: `place`
and `pack` place all fields at once and `unpack` gathers all raw fields at once, both from precomputed bit positions in
words of 64 bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import CodecError

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

#: Zeros before a number are fewer than this, and orders are at most 16: no number takes more bits than the second.
_LONGEST_NUMBER, _LONGEST_FIELD = 66, 148
#: A reader holds this many bytes; a number of as many ones as the index says.
_CHUNK = 64
_ONES = [(1 << count) - 1 for count in range(8 * _CHUNK + 1)]
#: Fields are placed so many at a time, which keeps what is made of them in the cache.
_PIECE = 1 << 14
#: Each byte with its bits in reverse.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


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
            self._bits.append(bin(value | 1 << count)[3:])
            self.length += count

    def number(self, value: int, order: int = 0) -> None:
        """A natural number in Exp-Golomb code of `order`: 2 * floor(log2(value / 2**order + 1)) + 1 + order bits."""
        value += 1 << order
        self.bits(value, 2 * value.bit_length() - 1 - order)

    def signed(self, value: int, order: int = 0) -> None:
        """A signed number, folded by `zigzag`."""
        self.number(zigzag(value), order)

    def flags(self, values: npt.NDArray[np.bool_]) -> None:
        """One bit for each value."""
        self._bits.append("".join(map(str, values.astype(np.uint8).tolist())))
        self.length += len(values)

    def to_bytes(self) -> bytes:
        """All bits, padded with zeros to whole bytes."""
        size = -(-self.length // 8)
        return (int("".join(self._bits) or "0", 2) << (8 * size - self.length)).to_bytes(size, "big")


class BitReader:
    """Reads what `BitWriter` wrote; `CodecError` beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._size = 8 * len(data)
        self._chunk, self._end = 0, -1
        self.position = 0

    def _load(self) -> None:
        """Hold the bits of the next `_CHUNK` bytes, as if zeros followed the data."""
        first = self.position >> 3
        piece = self._data[first : first + _CHUNK].ljust(_CHUNK, b"\0")
        self._chunk = int.from_bytes(piece, "big")
        self._end = 8 * (first + _CHUNK)

    def bits(self, count: int) -> int:
        """The next `count` bits (at most 500) as a natural number."""
        end = self.position + count
        if end > self._end:
            if end > self._size:
                raise CodecError("the blob ends inside its header: it was cut off; fetch it again")
            self._load()
        self.position = end
        return self._chunk >> (self._end - end) & _ONES[count]

    def number(self, order: int = 0, largest: int = 2**64 - 1) -> int:
        """The next Exp-Golomb number; `CodecError` if it exceeds `largest`."""
        left = self._end - self.position
        if left < _LONGEST_FIELD:
            self._load()
            left = self._end - self.position
        rest = self._chunk & _ONES[left]
        size = rest.bit_length()
        width = 2 * (left - size) + 1 + order
        if left - size >= _LONGEST_NUMBER:
            raise CodecError(f"no number at bit {self.position} of the header: the blob is damaged")
        if self.position + width > self._size:
            raise CodecError("the blob ends inside its header: it was cut off; fetch it again")
        value = (rest >> (left - width)) - (1 << order)
        if value > largest:
            raise CodecError(f"{value} at bit {self.position} of the header exceeds the limit of {largest}")
        self.position += width
        return value

    def numbers(self, count: int, order: int = 0) -> list[int]:
        """The next `count` numbers of one order."""
        return [self.number(order) for _ in range(count)]

    def signed(self, order: int = 0) -> int:
        """The next signed number."""
        return unzigzag(self.number(order))

    def flags(self, count: int) -> npt.NDArray[np.bool_]:
        """The next `count` bits, each as a truth value."""
        begin, end = self.position, self.position + count
        if end > self._size:
            raise CodecError("the blob ends inside its header: it was cut off; fetch it again")
        self.position = end
        piece = np.frombuffer(self._data[begin >> 3 : (end + 7) >> 3], np.uint8)
        return np.unpackbits(piece)[begin & 7 : (begin & 7) + count].astype(np.bool_)

    def align(self) -> int:
        """Skip the padding (which must be zeros) up to the next whole byte; returns that byte's index."""
        if self.bits(-self.position % 8):
            raise CodecError("padding bits are not zero: the blob is damaged")
        return self.position >> 3


def place(values: U64, lengths: I64, starts: I64, total: int) -> bytes:
    """`total` bits, a multiple of 64, with `values[i]` in `lengths[i]` (0 to 64) bits from bit `starts[i]` on.

    Starts ascend and no two fields share a bit; bits in no field are zeros.
    """
    words = np.zeros((total >> 6) + 1, np.uint64)
    for begin in range(0, len(values), _PIECE):
        piece = slice(begin, begin + _PIECE)
        _place(words, values[piece], lengths[piece], starts[piece])
    return words[:-1].astype(">u8").tobytes()


def _place(words: U64, values: U64, lengths: I64, starts: I64) -> None:
    if not lengths.all():
        used = np.flatnonzero(lengths)
        if not len(used):
            return
        values, lengths, starts = values[used], lengths[used], starts[used]
    word, offset = starts >> 6, starts & 63
    top = values << (64 - lengths).astype(np.uint64)
    first = np.flatnonzero(np.diff(word, prepend=-1))
    words[word[first]] |= np.bitwise_or.reduceat(top >> offset.astype(np.uint64), first)
    # Of the fields that begin in one word, the last alone can reach into the next.
    over = np.flatnonzero(offset + lengths > 64)
    words[word[over] + 1] |= top[over] << (64 - offset[over]).astype(np.uint64)


def pack(values: U64, lengths: I64, total: int) -> bytes:
    """Place `values[i]` in `lengths[i]` (0 to 64) bits, one after another; `total` is the sum of the lengths."""
    placed = place(values, lengths, np.cumsum(lengths) - lengths, -(-total // 64) * 64)
    return placed[: -(-total // 8)]


def words(data: bytes) -> U64:
    """`data` in words of 64 bits, the most significant first, with a word of zeros or more after it."""
    return np.frombuffer(data + bytes(8 + -len(data) % 8), ">u8").astype(np.uint64)


def unpack(data: U64, start: int, lengths: I64) -> U64:
    """Gather fields of `lengths[i]` (0 to 64) bits that lie one after another from bit `start` of `words` on.

    The caller has checked that `start` plus all lengths lies within the data.
    """
    values = np.zeros(len(lengths), np.uint64)
    for first in range(0, len(lengths), _PIECE):
        used = np.flatnonzero(lengths[first : first + _PIECE])
        if not len(used):
            continue
        used += first
        length = lengths[used].astype(np.int64)
        begin = np.cumsum(length)
        end = start + int(begin[-1])
        begin -= length - start
        offset = (begin & 63).astype(np.uint64)
        begin >>= 6
        found = data.take(begin) << offset
        begin += 1
        found |= (data.take(begin) >> np.uint64(1)) >> (np.uint64(63) - offset)
        found >>= (64 - length).astype(np.uint64)
        values[used] = found
        start = end
    return values


def reverse(data: bytes) -> bytes:
    """All bits in reverse order."""
    return data[::-1].translate(_REVERSED)
