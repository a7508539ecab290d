"""An array in an .npz file whose rows are read when they are asked for.

Strategy: `numpy.savez` stores arrays as they are in memory, so row i lies at a known place of the file and is read
from there into the batch, nothing else: data may be larger than memory. A mapped file would count as resident, page by
page; reading does not. Arrays that are compressed, or lie in the order of columns, are read whole.
"""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .graph import Array
from .members import data_offset

#: Bytes that are read at once when all rows are looked at.
_PIECE = 1 << 20


class Rows:
    """[N, ...] numbers in a file. Numbers of float64 come as float32."""

    def __init__(self, path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset, self._stored, self.shape = offset, dtype, shape
        self._row = dtype.itemsize * math.prod(shape[1:])
        if os.fstat(self._file.fileno()).st_size < offset + self._row * shape[0]:
            raise EOFError("the file ends before its arrays do")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the arrays that are handed out."""
        return np.dtype(np.float32) if self._stored == np.float64 else self._stored.newbyteorder("=")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the file."""
        return self._row

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self._row * len(self)

    def __getitem__(self, which: Array | slice) -> Array:
        """The rows at these positions, in this order."""
        positions = range(len(self))[which] if isinstance(which, slice) else [int(i) for i in which]
        rows = np.empty((len(positions), *self.shape[1:]), self._stored)
        view = rows.reshape(-1).view(np.uint8).data
        if isinstance(positions, range) and positions.step == 1:
            self._read(view, positions.start)
        else:
            for index, position in enumerate(positions):
                self._read(view[index * self._row : (index + 1) * self._row], position)
        return rows.astype(self.dtype, copy=False)

    def _read(self, view: memoryview, position: int) -> None:
        """Fill `view` with what lies from a row on. Raises OSError when the file was cut meanwhile."""
        done, begin = 0, self._offset + position * self._row
        while done < len(view):
            count = os.preadv(self._file.fileno(), [view[done:]], begin + done)
            if count == 0:
                raise OSError(None, "the file was cut while it was read", self._file.name)
            done += count

    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        if self._stored.kind != "f":
            return True
        step = max(1, _PIECE // max(self._row, 1))
        return all(np.isfinite(self[at : at + step]).all() for at in range(0, len(self), step))


def open_rows(path: Path, archive: zipfile.ZipFile, member: str) -> Rows | None:
    """The rows of a member of an archive, or None where it has to be read whole. Raises ValueError, OSError."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = read(file)
        header = file.tell()
    if dtype.hasobject:
        raise ValueError("holds objects")
    if columns_first or not shape:
        return None
    with path.open("rb") as plain:
        begin = data_offset(plain.fileno(), info)
    if header + dtype.itemsize * math.prod(shape) != info.file_size:
        raise EOFError("the array does not fill its place")
    return Rows(path, begin + header, dtype, shape)
