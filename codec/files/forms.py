"""How a piece of a tensor becomes integer arrays for the coder, and bytes that nothing can shrink.

- `VALUES`: integers as they are.
- `PLANES`: floats are turned left by one bit, so that the exponent fills the first byte and the sign goes last, and
  their bytes are coded apart: exponents of weights take about 3 bits of 8. Planes of noise are kept as bytes.
- `PALETTE`: few distinct floats (shared weights, or weights that went through quantization): their list, and for each
  item its place in it, counted from zero's, so that neighbours in value are neighbours in place.
- `SAME`, `DIFFERENCE`, `EXCLUSIVE`: against the old file of a patch. Floats as integers in the order of their values
  are subtracted; or the planes of the exclusive or are coded.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..coding.bits import BitReader, BitWriter
from ..errors import CodecError
from . import protobuf
from .estimate import bits_of_bytes, bits_of_integers
from .pieces import Link, Range
from .tensors import Type

I64 = npt.NDArray[np.int64]
Words = npt.NDArray[Any]  # unsigned


class Form(enum.IntEnum):
    """The numbers stand in blobs and are never reused."""

    VALUES = 0
    PLANES = 1
    PALETTE = 2
    SAME = 3
    DIFFERENCE = 4
    EXCLUSIVE = 5


_FORM_BITS = 3
#: Entries of a palette at most, and items that are looked at before all are.
_LARGEST_PALETTE, _SAMPLE = 4096, 8192
_HALVES = (Type.INT4, Type.UINT4)


@dataclass
class Parts:
    """A piece in one form: what the head says, the arrays for the coder, bytes as they are, and its bits, about."""

    form: Form
    bits: int = 0
    arrays: list[I64] = field(default_factory=list)
    raw: bytes = b""
    planes: list[bool] = field(default_factory=list)
    palette: list[int] = field(default_factory=list)
    count: int = 0


def choose(piece: Range, data: bytes, old: bytes | None) -> Parts:
    """The form with the fewest bits."""
    if old == data:
        return Parts(Form.SAME)
    found = [_planes(Form.PLANES, piece, data)] if piece.type.floating else [_values(piece, data)]
    if piece.type.floating:
        found += _palette(piece, data)
    if old is not None and piece.type not in (Type.VARINT, *_HALVES):
        found += [_difference(piece, data, old), _planes(Form.EXCLUSIVE, piece, _exclusive(data, old))]
    return min(found, key=lambda parts: parts.bits)


def write(head: BitWriter, piece: Range, parts: Parts) -> None:
    """Append what the head says of a piece."""
    head.bits(parts.form, _FORM_BITS)
    for kept in parts.planes:
        head.bits(kept, 1)
    if parts.form is Form.PALETTE:
        width = 8 * piece.type.width
        steps = [b - a - 1 for a, b in zip(parts.palette, parts.palette[1:], strict=False)]
        order = max(sum(steps) // max(1, len(steps)), 1).bit_length() - 1
        head.number(len(parts.palette) - 1, 4)
        head.bits(parts.palette[0], width)
        head.bits(order, 6)
        for step in steps:
            head.number(step, order)
    if parts.form is Form.VALUES and piece.type is Type.VARINT:
        head.number(parts.count, 8)


def read(head: BitReader, piece: Range) -> Parts:
    """The inverse of `write`: parts without arrays and bytes."""
    number = head.bits(_FORM_BITS)
    if number not in set(Form):
        raise CodecError(f"form {number} of a tensor is not known here: a newer version wrote it; update this side")
    parts = Parts(Form(number))
    if parts.form in (Form.SAME, Form.DIFFERENCE, Form.EXCLUSIVE) and piece.link is not Link.OLD:
        raise CodecError("a tensor is compared with none: the blob is damaged")
    if parts.form in (Form.PLANES, Form.EXCLUSIVE):
        parts.planes = [bool(head.bits(1)) for _ in range(_plane_count(piece))]
    if parts.form is Form.PALETTE:
        if not piece.type.floating:
            raise CodecError("a palette of integers: the blob is damaged")
        width = 8 * piece.type.width
        count = head.number(4, largest=_LARGEST_PALETTE - 1)
        parts.palette = [head.bits(width)]
        order = head.bits(6)
        for _ in range(count):
            parts.palette.append(parts.palette[-1] + head.number(order) + 1)
        if parts.palette[-1] >> width:
            raise CodecError("a palette goes beyond its type: the blob is damaged")
    if parts.form is Form.VALUES and piece.type is Type.VARINT:
        parts.count = head.number(8, largest=piece.size)
    return parts


def shapes(piece: Range, parts: Parts) -> list[tuple[int, ...]]:
    """The shapes of the arrays for the coder."""
    if parts.form is Form.SAME:
        return []
    if parts.form in (Form.PLANES, Form.EXCLUSIVE):
        return [_plane_shape(piece)] * (len(parts.planes) - sum(parts.planes))
    if piece.type is Type.VARINT:
        return [_varint_shape(piece, parts.count)]
    return [piece.shape]


def raw_size(piece: Range, parts: Parts) -> int:
    """The number of bytes that are kept as they are."""
    return sum(parts.planes) * (piece.size // _plane_count(piece))


def restore(piece: Range, parts: Parts, old: bytes | None) -> bytes:
    """The bytes of a piece. `CodecError` for arrays with values that no piece has."""
    if parts.form is Form.SAME:
        assert old is not None
        return old
    if parts.form is Form.VALUES:
        return _from_values(piece, parts.arrays[0].reshape(-1))
    dtype = np.dtype(f"<u{piece.type.width}")
    if parts.form is Form.PALETTE:
        palette = np.array(parts.palette, np.uint64)
        places = parts.arrays[0].reshape(-1) + _zero(parts.palette, piece.type)
        if places.min() < 0 or places.max() >= len(palette):
            raise CodecError("a weight is not in its palette: the blob is damaged")
        return _unordered(palette.astype(dtype)[places], piece.type).tobytes()
    if parts.form is Form.DIFFERENCE:
        assert old is not None
        before = _ordered(np.frombuffer(old, dtype), piece.type)
        step = _checked(parts.arrays[0].reshape(-1), np.dtype(f"<i{piece.type.width}"))
        return _unordered(before + step.view(dtype), piece.type).tobytes()
    joined = _join_planes(piece, parts)
    if parts.form is Form.EXCLUSIVE:
        assert old is not None
        return _exclusive(joined, old)
    return joined


def _values(piece: Range, data: bytes) -> Parts:
    if piece.type is Type.VARINT:
        numbers = protobuf.unpack_varints(data)
        if numbers is None:
            return _planes(Form.PLANES, piece, data)
        values = numbers.reshape(_varint_shape(piece, len(numbers)))
    elif piece.type in _HALVES:
        both = np.frombuffer(data, np.uint8)
        halves = np.stack([both & 15, both >> 4], 1).reshape(-1).astype(np.int64)
        count = int(np.prod(piece.shape))
        if halves[count:].any():
            return _planes(Form.PLANES, piece, data)
        if piece.type is Type.INT4:
            halves = (halves ^ 8) - 8
        values = halves[:count].reshape(piece.shape)
    else:
        values = np.frombuffer(data, _integers(piece.type)).astype(np.int64).reshape(piece.shape)
    return Parts(Form.VALUES, bits_of_integers(values), [values], count=values.size)


def _from_values(piece: Range, values: I64) -> bytes:
    if piece.type is Type.VARINT:
        data = protobuf.pack_varints(values)
        if len(data) != piece.size:
            raise CodecError("packed numbers have not the size that they should have: the blob is damaged")
        return data
    if piece.type in _HALVES:
        low = -8 if piece.type is Type.INT4 else 0
        if values.min() < low or values.max() >= low + 16:
            raise CodecError("a packed integer does not fit its type: the blob is damaged")
        halves = np.zeros(2 * piece.size, np.uint8)
        halves[: len(values)] = values & 15
        return (halves[::2] | halves[1::2] << 4).tobytes()
    return _checked(values, _integers(piece.type)).tobytes()


def _planes(form: Form, piece: Range, data: bytes) -> Parts:
    planes = _plane_count(piece)
    words: Words = np.frombuffer(data, f"<u{planes}")
    if piece.type.floating:
        words = (words << 1) | (words >> (8 * planes - 1))
    columns = words.astype(f"<u{planes}").view(np.uint8).reshape(-1, planes)
    parts = Parts(form)
    raw: list[bytes] = []
    for index in range(planes):
        plane = np.ascontiguousarray(columns[:, index])
        bits = bits_of_bytes(plane)
        kept = bits >= 8 * plane.size
        parts.planes.append(kept)
        if kept:
            raw.append(plane.tobytes())
        else:
            parts.arrays.append(plane.astype(np.int64).reshape(_plane_shape(piece)))
        parts.bits += min(bits, 8 * plane.size)
    parts.raw = b"".join(raw)
    return parts


def _join_planes(piece: Range, parts: Parts) -> bytes:
    planes = len(parts.planes)
    count = piece.size // planes
    columns = np.empty((count, planes), np.uint8)
    coded, at = iter(parts.arrays), 0
    for index, kept in enumerate(parts.planes):
        if kept:
            columns[:, index] = np.frombuffer(parts.raw, np.uint8, count, at)
            at += count
        else:
            columns[:, index] = _checked(next(coded).reshape(-1), np.dtype(np.uint8))
    words: Words = columns.reshape(-1).view(f"<u{planes}")
    if piece.type.floating:
        words = (words >> 1) | (words << (8 * planes - 1))
    return words.astype(f"<u{planes}").tobytes()


def _palette(piece: Range, data: bytes) -> list[Parts]:
    words: Words = np.frombuffer(data, f"<u{piece.type.width}")
    if len(np.unique(words[:_SAMPLE])) > _LARGEST_PALETTE:
        return []
    palette, places = np.unique(_ordered(words, piece.type), return_inverse=True)
    if len(palette) > min(_LARGEST_PALETTE, len(words) // 2):
        return []
    values = [int(value) for value in palette]
    index = places.reshape(piece.shape).astype(np.int64) - _zero(values, piece.type)
    bits = bits_of_integers(index) + (8 * piece.type.width - 6) * len(values)
    return [Parts(Form.PALETTE, bits, [index], palette=values)]


def _zero(palette: list[int], type: Type) -> int:
    """The place of zero in a palette, or of the first entry above it."""
    zero = 1 << (8 * type.width - 1)
    return min(sum(value < zero for value in palette), len(palette) - 1)


def _difference(piece: Range, data: bytes, old: bytes) -> Parts:
    dtype = f"<u{piece.type.width}"
    after, before = (_ordered(np.frombuffer(part, dtype), piece.type) for part in (data, old))
    step = (after - before).view(f"<i{piece.type.width}").astype(np.int64).reshape(piece.shape)
    return Parts(Form.DIFFERENCE, bits_of_integers(step), [step])


def _ordered(words: Words, type: Type) -> Words:
    """Floats as unsigned integers in the order of their values, +0.0 in the middle; integers as they are."""
    if not type.floating:
        return words
    top = words.dtype.type(1 << (8 * type.width - 1))
    return np.where(words & top, ~words, words | top)


def _unordered(words: Words, type: Type) -> Words:
    """The inverse of `_ordered`."""
    if not type.floating:
        return words
    top = words.dtype.type(1 << (8 * type.width - 1))
    return np.where(words & top, words ^ top, ~words)


def _exclusive(data: bytes, old: bytes) -> bytes:
    return (np.frombuffer(data, np.uint8) ^ np.frombuffer(old, np.uint8)).tobytes()


def _plane_count(piece: Range) -> int:
    return 1 if piece.type is Type.VARINT else piece.type.width


def _plane_shape(piece: Range) -> tuple[int, ...]:
    return (piece.size,) if piece.type in (Type.VARINT, *_HALVES) else piece.shape


def _varint_shape(piece: Range, count: int) -> tuple[int, ...]:
    return piece.shape if int(np.prod(piece.shape, dtype=np.float64)) == count else (count,)


def _integers(type: Type) -> np.dtype[np.generic]:
    return np.dtype(f"<{'u' if type in (Type.UINT8, Type.UINT16, Type.UINT32, Type.UINT64) else 'i'}{type.width}")


def _checked(values: I64, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    result = values.astype(dtype)
    if not np.array_equal(result.astype(np.int64), values):
        raise CodecError("a packed integer does not fit its type: the blob is damaged")
    return result
