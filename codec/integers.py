"""Named integer arrays to bytes and back, without loss, group by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import container, directory, groups
from .coding import arrays
from .coding.bits import BitReader, BitWriter
from .container import Kind
from .directory import DTYPES, Entry
from .errors import CodecError
from .limits import DEFAULT_LIMITS, CodecLimits

Integers = npt.NDArray[np.generic]

_INTEGERS = [dtype for dtype in DTYPES.values() if dtype.kind in "iub"]


def encode_integers(tensors: Mapping[str, npt.ArrayLike], *, limits: CodecLimits = DEFAULT_LIMITS) -> bytes:
    """Encode arrays of any integer type (or bool) and any shape; names and order are kept.

    Each value is asked for once, in order, and one group is held at a time: `tensors` may make its values when they
    are asked for. Raises `CodecError` for arrays of other types and for more than `limits` lets a decoder read.
    """
    totals = directory.Totals(limits)
    entries: list[Entry] = []

    def checked() -> Iterator[Integers]:
        for name in tensors:
            array = np.asarray(tensors[name])
            dtype = array.dtype.newbyteorder("=")
            if dtype not in _INTEGERS:
                raise CodecError(
                    f"array {name!r} is of type {array.dtype}, not integers: quantize it, or use encode_delta"
                )
            entries.append(totals.add(Entry(name, dtype, array.shape)))
            yield array

    coded = [arrays.encode(group) for group in groups.cut(checked(), lambda array: array.size)]
    head = BitWriter()
    directory.write(head, entries, typed=True)
    return container.wrap(Kind.INTEGERS, [head.to_bytes(), *groups.join(coded)])


def decode_integers(blob: bytes, *, limits: CodecLimits = DEFAULT_LIMITS) -> dict[str, Integers]:
    """The arrays that `encode_integers` was given, in native byte order, each owning its memory.

    Raises `CodecError` for any other bytes, before it allocates more than `limits` allows.
    """
    return dict(iterate_integers(blob, limits=limits))


def iterate_integers(blob: bytes, *, limits: CodecLimits = DEFAULT_LIMITS) -> Iterator[tuple[str, Integers]]:
    """(name, array) of each array of a blob, in order; only the group in which it lies is held.

    Raises `CodecError` for what is damaged or beyond `limits`: at once for the frame and the directory, and when its
    turn comes for a group that the checksum did not betray.
    """
    payload = container.unwrap(bytes(blob), Kind.INTEGERS, limits)
    head = BitReader(payload)
    entries = directory.read(head, limits, typed=True)
    for entry in entries:
        if entry.dtype not in _INTEGERS:
            raise CodecError(f"array {entry.name!r} is of type {entry.dtype} in a blob of integers: it is damaged")
    return _arrays(payload, head.align(), entries, limits)


def typed(values: npt.NDArray[np.signedinteger[Any]], dtype: np.dtype[np.generic], name: str) -> Integers:
    """Decoded numbers in their type (the upper half of uint64 comes as negative ones); `CodecError` if one does not
    fit.
    """
    if dtype == np.uint64:
        return values.astype(np.int64, copy=False).view(np.uint64)
    low, high = int(values.min()), int(values.max())
    bits = 8 * dtype.itemsize - (dtype.kind == "i") if dtype.kind in "iu" else 1
    least, most = -(1 << bits) if dtype.kind == "i" else 0, (1 << bits) - 1
    if low < least or high > most:
        raise CodecError(f"array {name!r} has values that are not of its type {dtype}: the blob is damaged")
    return values.astype(dtype)


def _arrays(payload: bytes, at: int, entries: Sequence[Entry], limits: CodecLimits) -> Iterator[tuple[str, Integers]]:
    members = list(groups.cut(entries, lambda entry: entry.count))
    parts = zip(members, groups.split(payload, at, len(members)), strict=True)
    decoded: dict[str, Integers] = {}
    for entry in entries:
        if entry.count and not decoded:
            group, data = next(parts)
            found = arrays.decode(data, [member.shape for member in group], limits)
            decoded = {m.name: typed(v, m.dtype, m.name) for m, v in zip(group, found, strict=True)}
            del found
        yield entry.name, decoded.pop(entry.name) if entry.count else np.zeros(entry.shape, entry.dtype)
    next(parts, None)  # without arrays there must be no bytes either
