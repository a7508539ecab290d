"""What a file holds that is worth more than general compression: tensors, where they are, of what type and shape."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class Type(enum.IntEnum):
    """How the items of a tensor lie in a file, little-endian. The numbers stand in blobs and are never reused."""

    INT8 = 0
    UINT8 = 1
    INT16 = 2
    UINT16 = 3
    INT32 = 4
    UINT32 = 5
    INT64 = 6
    UINT64 = 7
    FLOAT16 = 8
    #: The upper half of a float32.
    BFLOAT16 = 9
    FLOAT32 = 10
    FLOAT64 = 11
    #: Two items a byte, the lower half first; a lone last item has an upper half of zero.
    INT4 = 12
    UINT4 = 13
    #: 64-bit integers as protocol buffers pack them: 7 bits a byte, the lowest first.
    VARINT = 14

    @property
    def floating(self) -> bool:
        """Whether items have an exponent."""
        return Type.FLOAT16 <= self <= Type.FLOAT64

    @property
    def width(self) -> int:
        """Bytes of an item (1 for halves of bytes, 8 for varints, whose bytes vary)."""
        return _WIDTHS[self]


_WIDTHS = (1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8, 1, 1, 8)


@dataclass(frozen=True)
class Tensor:
    """`size` bytes from byte `start` of a file on: items of `type` in `shape`, in C order."""

    name: str
    start: int
    size: int
    type: Type
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.start + self.size

    @property
    def count(self) -> int:
        """The number of items."""
        return math.prod(self.shape)


def typed(name: str, start: int, size: int, type: Type, shape: tuple[int, ...]) -> Tensor | None:
    """A tensor whose shape is that of its bytes: flat where `shape` does not fit; None if items do not fit either."""
    if type is Type.VARINT:
        return Tensor(name, start, size, type, shape)
    count = math.prod(shape)
    if type in (Type.INT4, Type.UINT4):
        return Tensor(name, start, size, type, shape if (count + 1) // 2 == size else (2 * size,))
    if size % type.width:
        return None
    if count * type.width != size:
        shape = (size // type.width,)
    return Tensor(name, start, size, type, shape)
