"""Blobs of files, written and read piece by piece: the frame of `container`, without the whole in memory."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from .. import container, groups
from ..container import BACK, FRONT, Kind
from ..errors import CodecError
from ..limits import CodecLimits
from .source import Source

#: Bytes that are read at once for the checksum.
_PIECE = 1 << 18
#: Bytes of a section at most: no group or block has more.
_LARGEST_SECTION = 1 << 25


class BlobWriter:
    """Writes a blob to a file, in order."""

    def __init__(self, file: BinaryIO, kind: Kind) -> None:
        self._file = file
        self._sum = 0
        self.size = 0
        self.write(container.front(kind))

    def write(self, data: bytes) -> None:
        """Append bytes of the payload."""
        self._sum = zlib.crc32(data, self._sum)
        self._file.write(data)
        self.size += len(data)

    def section(self, data: bytes) -> None:
        """Append bytes after their size."""
        self.write(groups.size_bytes(len(data)))
        self.write(data)

    def close(self) -> None:
        """Append the checksum; the file stays open."""
        self.write(self._sum.to_bytes(BACK, "little"))


class BlobReader:
    """Reads a blob from a file: first all of it for the checksum, then section by section."""

    def __init__(
        self, file: BinaryIO | bytes, kind: Kind | None, limits: CodecLimits, *, verified: bool = False
    ) -> None:
        source = Source(file)
        self._file = source.file
        self.size = source.size
        start = source.read(0, min(FRONT, source.size))
        self.kind = container.check_front(start, source.size, None, limits)
        found = 0
        for at in range(0, source.size - BACK if not verified else 0, _PIECE):
            found = zlib.crc32(source.read(at, min(_PIECE, source.size - BACK - at)), found)
        if not verified and found != int.from_bytes(source.read(source.size - BACK, BACK), "little"):
            raise CodecError("the checksum is wrong: the blob was damaged or cut off on its way; fetch it again")
        container.check_front(start, source.size, kind, limits)
        self._at = FRONT

    def section(self, largest: int = _LARGEST_SECTION) -> bytes:
        """The next bytes that stand after their size, `largest` at most."""
        size, after = groups.read_size(self._read(self._at, 9), 0)
        self._at += after
        return self.take(size, largest)

    def take(self, size: int, largest: int = _LARGEST_SECTION) -> bytes:
        """The next `size` bytes."""
        if size > min(largest, self.left):
            raise CodecError("a part of the blob is larger than what is left of it: it is damaged")
        self._at += size
        return self._read(self._at - size, size)

    @property
    def left(self) -> int:
        """Bytes of the payload that were not taken."""
        return self.size - BACK - self._at

    def finish(self) -> None:
        """`CodecError` unless all bytes were taken."""
        if self.left:
            raise CodecError("bytes are left over at the end of the blob: it is damaged")

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(at, io.SEEK_SET)
        return self._file.read(min(size, self.size - BACK - at))
