"""The models of a plan: in memory, or in the plan's file and read when they are asked for.

Strategy: a process that trains under a limit must not hold what it reads once. A step's model is needed while its
session is made, the inference model while weights are copied out of it and when a new one is exported; so members of
a file are read one at a time, and the inference model is mapped instead of read. The file stays open, so that it may
be replaced or deleted meanwhile.
"""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

MODEL, PROBE = "model.onnx", "probe.onnx"
_LOCAL_HEADER, _LENGTHS_AT = 30, 26  # bytes (APPNOTE.TXT of the zip format, 4.3.7)
_PIECE = 1 << 16


def step_name(index: int) -> str:
    """The member that holds the model of a step."""
    return f"step{index:04}.onnx"


def data_offset(file: int, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin in the archive that is open as `file` (a descriptor). Raises OSError."""
    header = os.pread(file, _LOCAL_HEADER, info.header_offset)
    if len(header) < _LOCAL_HEADER:
        raise OSError(None, "the archive ends before its members do")
    name, extra = struct.unpack_from("<HH", header, _LENGTHS_AT)
    return info.header_offset + _LOCAL_HEADER + int(name) + int(extra)


def release(view: memoryview) -> None:
    """Let go of the memory behind a view of a file; what is read again comes from the file again."""
    if isinstance(view.obj, mmap.mmap):
        view.obj.madvise(mmap.MADV_DONTNEED)


class Members(Protocol):
    """Bytes by name."""

    def read(self, name: str) -> bytes:
        """A copy of a member. Raises KeyError."""

    def view(self, name: str) -> memoryview:
        """A member without a copy of it, for as long as the view is kept. Raises KeyError."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """A member in pieces, so that little of it is in memory at once. Raises KeyError."""


class InMemory:
    """Members that were just made."""

    def __init__(self, members: dict[str, bytes]) -> None:
        self._members = members

    def read(self, name: str) -> bytes:
        """The member itself."""
        return self._members[name]

    def view(self, name: str) -> memoryview:
        """The member itself."""
        return memoryview(self._members[name])

    def pieces(self, name: str) -> Iterator[bytes]:
        """The member itself."""
        yield self._members[name]


class InFile:
    """Members of a zip archive, which is opened anew so that the caller may close its own."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        assert archive.fp is not None
        # the very file, whatever its name stands for by now, at a position of its own
        self._file = Path(f"/proc/self/fd/{archive.fp.fileno()}").open("rb")  # noqa: SIM115  (open as long as the plan)
        self._archive = zipfile.ZipFile(self._file)

    def __del__(self) -> None:
        for handle in (getattr(self, "_archive", None), getattr(self, "_file", None)):
            if handle is not None:
                handle.close()

    def check(self, name: str) -> None:
        """Read a member in pieces and compare its checksum. Raises zipfile.BadZipFile, KeyError."""
        for _ in self.pieces(name):
            pass

    def pieces(self, name: str) -> Iterator[bytes]:
        """A member as it is read from the file."""
        with self._archive.open(name) as member:
            while piece := member.read(_PIECE):
                yield piece

    def read(self, name: str) -> bytes:
        """A copy of a member."""
        return self._archive.read(name)

    def view(self, name: str) -> memoryview:
        """A member, mapped."""
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size == 0:
            return memoryview(self.read(name))
        begin = data_offset(self._file.fileno(), info)
        aligned = begin - begin % mmap.ALLOCATIONGRANULARITY
        size = begin - aligned + info.file_size
        mapped = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ, offset=aligned)
        return memoryview(mapped)[begin - aligned :]
