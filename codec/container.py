"""The frame of every blob: what it is, which version, and a checksum.

::

    "SNDL"  1 byte: version << 4 | kind   payload   CRC-32 (4 bytes, little-endian) of everything before it

The CRC finds accidents; who must keep out forgers signs. The payload's meaning depends on the kind.
"""

from __future__ import annotations

import enum
import zlib

from .errors import CodecError
from .limits import CodecLimits

MAGIC = b"SNDL"
VERSION = 1
#: Bytes that the frame adds to a payload.
OVERHEAD = len(MAGIC) + 1 + 4


class Kind(enum.IntEnum):
    """What a payload holds. Numbers are never reused."""

    INTEGERS = 0
    DELTA = 1
    FILE = 2


def wrap(kind: Kind, payload: bytes) -> bytes:
    """The blob of a payload."""
    body = MAGIC + bytes([VERSION << 4 | kind]) + payload
    return body + zlib.crc32(body).to_bytes(4, "little")


def unwrap(blob: bytes, kind: Kind, limits: CodecLimits) -> bytes:
    """The payload of a blob of this `kind`; `CodecError` for anything else."""
    if len(blob) > limits.blob_bytes:
        raise CodecError(f"blob of {len(blob)} bytes refused: at most {limits.blob_bytes} are read")
    if len(blob) < OVERHEAD or blob[:4] != MAGIC:
        raise CodecError(f"not a Sanderling blob ({len(blob)} bytes): it does not begin with {MAGIC!r}")
    version, found = blob[4] >> 4, blob[4] & 15
    if version != VERSION:
        raise CodecError(f"blob of format version {version}, this side reads {VERSION}: update the older side")
    if zlib.crc32(blob[:-4]) != int.from_bytes(blob[-4:], "little"):
        raise CodecError("the checksum is wrong: the blob was damaged or cut off on its way; fetch it again")
    if found != kind:
        name = Kind(found).name.lower() if found in set(Kind) else f"kind {found}"
        raise CodecError(f"the blob holds {name}, expected {kind.name.lower()}: decode it with the function for that")
    return blob[5:-4]
