"""Files written whole or not at all: a reader never sees half a file, and a full disk leaves the old one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast


@contextmanager
def written(target: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """An open file that becomes `target` when the block ends, and nothing if that ends with an exception.

    It is in the same folder until then, and on the disk before it gets its name. Raises `FileNotFoundError` if there
    is no such folder, and `FileExistsError` if there is such a file, unless `force`.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(target.parent))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(target))
    if target.exists() and not force:
        raise FileExistsError(errno.EEXIST, "exists", str(target))
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        if force:
            Path(name).replace(target)
        else:
            _name(Path(name), target)
        _sync(target.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _name(path: Path, target: Path) -> None:
    """Rename, but never over a file that has come meanwhile (where the file system has hard links)."""
    try:
        target.hardlink_to(path)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "exists", str(target)) from None
    except OSError:
        path.replace(target)
    else:
        path.unlink()


def _sync(folder: Path) -> None:
    """Make the new name last, where folders can be synchronized."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
