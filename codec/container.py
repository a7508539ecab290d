"""The frame of every blob: what it is, which version, and a checksum.

::

    "SNDL"  1 byte: version << 4 | kind   payload   CRC-32 (4 bytes, little-endian) of everything before it

The CRC finds accidents; who must keep out forgers signs. The payload's meaning depends on the kind. A decoder reads
one version and refuses others with a reason: numbers of versions and kinds are never reused.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable

from .errors import CodecError
from .limits import CodecLimits

MAGIC = b"SNDL"
VERSION = 2
#: Bytes before a payload, and after it.
FRONT, BACK = len(MAGIC) + 1, 4
#: Bytes that the frame adds to a payload.
OVERHEAD = FRONT + BACK


class Kind(enum.IntEnum):
    """What a payload holds. Numbers are never reused."""

    INTEGERS = 0
    DELTA = 1
    FILE = 2
    PATCH = 3


def front(kind: Kind) -> bytes:
    """What stands before a payload."""
    return MAGIC + bytes([VERSION << 4 | kind])


def wrap(kind: Kind, payload: Iterable[bytes]) -> bytes:
    """The blob of a payload, given in pieces."""
    body = b"".join([front(kind), *payload])
    return body + zlib.crc32(body).to_bytes(BACK, "little")


def check_front(start: bytes, size: int, kind: Kind | None, limits: CodecLimits) -> Kind:
    """The kind of a blob of `size` bytes that begins with `start`; `CodecError` if it is none, or not `kind`."""
    if size > limits.blob_bytes:
        raise CodecError(
            f"blob of {size} bytes refused, at most {limits.blob_bytes} are read: raise blob_bytes of CodecLimits"
        )
    if size < OVERHEAD or start[: len(MAGIC)] != MAGIC:
        raise CodecError(f"not a Sanderling blob ({size} bytes): it does not begin with {MAGIC!r}, or is cut off")
    version, number = start[len(MAGIC)] >> 4, start[len(MAGIC)] & 15
    if version != VERSION:
        older = "the side that wrote it" if version < VERSION else "this side"
        raise CodecError(f"blob of format version {version}, only version {VERSION} is read here: update {older}")
    if number not in set(Kind):
        raise CodecError(f"blob of kind {number}, which is not known here: update this side")
    if kind is not None and number != kind:
        found, wanted = Kind(number).name.lower(), kind.name.lower()
        raise CodecError(f"the blob holds {found}, expected {wanted}: decode it with the function for that")
    return Kind(number)


def unwrap(blob: bytes, kind: Kind, limits: CodecLimits) -> bytes:
    """The payload of a blob of this `kind`; `CodecError` for anything else."""
    check_front(blob[:FRONT], len(blob), None, limits)
    if zlib.crc32(memoryview(blob)[:-BACK]) != int.from_bytes(blob[-BACK:], "little"):
        raise CodecError("the checksum is wrong: the blob was damaged or cut off on its way; fetch it again")
    check_front(blob[:FRONT], len(blob), kind, limits)
    return blob[FRONT:-BACK]
