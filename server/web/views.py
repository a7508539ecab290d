"""The service's rows as the API shows them: every figure under one name, with nothing that only the inside needs.

Accuracies are 0 to 1, memory and traffic bytes, times seconds since 1970 (UTC). Pure: rows in, JSON values out.
"""

from __future__ import annotations

import time
from statistics import fmean

from sanderling import __version__

from ..store import Row
from .history import serving_accuracy


def status(core: Row, devices: list[Row], first: dict[str, float], viewers: int) -> Row:
    """`Service.status()` completed by what the head of the page says.

    `accuracy` gains `now` (mean held-out accuracy of what devices serve), `before` (the same devices with the release
    that they began with) and `devices` (how many these are); `memory` gains the device with the largest peak.
    """
    reported = {d["name"]: d["telemetry"] for d in devices if d["telemetry"]}
    now = {name: found["value"] for name, report in reported.items() if (found := serving_accuracy(report))}
    both = sorted(now.keys() & first.keys())
    peaks = {name: report.get("training_peak", 0) for name, report in reported.items()}
    largest = max(peaks, key=peaks.__getitem__, default=None)
    return {
        **core,
        "time": time.time(),
        "program": __version__,
        "viewers": viewers,
        "devices": {**core["devices"], "silent": [d["name"] for d in devices if not d["online"]][:20]},
        "accuracy": {
            **core["accuracy"],
            "now": fmean(now[name] for name in (both or now)) if now else None,
            "before": fmean(first[name] for name in both) if both else None,
            "devices": len(both or now),
        },
        "memory": {
            "training_peak": peaks[largest] if largest else 0,
            "memory_limit": reported[largest].get("memory_limit", 0) if largest else 0,
            "device": largest if largest and peaks[largest] else None,
        },
    }


def device(row: Row, current: dict[str, int]) -> Row:
    """One row of the table of devices; `current` are the current versions by model."""
    report: Row = row["telemetry"] or {}
    model, version = report.get("model"), report.get("version")
    resident: dict[str, int] = report.get("resident") or {}
    return {
        "name": row["name"],
        "online": row["online"],
        "boot": row["boot"],
        "agent_version": row["agent_version"],
        "first_seen": row["first_seen"],
        "last_seen": row["last_seen"],
        "model": model,
        "version": version,
        "is_current": model is not None and version == current.get(model),
        "serving": report.get("serving"),
        "accuracy": {
            "serving": serving_accuracy(report),
            "held_out_fleet": report.get("held_out_fleet"),
            "held_out_personal": report.get("held_out_personal"),
            "prequential": report.get("prequential"),
        },
        "memory": {
            "resident": resident,
            "total": sum(resident.values()),
            "training_peak": report.get("training_peak", 0),
            "memory_limit": report.get("memory_limit", 0),
        },
        "samples": {"seen": report.get("samples_seen", 0), "stored": report.get("samples_stored", 0)},
        "training_runs": report.get("training_runs", 0),
        "deltas": {
            "accepted": row["deltas_accepted"],
            "rejected": row["deltas_rejected"],
            "merged": row["deltas_merged"],
            "waiting": report.get("outbox", 0),
            "bytes": row["delta_bytes"],
            "float32_bytes": row["float32_bytes"],
        },
    }


def detailed(row: Row, current: dict[str, int], lines: Row) -> Row:
    """One device with its newest events and deltas and its `history`."""
    return {**device(row, current), "events": row["events"], "deltas_newest": row["deltas"], "history": lines}


def metrics(values: dict[str, float]) -> str:
    """Prometheus' text format 0.0.4: names ending in `_total` are counters, the others gauges; no labels."""
    lines = []
    for name, value in sorted(values.items()):
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# TYPE sanderling_{name} {kind}", f"sanderling_{name} {value:.17g}"]
    return "\n".join(lines) + "\n"
