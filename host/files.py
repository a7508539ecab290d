"""Files that are either the old one or the new one, whatever is pulled out when."""

from __future__ import annotations

import fcntl
import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

#: How names of files end that are being written.
_TEMPORARY = ".tmp"


@contextmanager
def open_durably(path: Path, mode: int = 0o644, tidy: bool = True) -> Iterator[BinaryIO]:
    """A file to write that replaces `path` when the block ends: after that it is on the disk.

    Whatever is raised inside (or `OSError` by the disk) leaves the old file whole and no temporary one. One that a
    killed process left behind is removed by the next writer of the same file (with `tidy`: the directory is listed).
    """
    if tidy:
        _remove_abandoned(path)
    handle, temporary = _locked_temporary(path)
    try:
        with os.fdopen(handle, "w+b") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _locked_temporary(path: Path) -> tuple[int, str]:
    """A new file beside `path` that is locked as long as it is open: the lock dies with its process."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
        with suppress(OSError):  # a file system without locks: then nothing is ever taken for abandoned
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # taken for abandoned in the moment before it was locked


def _remove_abandoned(path: Path) -> None:
    """Remove temporaries of `path` that no living process holds."""
    for found in path.parent.glob(f".{glob.escape(path.name)}.*{_TEMPORARY}"):
        with suppress(OSError), found.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.unlink()


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`: after return it is on the disk; before, the old content is whole.

    Raises `OSError` (disk full, no permission) and then leaves the old file and no temporary one.
    """
    with open_durably(path, mode, tidy=False) as file:
        file.write(data)


def point_durably(link: Path, target: str) -> None:
    """Make the symbolic link `link` point to `target` in one step that survives a power cut."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    sync_directory(link.parent)


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
