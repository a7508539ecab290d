"""Personal models: which were made from which base, which passed the gate, and which is in use.

A record is written in the trainer's one transaction, after its files are on the disk; so a record always has its files,
and a file without a record is rubbish that `sweep` removes (never while a trainer runs: its files come first).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .gate import Evaluation
from .ledger import Ledger


@dataclass(frozen=True, slots=True)
class Personal:
    """One personal model: `file` + ".onnx" to serve, `file` + ".weights" to go on learning from."""

    identifier: int
    base_version: int
    file: str
    adopted: bool
    evaluation: Evaluation


class Versions:
    """The records, and the files they name."""

    def __init__(self, ledger: Ledger, directory: Path) -> None:
        self._ledger = ledger
        self._directory = directory

    def record(self, base_version: int, base_digest: str, file: str, adopted: bool, evaluation: Evaluation) -> None:
        """Add one (inside the caller's transaction)."""
        self._ledger.run(
            "INSERT INTO personal (base_version, base_digest, file, adopted, report, created)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            base_version, base_digest, file, int(adopted), msgspec.json.encode(evaluation), time.time(),
        )  # fmt: skip

    def latest(self, base_digest: str, *, adopted: bool = False) -> Personal | None:
        """The newest model made from this base that was not withdrawn; with `adopted`, that passed the gate."""
        row = self._ledger.row(
            "SELECT id, base_version, file, adopted, report FROM personal"
            " WHERE base_digest = ? AND NOT withdrawn AND adopted >= ? ORDER BY id DESC LIMIT 1",
            base_digest, int(adopted),
        )  # fmt: skip
        if row is None:
            return None
        return Personal(row[0], row[1], row[2], bool(row[3]), msgspec.json.decode(row[4], type=Evaluation))

    def withdraw(self, identifier: int) -> None:
        """Never serve this one again; learning goes on from the one before."""
        self._ledger.run("UPDATE personal SET withdrawn = 1 WHERE id = ?", identifier)

    def path(self, personal: Personal, suffix: str) -> Path:
        """One of a model's files."""
        return self._directory / f"{personal.file}{suffix}"

    def sweep(self, keep: int, base_digest: str) -> None:
        """Keep the files of the newest `keep` models (and of what is in use); remove all others and their records."""
        kept = {row[0] for row in self._ledger.rows("SELECT file FROM personal ORDER BY id DESC LIMIT ?", keep)}
        for used in (self.latest(base_digest), self.latest(base_digest, adopted=True)):
            if used is not None:
                kept.add(used.file)
        for (file,) in self._ledger.rows("SELECT file FROM personal"):
            if file not in kept:
                self._ledger.run("DELETE FROM personal WHERE file = ?", file)
        for path in self._directory.iterdir():
            if path.name.rpartition(".")[0] not in kept:
                path.unlink(missing_ok=True)
