"""Named integer arrays to bytes and back, without loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from . import container, directory
from .coding import arrays
from .coding.bits import BitReader, BitWriter
from .container import Kind
from .directory import DTYPES, Entry
from .errors import CodecError
from .limits import DEFAULT_LIMITS, CodecLimits

I64 = npt.NDArray[np.int64]

_INTEGERS = [dtype for dtype in DTYPES.values() if dtype.kind in "iub"]


def encode_integers(tensors: Mapping[str, npt.ArrayLike], *, limits: CodecLimits = DEFAULT_LIMITS) -> bytes:
    """Encode arrays of any integer type (or bool) and any shape; names and order are kept.

    Raises `CodecError` for arrays of other types and for more than `limits` lets a decoder read.
    """
    entries: list[Entry] = []
    flat: list[I64] = []
    for name, value in tensors.items():
        array = np.asarray(value)
        dtype = array.dtype.newbyteorder("=")
        if dtype not in _INTEGERS:
            raise CodecError(f"array {name!r} is of type {array.dtype}, not integers: quantize it, or use encode_delta")
        entries.append(Entry(name, dtype, array.shape))
        flat.append(to_int64(array))
    directory.check(entries, limits)
    head = BitWriter()
    directory.write(head, entries, typed=True)
    rest = arrays.encode(head, flat)
    return container.wrap(Kind.INTEGERS, head.to_bytes() + rest)


def decode_integers(blob: bytes, *, limits: CodecLimits = DEFAULT_LIMITS) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays that `encode_integers` was given, in native byte order, each owning its memory.

    Raises `CodecError` for any other bytes, before it allocates more than `limits` allows.
    """
    payload = container.unwrap(bytes(blob), Kind.INTEGERS, limits)
    head = BitReader(payload)
    entries = directory.read(head, limits, typed=True)
    for entry in entries:
        if entry.dtype not in _INTEGERS:
            raise CodecError(f"array {entry.name!r} is of type {entry.dtype} in a blob of integers: it is damaged")
    flat = arrays.decode(head, payload, [entry.count for entry in entries], limits)
    return {
        entry.name: from_int64(values, entry.dtype, entry.name).reshape(entry.shape)
        for entry, values in zip(entries, flat, strict=True)
    }


def to_int64(array: npt.NDArray[np.generic]) -> I64:
    """Flat, in C order; the upper half of uint64 wraps to negative numbers."""
    return np.ascontiguousarray(array).reshape(-1).astype(np.int64)


def from_int64(values: I64, dtype: np.dtype[np.generic], name: str) -> npt.NDArray[np.generic]:
    """The inverse of `to_int64`; `CodecError` if a value is not of `dtype`."""
    result = values.astype(dtype)
    if not np.array_equal(result.astype(np.int64), values):
        raise CodecError(f"array {name!r} has values that are not of its type {dtype}: the blob is damaged")
    return result
