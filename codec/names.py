"""Names and shapes of arrays, in a few bits for each array of a network that repeats itself.

A name is cut into parts (words, digits, marks). Networks are made of layers and blocks, so the next name is often to
the name some places back as the last one is to the one before that: "blocks.1.depthwise.weight" and then
"blocks.1.depthwise.bias" follow from "blocks.0...". Such an array costs one bit, and one more if its shape follows
likewise. Else the parts shared with the name before cost next to nothing, other parts are looked up in a list
of recent ones, which begins with words that most networks use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from .coding.bits import BitReader, BitWriter
from .errors import CodecError
from .limits import CodecLimits

T = TypeVar("T")
Parts = list[bytes]
Shape = tuple[int, ...]

#: Parts of a name. Words are of lower-case letters only: those are spelled in 5 bits each.
_PARTS = re.compile(rb"[a-z]+|0|[1-9][0-9]{0,8}|[^a-z0-9]+|.", re.DOTALL)
_WORD = re.compile(rb"[a-z]+")
_NUMBER = re.compile(rb"0|[1-9][0-9]{0,8}")
#: Numbers in names that follow from others stay below this.
_LARGEST_NUMBER = 10**9
#: Items that a list of recent ones remembers.
_MEMORY = 256
#: How far back a name that the next follows from may be.
_FARTHEST = 64
#: Parts of names that others follow from, and arrays whose sizes are looked at: what bounds the time for an array.
_MOST_PARTS, _MOST_SHAPES = 64, 8
#: What the list of recent parts begins with. The order is part of the format.
_COMMON = tuple(
    b". weight bias _ conv 0 1 2 3 layer layers blocks block features norm bn fc head linear attn mlp proj out in "
    b"depthwise pointwise stem embed running mean var gamma beta kernel ih hh l dense / 4 5 6 7 w b".split(b" ")
)


class Recent(Generic[T]):
    """A list of items, the most recent first, kept alike by both ends."""

    def __init__(self, items: Sequence[T] = ()) -> None:
        self._items: list[T] = list(items)

    def write(self, head: BitWriter, item: T, spell: Callable[[BitWriter, T], None]) -> None:
        """Write an item's place, or the place after the last and its spelling."""
        known = item in self._items
        place = self._items.index(item) if known else len(self._items)
        head.number(place)
        if not known:
            spell(head, item)
        self._keep(place, item)

    def read(self, head: BitReader, spelled: Callable[[BitReader], T]) -> T:
        """The inverse of `write`."""
        place = head.number(largest=len(self._items))
        item = self._items[place] if place < len(self._items) else spelled(head)
        self._keep(place, item)
        return item

    def _keep(self, place: int, item: T) -> None:
        del self._items[place : place + 1]
        self._items.insert(0, item)
        del self._items[_MEMORY:]


class Described:
    """The names and shapes so far, kept alike by both ends."""

    def __init__(self) -> None:
        self._names: list[Parts] = []
        self._shapes: list[Shape] = []
        self._distance = 1
        self._parts: Recent[bytes] = Recent(_COMMON)
        self._ranks: Recent[int] = Recent()
        self._dimensions: Recent[int] = Recent()

    def write(self, head: BitWriter, name: str, shape: Shape) -> None:
        """Write the next array's name and shape."""
        parts = _PARTS.findall(name.encode())
        distance = next((d for d in self._distances() if self._name(d) == parts), 0)
        if self._names:
            head.number(1 if not distance else 0 if distance == self._distance else 1 + distance)
        if distance:
            self._distance = distance
        else:
            self._spell(head, parts)
        follows = bool(distance) and self._shape(distance) == shape
        if distance:
            head.bits(follows, 1)
        if not follows:
            self._ranks.write(head, len(shape), lambda h, rank: h.number(rank))
            for dimension in shape:
                self._dimensions.write(head, dimension, lambda h, size: h.number(size, 4))
        self._names.append(parts)
        self._shapes.append(shape)

    def read(self, head: BitReader, limits: CodecLimits) -> tuple[str, Shape]:
        """The inverse of `write`; `CodecError` for names and shapes beyond `limits`."""
        number = head.number(largest=1 + min(len(self._names), _FARTHEST)) if self._names else 1
        if number == 1:
            parts = self._spelled(head, limits)
        else:
            self._distance = number - 1 if number else self._distance
            parts = self._name(self._distance)
            if sum(map(len, parts)) > limits.name_bytes:
                raise CodecError(_too_long(limits))
        if number != 1 and head.bits(1):
            shape = self._shape(self._distance)
        else:
            rank = self._ranks.read(head, lambda h: h.number(largest=limits.dimensions))
            shape = tuple(self._dimensions.read(head, lambda h: h.number(4, largest=2**62)) for _ in range(rank))
        self._names.append(parts)
        self._shapes.append(shape)
        try:
            return b"".join(parts).decode(), shape
        except UnicodeDecodeError as error:
            raise CodecError("a name is not UTF-8: the blob is damaged") from error

    def _distances(self) -> list[int]:
        farthest = min(len(self._names), _FARTHEST)
        return [self._distance, *range(1, farthest + 1)] if farthest else []

    def _name(self, distance: int) -> Parts:
        """The name that is to the one `distance` back as the last is to the one `distance` before it."""
        like = self._names[-distance]
        if distance >= len(self._names):
            return like
        return _analogous(self._names[-1 - distance], self._names[-1], like)

    def _shape(self, distance: int) -> Shape:
        """The shape `distance` back, its sizes changed as those since have changed against those before."""
        changed: dict[int, int] = {}
        for back in range(min(distance, len(self._shapes) - distance, _MOST_SHAPES), 0, -1):
            before, after = self._shapes[-back - distance], self._shapes[-back]
            if len(before) == len(after):
                changed.update(zip(before, after, strict=True))
        return tuple(changed.get(size, size) for size in self._shapes[-distance])

    def _spell(self, head: BitWriter, name: Parts) -> None:
        before = self._names[-1] if self._names else []
        shared = 0
        while shared < min(len(name), len(before)) and name[shared] == before[shared]:
            shared += 1
        head.number(len(before) - shared)
        head.number(len(name) - shared, 1)
        for part in name[shared:]:
            self._parts.write(head, part, _spell)

    def _spelled(self, head: BitReader, limits: CodecLimits) -> Parts:
        before = self._names[-1] if self._names else []
        name = before[: len(before) - head.number(largest=len(before))]
        size = sum(map(len, name))
        for _ in range(head.number(1, largest=limits.name_bytes)):
            name.append(self._parts.read(head, lambda h: _spelled(h, limits)))
            size += len(name[-1])
            if size > limits.name_bytes:
                raise CodecError(_too_long(limits))
        return name


def _analogous(a: Parts, b: Parts, c: Parts) -> Parts:
    """What is to c as b is to a: numbers count on, other parts are replaced. Long names are c."""
    if max(len(a), len(b), len(c)) > _MOST_PARTS:
        return c
    if len(a) == len(b):
        result = list(c)
        for place, (old, new) in enumerate(zip(a, b, strict=True)):
            if old == new or place >= len(c):
                continue
            if all(_NUMBER.fullmatch(part) for part in (old, new, c[place])):
                number = int(c[place]) + int(new) - int(old)
                result[place] = b"%d" % number if 0 <= number < _LARGEST_NUMBER else c[place]
            elif c[place] == old:
                result[place] = new
        return result
    shared = 0
    while shared < min(len(a), len(b)) and a[-1 - shared] == b[-1 - shared]:
        shared += 1
    front = a[: len(a) - shared]
    return b[: len(b) - shared] + c[len(front) :] if c[: len(front)] == front else c


def _spell(head: BitWriter, part: bytes) -> None:
    if _WORD.fullmatch(part):
        head.bits(0, 1)
        head.number(len(part), 2)
        for letter in part:
            head.bits(letter - ord("a"), 5)
    elif _NUMBER.fullmatch(part):
        head.bits(2, 2)
        head.number(int(part), 2)
    else:
        head.bits(3, 2)
        head.number(len(part))
        for byte in part:
            head.bits(byte, 8)


def _spelled(head: BitReader, limits: CodecLimits) -> bytes:
    if not head.bits(1):
        length = head.number(2, largest=limits.name_bytes)
        return bytes((head.bits(5) + ord("a")) & 255 for _ in range(length))
    if not head.bits(1):
        return b"%d" % head.number(2, largest=_LARGEST_NUMBER)
    return bytes(head.bits(8) for _ in range(head.number(largest=limits.name_bytes)))


def _too_long(limits: CodecLimits) -> str:
    return f"a name is longer than {limits.name_bytes} bytes: raise name_bytes of CodecLimits to read it"
