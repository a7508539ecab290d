"""Bytes of a file, read where they are wanted: a file of any size costs one small block of memory."""

from __future__ import annotations

import io
from typing import BinaryIO

from ..errors import CodecError

#: Bytes that are read at once for those who look at single ones.
_BLOCK = 1 << 14


class Source:
    """A file that can be read anywhere, or bytes. The file must not change meanwhile."""

    def __init__(self, file: BinaryIO | bytes) -> None:
        self.file = io.BytesIO(file) if isinstance(file, bytes) else file
        self.size = self.file.seek(0, io.SEEK_END)
        self._block = b""
        self._block_at = 0

    def read(self, at: int, size: int) -> bytes:
        """`size` bytes from byte `at` on; `CodecError` if the file has fewer."""
        self.file.seek(at)
        data = self.file.read(size)
        if len(data) != size:
            raise CodecError(f"the file ends before byte {at + size}: it was cut off, or changed while it was read")
        return data

    def byte(self, at: int) -> int:
        """The byte at place `at`, which must be in the file."""
        if not self._block_at <= at < self._block_at + len(self._block):
            self._block_at = at
            self._block = self.read(at, min(_BLOCK, self.size - at))
        return self._block[at - self._block_at]

    def small(self, at: int, size: int) -> bytes:
        """As `read`, for a few bytes near others that were looked at."""
        if size > _BLOCK // 4 or at + size > self.size:
            return self.read(at, size)
        if not self._block_at <= at <= at + size <= self._block_at + len(self._block):
            self._block_at = at
            self._block = self.read(at, min(_BLOCK, self.size - at))
        return self._block[at - self._block_at : at - self._block_at + size]

    def number(self, at: int, size: int) -> int:
        """The little-endian number of `size` bytes at place `at`."""
        return int.from_bytes(self.small(at, size), "little")
