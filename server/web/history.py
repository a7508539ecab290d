"""Accuracy and memory over time, thinned out to what a chart can show.

Telemetry is cut into equal spans of time and the last report of each device in each span is kept; the database does
that, so an answer costs (devices x points) rows whatever is stored. The fleet's mean carries each device's last value
forward, from its first report on.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ..service import Service
from ..store import Row

#: Points of a line at most, and points of an answer at most.
MOST_POINTS, MOST_ROWS = 1000, 10_000
#: Devices that get a line of their own: those that reported last. All of them are in the mean.
MOST_LINES = 60

_SPANS = """
SELECT device, received, model, report FROM telemetry WHERE id IN (
    SELECT max(id) FROM telemetry WHERE received >= ?2 AND (?1 IS NULL OR device = ?1)
    GROUP BY device, CAST((received - ?2) / ?3 AS INTEGER)
) ORDER BY id
"""
_BOUNDS = """
SELECT min(received) AS first, max(received) AS last, count(DISTINCT device) AS devices FROM telemetry
WHERE received >= ?2 AND (?1 IS NULL OR device = ?1)
"""

#: What a point of a device's line is, in order; see `_point`.
FIELDS = ("time", "version", "serving", "held_out", "held_out_fleet", "held_out_personal", "prequential", "resident",
          "training_peak", "memory_limit")  # fmt: skip


def history(service: Service, *, device: str | None = None, since: float = 0.0, points: int = 240) -> Row:
    """Lines of one device, or of all with the fleet's mean.

    `devices` is {name: [point]}, a point being a list of `fields`; times in seconds since 1970, accuracies 0 to 1,
    memory in bytes; None where unknown. `fleet` is [[time, held_out, prequential]]; `releases` marks the versions.
    """
    if device is not None:
        service.store.device(device)
    bounds = service.store.rows(_BOUNDS, [device, since])[0]
    lines: dict[str, list[list[Any]]] = {}
    fleet: list[list[float | None]] = []
    if bounds["devices"]:
        begin = max(since, bounds["first"])
        wanted = max(2, min(points, MOST_POINTS, MOST_ROWS // bounds["devices"]))
        width = max((bounds["last"] - begin) / wanted, 0.5)
        rows = service.store.rows(_SPANS, [device, begin, width])
        fleet = _mean(rows, width)
        for row in rows:
            lines.setdefault(row["device"], []).append(_point(row))
    kept = sorted(sorted(lines, key=lambda name: -lines[name][-1][0])[:MOST_LINES])
    return {
        "now": time.time(),
        "fields": FIELDS,
        "devices": {name: lines[name] for name in kept},
        "left_out": len(lines) - len(kept),
        "fleet": fleet,
        "releases": service.store.rows(
            "SELECT model, version, created AS time, source FROM releases WHERE created >= ? ORDER BY created", [since]
        ),
    }


class Shared:
    """The last answers of `history` for all devices, kept for a few times as long as they took to find.

    So however many pages look at a large fleet, finding its lines takes at most a fifth of one core; of a small fleet
    they are never older than a moment.
    """

    PATIENCE, MOST = 4.0, 8

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._kept: dict[tuple[float, int], tuple[float, Row]] = {}

    def history(self, since: float, points: int) -> Row:
        """As `history` of all devices; from any thread."""
        key = (since, points)
        with self._lock:
            begun = time.monotonic()
            until, answer = self._kept.pop(key, (0.0, {}))
            if begun >= until:
                answer = history(self._service, since=since, points=points)
                until = time.monotonic() + self.PATIENCE * (time.monotonic() - begun)
            self._kept[key] = (until, answer)
            while len(self._kept) > self.MOST:  # the one that was asked for longest ago
                del self._kept[next(iter(self._kept))]
            return answer


def first_accuracy(service: Service) -> dict[str, float]:
    """Each device's held-out accuracy with the release that it began with: its first report on 10 samples or more."""
    rows = service.store.rows(
        "SELECT name, (SELECT json_extract(report, '$.held_out_fleet.value') FROM telemetry WHERE device = name"
        " AND json_extract(report, '$.held_out_fleet.count') >= 10 ORDER BY received LIMIT 1) AS value FROM devices"
    )
    return {row["name"]: row["value"] for row in rows if row["value"] is not None}


def serving_accuracy(report: Row) -> Row | None:
    """Held-out accuracy {value, count} of the model that answers on the device, by its report; None if unmeasured."""
    key = "held_out_personal" if report.get("serving") == "personal" else "held_out_fleet"
    found: Row | None = report.get(key)
    return found


def _point(row: Row) -> list[Any]:
    report: Row = row["report"]
    value = {name: (report.get(name) or {}).get("value") for name in FIELDS[4:7]}
    return [
        row["received"], report.get("version"), report.get("serving"), (serving_accuracy(report) or {}).get("value"),
        *value.values(), sum((report.get("resident") or {}).values()), report.get("training_peak"),
        report.get("memory_limit"),
    ]  # fmt: skip


def _mean(rows: list[Row], width: float) -> list[list[float | None]]:
    last: dict[str, dict[str, float]] = {"held_out": {}, "prequential": {}}
    mean: list[list[float | None]] = []
    for row in rows:
        _, _, _, held_out, _, _, prequential, *_ = _point(row)
        for kind, value in (("held_out", held_out), ("prequential", prequential)):
            if value is not None:
                last[kind][row["device"]] = value
        point = [row["received"], *(sum(v.values()) / len(v) if v else None for v in last.values())]
        # several devices report in one span: the mean after the last of them is the span's
        if mean and mean[-1][0] is not None and int(mean[-1][0] / width) == int(row["received"] / width):
            mean[-1] = point
        else:
            mean.append(point)
    return mean
