"""A file that is written a second time only to see whether it is the same."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from .source import Source


class Comparison:
    """Takes the bytes of a file in order and compares them with an open one (see `pack.Output`)."""

    def __init__(self, file: BinaryIO) -> None:
        self._source = Source(file)
        self._at = 0
        #: Bytes that are not the same.
        self.different = 0

    def write(self, data: bytes, /) -> None:
        """Compare the next bytes."""
        taken = min(len(data), max(0, self._source.size - self._at))
        there = self._source.read(self._at, taken)
        if there != data:
            same = np.frombuffer(there, np.uint8) == np.frombuffer(data, np.uint8, taken)
            self.different += len(data) - int(np.count_nonzero(same))
        self._at += len(data)

    def read_back(self, at: int, size: int) -> bytes:
        """What should have been written at a place."""
        return self._source.read(at, size)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._source.size

    @property
    def complete(self) -> bool:
        """Whether all bytes came, and were the same."""
        return self._at == self._source.size and not self.different
