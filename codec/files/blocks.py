"""The rest of a file in blocks: compressed by a general coder, or copied from the old file of a patch.

A block that resembles the old file's rest is copies and what lies between them (as in RFC 3284's VCDIFF): the old
rest is indexed by words, and after a difference the search goes on where the two files would be in step again.
"""

from __future__ import annotations

from ..coding.bits import BitReader, BitWriter
from ..errors import CodecError
from . import general
from .layout import Rest
from .source import Source

#: Bytes of the rest in one block.
BLOCK = 1 << 22
COPIES = 4
#: Bytes of the old rest that are searched, and how far before the block's own place they begin.
_WINDOW, _BEFORE = 1 << 23, 1 << 21
#: Bytes of a word of the index, and of the shortest copy that is in step.
_WORD, _SHORTEST = 16, 6
#: A block that is copied but for one byte in so many is not tried otherwise.
_ALIKE = 8


class Old:
    """The rest of the old file."""

    def __init__(self, source: Source, rest: Rest) -> None:
        self.source, self.rest = source, rest

    def read(self, place: int, size: int) -> bytes:
        """Some of its bytes."""
        return self.rest.read(self.source, place, size)


def write(data: bytes, place: int, old: Old | None) -> bytes:
    """A block, whose bytes begin at `place` of the rest."""
    found: list[tuple[int, bytes]] = []
    literal = len(data)
    if old is not None and old.rest.size:
        copied, literal = _write_copies(data, place, old)
        found.append((COPIES, copied))
    if _ALIKE * literal >= len(data):
        found.append(general.squeeze(data))
    method, body = min(found, key=lambda form: len(form[1]))
    return bytes([method]) + body


def read(coded: bytes, size: int, place: int, old: Old | None) -> bytes:
    """The inverse of `write`, for a block of `size` bytes."""
    if not coded:
        raise CodecError("a block of a packed file is empty: the blob is damaged")
    if coded[0] != COPIES:
        return general.expand(coded[0], coded[1:], size)
    if old is None:
        raise CodecError("a block is copied from an old file, and there is none: the blob is damaged")
    return _read_copies(coded[1:], size, place, old)


def _write_copies(data: bytes, place: int, old: Old) -> tuple[bytes, int]:
    """(bytes, how many of the block's bytes are not copied)."""
    first = max(0, min(place - _BEFORE, old.rest.size - _WINDOW))
    window = old.read(first, min(_WINDOW, old.rest.size - first))
    index: dict[bytes, int] = {}
    for at in range(len(window) - _WORD, -1, -_WORD // 2):
        index[window[at : at + _WORD]] = at
    head = BitWriter()
    copies: list[tuple[int, int, int]] = []
    literals: list[bytes] = []
    at = begun = 0
    expected = place - first
    while at < len(data):
        step = expected + at - begun
        source = step if step >= 0 and data[at : at + _SHORTEST] == window[step : step + _SHORTEST] else None
        if source is None:
            source = index.get(data[at : at + _WORD])
        length = _common(data, at, window, source) if source is not None else 0
        if source is None or length < _SHORTEST:
            at += 1
            continue
        copies.append((at - begun, length, source - step))
        literals.append(data[begun:at])
        at = begun = at + length
        expected = source + length
    literals.append(data[begun:])
    head.number(len(copies), 2)
    for before, length, jump in copies:
        head.number(before, 4)
        head.number(length, 6)
        head.signed(jump)
    left = b"".join(literals)
    method, body = general.squeeze(left)
    return head.to_bytes() + bytes([method]) + body, len(left)


def _read_copies(coded: bytes, size: int, place: int, old: Old) -> bytes:
    head = BitReader(coded)
    copies: list[tuple[int, int, int]] = []
    expected, left = place, size
    for _ in range(head.number(2, largest=size)):
        before, length = head.number(4, largest=left), head.number(6, largest=left)
        source = expected + before + head.signed()
        left -= before + length
        if left < 0 or not 0 <= source <= source + length <= old.rest.size:
            raise CodecError("a copy goes beyond its block or the old file: the patch is damaged")
        copies.append((before, length, source))
        expected = source + length
    at = head.align()
    literal_size = size - sum(length for _, length, _ in copies)
    if at >= len(coded):
        raise CodecError("a block of a patch is cut off: the patch is damaged")
    literals = general.expand(coded[at], coded[at + 1 :], literal_size)
    parts: list[bytes] = []
    at = 0
    for before, length, source in copies:
        parts += [literals[at : at + before], old.read(source, length)]
        at += before
    return b"".join([*parts, literals[at:]])


def _common(a: bytes, i: int, b: bytes, j: int) -> int:
    """How many bytes are equal from a[i] and b[j] on."""
    length, step = 0, 64
    most = min(len(a) - i, len(b) - j)
    while length < most:
        step = min(step, most - length)
        if a[i + length : i + length + step] == b[j + length : j + length + step]:
            length += step
            step *= 2
        elif step == 1:
            break
        else:
            step = max(1, step // 4)
    return length
