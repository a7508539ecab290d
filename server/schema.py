"""The database's tables, as numbered steps: PRAGMA user_version says how many have been taken.

A step is never edited once released; a change is a new step. All steps run in one transaction, so an upgrade that is
interrupted has not happened.

What must not be lost or counted twice hangs on keys: a delta is unique by (device, base_version, sequence), an event by
(device, sequence), a delta belongs to at most one job (`deltas.job`) and is merged into at most one version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlite_utils import Database

from .errors import StorageError


def _first(db: Database) -> None:
    table: Callable[..., Any] = db.create_table
    table(
        "devices",
        {
            "name": str, "online": int, "boot": int, "agent_version": str, "first_seen": float, "last_seen": float,
            "models": str, "telemetry": str,
        },
        pk="name",
    )  # fmt: skip
    table("telemetry", {"id": int, "device": str, "received": float, "model": str, "report": str}, pk="id")
    db.table("telemetry").create_index(["device", "received"])
    db.table("telemetry").create_index(["received"])
    table(
        "deltas",
        {
            "id": int, "device": str, "model": str, "base_version": int, "sequence": int, "received": float,
            "samples": int, "histogram": str, "bytes": int, "float32_bytes": int, "status": str, "reason": str,
            "job": int, "merged_into": int,
        },
        pk="id",
    )  # fmt: skip
    db.table("deltas").create_index(["device", "base_version", "sequence"], unique=True)
    db.table("deltas").create_index(["model", "status", "job"])
    # apart from `deltas`, so that listing deltas does not drag their bytes through memory
    table("delta_blobs", {"delta": int, "blob": bytes}, pk="delta", foreign_keys=[("delta", "deltas", "id")])
    table(
        "events",
        {
            "id": int, "device": str, "sequence": int, "received": float, "time": float, "kind": str, "model": str,
            "version": int, "reason": str,
        },
        pk="id",
    )  # fmt: skip
    db.table("events").create_index(["device", "sequence"], unique=True)
    table("models", {"name": str, "created": float, "current_version": int}, pk="name")
    table(
        "releases",
        {
            "model": str, "version": int, "created": float, "source": str, "manifest": bytes, "digest": str,
            "files": str, "weights": str, "labels": str, "notes": str, "metrics": str, "lineage": str,
        },
        pk=("model", "version"),
    )  # fmt: skip
    table("staged", {"model": str, "name": str, "sha256": str, "length": int, "received": float}, pk=("model", "name"))
    table(
        "jobs",
        {
            "id": int, "kind": str, "model": str, "state": str, "created": float, "started": float, "finished": float,
            "attempts": int, "from_version": int, "version": int, "settings": str, "reason": str, "result": str,
        },
        pk="id",
    )  # fmt: skip
    # retained chunks that the broker may hold: written down before they are published, removed after
    table("published_chunks", {"sha256": str}, pk="sha256")
    table("audit", {"id": int, "time": float, "actor": str, "action": str, "subject": str, "detail": str}, pk="id")
    table("counters", {"name": str, "value": int}, pk="name")


STEPS: tuple[Callable[[Database], None], ...] = (_first,)


def migrate(db: Database) -> None:
    """Bring `db` to the newest schema; raises `StorageError` if a newer program has been here."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(STEPS):
        raise StorageError(
            f"the database has schema {version}, this program knows {len(STEPS)}",
            "install the newer version again, or restore a backup made by this one",
        )
    if version == len(STEPS):
        return
    with db.atomic():
        for step in STEPS[version:]:
            step(db)
        db.execute(f"PRAGMA user_version = {len(STEPS)}")
