"""Throw away what nobody needs any more: old telemetry, old rejections, deltas that no teacher can be made of."""

from __future__ import annotations

from .limits import Limits
from .store import Store


def clean(store: Store, limits: Limits, now: float) -> None:
    """One cleaning at time `now`, in one transaction. Raises `StorageError`.

    Rows of accepted deltas stay for ever (they are what tells a duplicate); their bytes go once the base is so old that
    no new delta on it is accepted. A device that resends what was rejected longer ago is judged again.
    """
    with store.writing() as db:
        db.execute("DELETE FROM telemetry WHERE received < ?", [now - limits.telemetry_seconds])
        db.execute("DELETE FROM deltas WHERE status = 'rejected' AND received < ?", [now - limits.rejected_seconds])
        db.execute(
            "DELETE FROM delta_blobs WHERE delta IN (SELECT d.id FROM deltas d JOIN models m ON m.name = d.model"
            " LEFT JOIN jobs j ON j.id = d.job WHERE d.job IS NOT NULL AND coalesce(j.state, '') != 'running'"
            " AND d.base_version < m.current_version - ?)",
            [limits.largest_staleness],
        )
