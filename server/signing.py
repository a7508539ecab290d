"""Make a release: sign what names the files, and give the rows to record and the chunks to publish."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from sanderling.codec import release as wire

from .errors import ConfigurationError
from .files import Files
from .store import Row

#: Files of a release that travel to devices; the others stay on the server.
ON_DEVICES = ("model.onnx", "anchor.npz")


class Signer:
    """Signs with the Ed25519 key in `path` (64 hex digits). Raises `ConfigurationError` if there is none."""

    def __init__(self, fleet: str, path: Path) -> None:
        self.fleet = fleet
        try:
            self._private = path.read_text(encoding="ascii").strip()
            self.public = wire.public_key(self._private)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the release key {path} cannot be used: {error}",
                "restore it from a backup; `sanderling server init` makes a new one, which devices must then be told",
            ) from error

    def release(
        self,
        *,
        model: str,
        version: int,
        files: dict[str, bytes],
        weights: dict[str, list[int]],
        labels: list[str],
        notes: dict[str, str | int | float],
        source: str,
        metrics: Row,
        lineage: Row,
    ) -> Row:
        """The row of `releases` for a signed release of `files`. Raises `CodecError` if a file is too long."""
        created = time.time()
        described = {name: wire.cut(data)[0] for name, data in files.items()}
        manifest = wire.sign(
            wire.Release(
                fleet=self.fleet,
                model=model,
                version=version,
                created=created,
                targets={name: described[name] for name in ON_DEVICES if name in described},
                labels=labels,
                notes=notes,
            ),
            self._private,
        )
        return {
            "model": model, "version": version, "created": created, "source": source, "manifest": manifest,
            "digest": hashlib.sha256(manifest).hexdigest(),
            "files": {name: {"sha256": t.sha256, "length": t.length} for name, t in described.items()},
            "weights": weights, "labels": labels, "notes": notes, "metrics": metrics, "lineage": lineage,
        }  # fmt: skip


def chunks_of(release: Row, files: Files) -> dict[str, bytes]:
    """Every chunk that devices may ask for to install `release`, by digest."""
    chunks: dict[str, bytes] = {}
    for name in ON_DEVICES:
        if name in release["files"]:
            chunks |= wire.cut(files.read(release["files"][name]["sha256"]))[1]
    return chunks
