"""Arrays in groups: what bounds the memory of encoding, decoding and summing.

The arrays of a blob go, in order, into groups of at most `GROUP_ELEMENTS` elements; a larger array is a group alone.
Arrays without elements are in no group. Both ends know the shapes from the directory, so both cut alike, and nothing
about the cut is written. A group is coded by itself: whoever reads holds one group at a time.

::

    size of the group in bytes (7 bits a byte, lowest first, the top bit says that more follow), the group; ...
    the last group, without its size: it ends where the payload ends
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from .errors import CodecError

T = TypeVar("T")

#: Elements of a group of several arrays at most.
GROUP_ELEMENTS = 1 << 20
#: Bytes of a group's size at most (63 bits).
_LONGEST_SIZE = 9


def cut(items: Iterable[T], count: Callable[[T], int], most: int = GROUP_ELEMENTS) -> Iterator[list[T]]:
    """The items in groups, each as soon as it is complete; `count` gives an item's number of elements."""
    group: list[T] = []
    total = 0
    for item in items:
        more = count(item)
        if not more:
            continue
        if group and total + more > most:
            yield group
            group, total = [], 0
        group.append(item)
        total += more
    if group:
        yield group


def join(groups: Sequence[bytes]) -> Iterator[bytes]:
    """The pieces of a payload that hold these groups."""
    for group in groups[:-1]:
        yield size_bytes(len(group))
        yield group
    yield from groups[-1:]


def split(payload: bytes, at: int, total: int) -> Iterator[bytes]:
    """The `total` groups that lie in `payload` from byte `at` to its end; `CodecError` if they do not add up."""
    for _ in range(total - 1):
        size, at = read_size(payload, at)
        if size > len(payload) - at:
            raise CodecError("a group of arrays goes beyond the end of the blob: it was cut off; fetch it again")
        yield payload[at : at + size]
        at += size
    if total:
        yield payload[at:]
    elif at != len(payload):
        raise CodecError("bytes are left over at the end of the blob: it is damaged")


def size_bytes(size: int) -> bytes:
    """A size in as few bytes as it needs."""
    result = bytearray()
    while size > 127:
        result.append(size & 127 | 128)
        size >>= 7
    result.append(size)
    return bytes(result)


def read_size(data: bytes, at: int) -> tuple[int, int]:
    """(size, place after it) of what `size_bytes` wrote at place `at`."""
    size = 0
    for index, byte in enumerate(data[at : at + _LONGEST_SIZE]):
        size |= (byte & 127) << (7 * index)
        if byte < 128:
            if not byte and index:
                break
            return size, at + index + 1
    raise CodecError(f"no size of a group at byte {at} of the payload: the blob is damaged")
