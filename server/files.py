"""Files by content: `files/ab/abcdef...` holds the bytes whose SHA-256 is that name. Written durably, never changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sanderling.host.files import write_durably

from .errors import StorageError


class Files:
    """The content-addressed files below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, sha256: str) -> Path:
        """Where the file with this digest is, or would be."""
        return self.directory / sha256[:2] / sha256

    def add(self, data: bytes) -> str:
        """Keep `data`; returns its SHA-256. On the disk on return. Raises `StorageError`, leaving nothing."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_durably(path, data)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}", "free space on that disk") from error
        return digest

    def read(self, sha256: str) -> bytes:
        """The bytes with this digest, checked. Raises `StorageError` if they are gone or damaged."""
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}", "restore it from a backup") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StorageError(f"{path} is damaged: its content is not what its name says", "restore it from a backup")
        return data
