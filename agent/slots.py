"""Releases on the disk: the inactive slot that is filled, the installed ones, and the link that says which is current.

A chunk is on the disk (fdatasync) before its bit in the map is set, files are verified as a whole before the slot gets
its final name, and the switch is one rename of a symbolic link. So whatever is killed when, `current` points to a whole
release, and staging the same release again finds every chunk that was kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sanderling.codec.release import CHUNK_SIZE, Release
from sanderling.host.files import point_durably, sync_directory, write_durably

from .errors import StorageError, storage_errors

_CURRENT, _STAGING, _MANIFEST, _MAP = "current", "staging", "manifest.json", "have"


class Manifest(msgspec.Struct, frozen=True):
    """What lies in a slot: the release, the digest it is known by, and the signed bytes it came in."""

    digest: str
    release: Release
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Installed:
    """A whole release on the disk."""

    path: Path
    digest: str
    release: Release

    @property
    def version(self) -> int:
        return self.release.version

    @property
    def model(self) -> Path:
        return self.path / "model.onnx"

    @property
    def anchor(self) -> Path | None:
        path = self.path / "anchor.npz"
        return path if path.exists() else None


class DamagedFileError(StorageError):
    """A file's chunks were right but the file is not what the manifest says: the release contradicts itself."""


class Slots:
    """The slots under one directory. Raises `StorageError` (`StorageFullError` when there is no room)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staged: Manifest | None = None
        self._places: dict[str, list[tuple[str, int, int]]] = {}  # digest -> (file, offset, bit)

    def current(self) -> Installed | None:
        """The release that is in use."""
        link = self._root / _CURRENT
        return _read(self._root / link.readlink().name) if link.is_symlink() else None

    def installed(self) -> list[Installed]:
        """All whole releases, newest version first."""
        found = [_read(path) for path in self._root.iterdir() if path.is_dir() and path.name.startswith("v")]
        return sorted((slot for slot in found if slot is not None), key=lambda slot: -slot.version)

    def stage(self, release: Release, digest: str, envelope: bytes) -> tuple[str, ...]:
        """Prepare the inactive slot for a release; the chunks that it still lacks, in order."""
        manifest = Manifest(digest, release, envelope)
        self._staged, self._places = manifest, _places(release)
        if self._final(manifest).exists():  # killed between verifying and switching
            return ()
        staging = self._root / _STAGING
        with storage_errors("preparing the inactive slot"):
            if _digest_of(staging) != digest:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(mode=0o700)
                for name, target in release.targets.items():
                    with (staging / f"{name}.part").open("wb") as file:
                        file.truncate(target.length)
                (staging / _MAP).write_bytes(bytes(sum(len(t.chunks) for t in release.targets.values())))
                write_durably(staging / _MANIFEST, msgspec.json.encode(manifest))
            have = (staging / _MAP).read_bytes()
        return tuple(chunk for chunk, places in self._places.items() if not all(have[bit] for _, _, bit in places))

    def store(self, digest: str, data: bytes) -> None:
        """Write a chunk (verified by the caller) to every place that it belongs to."""
        staging = self._root / _STAGING
        with storage_errors("storing a chunk"):
            for name, offset, _ in self._places[digest]:
                handle = os.open(staging / f"{name}.part", os.O_WRONLY)
                try:
                    _write_all(handle, data, offset)
                    os.fdatasync(handle)
                finally:
                    os.close(handle)
            handle = os.open(staging / _MAP, os.O_WRONLY)
            try:
                for _, _, bit in self._places[digest]:
                    os.pwrite(handle, b"\1", bit)
            finally:
                os.close(handle)

    def assemble(self) -> Installed:
        """Verify the staged files as a whole and give the slot its final name; raises `DamagedFileError`."""
        manifest = self._staged
        if manifest is None:
            raise StorageError("nothing is staged")
        final, staging = self._final(manifest), self._root / _STAGING
        with storage_errors("verifying the inactive slot"):
            if not final.exists():
                for name, target in manifest.release.targets.items():
                    part, whole = staging / f"{name}.part", staging / name
                    path = part if part.exists() else whole
                    with path.open("rb") as file:
                        found = hashlib.file_digest(file, "sha256").hexdigest()
                    if found != target.sha256:
                        wanted = target.sha256[:12]
                        raise DamagedFileError(f"{name}: SHA-256 is {found[:12]}, the manifest says {wanted}")
                    path.replace(whole)
                sync_directory(staging)
                staging.replace(final)
                sync_directory(self._root)
        return Installed(final, manifest.digest, manifest.release)

    def switch(self, slot: Installed) -> None:
        """Make a whole release the current one, in one step."""
        with storage_errors("switching the current slot"):
            point_durably(self._root / _CURRENT, slot.path.name)

    def discard(self) -> None:
        """Remove what is staged (and, if it was verified already, its slot unless it is current)."""
        shutil.rmtree(self._root / _STAGING, ignore_errors=True)
        current = self.current()
        if self._staged is not None and (current is None or current.digest != self._staged.digest):
            shutil.rmtree(self._final(self._staged), ignore_errors=True)
        self._staged = None

    def prune(self, keep: int) -> None:
        """Remove whole releases beyond the current one and the `keep` newest others."""
        current = self.current()
        others = [slot for slot in self.installed() if current is None or slot.digest != current.digest]
        for slot in others[keep:]:
            shutil.rmtree(slot.path, ignore_errors=True)

    def _final(self, manifest: Manifest) -> Path:
        return self._root / f"v{manifest.release.version}-{manifest.digest[:12]}"


def _read(path: Path) -> Installed | None:
    try:
        manifest = msgspec.json.decode((path / _MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None
    return Installed(path, manifest.digest, manifest.release)


def _digest_of(staging: Path) -> str:
    slot = _read(staging)
    return slot.digest if slot is not None else ""


def _places(release: Release) -> dict[str, list[tuple[str, int, int]]]:
    places: dict[str, list[tuple[str, int, int]]] = {}
    bit = 0
    for name, target in release.targets.items():
        for index, chunk in enumerate(target.chunks):
            places.setdefault(chunk, []).append((name, index * CHUNK_SIZE, bit))
            bit += 1
    return places


def _write_all(handle: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written
