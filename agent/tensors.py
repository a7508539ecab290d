"""Arrays as bytes and back: samples in the store and weights in the ledger. Everything else here is numpy-free.

MessagePack of [name, type, shape, little-endian data] per array, in the order of the dictionary.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from .errors import StorageError

Arrays = dict[str, NDArray[Any]]
_Entry = tuple[str, Annotated[str, Meta(pattern=r"^[<|][a-z][0-9]{1,2}$")], list[Annotated[int, Meta(ge=0)]], bytes]


def pack(arrays: Arrays) -> bytes:
    """The arrays (any numeric or boolean type) as bytes; equal arrays give equal bytes."""
    entries: list[_Entry] = []
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
        entries.append((name, plain.dtype.str, list(plain.shape), plain.tobytes()))
    return msgspec.msgpack.encode(entries)


def unpack(data: bytes) -> Arrays:
    """The inverse of `pack`; raises `StorageError` for anything else."""
    try:
        entries = msgspec.msgpack.decode(data, type=list[_Entry])
        return {name: np.frombuffer(raw, dtype=np.dtype(kind)).reshape(shape) for name, kind, shape, raw in entries}
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise StorageError(f"stored arrays are damaged: {error}") from error


def stack(samples: list[Arrays]) -> Arrays:
    """One array per name with the samples as its first dimension."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
