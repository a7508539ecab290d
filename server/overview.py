"""The fleet in figures: what the head of the page and `/metrics` say, computed from the database."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from .config import Settings
from .store import Row, Store


def status(store: Store, settings: Settings) -> Row:
    """The fleet at a glance.

    fleet; devices {total, online}; models: [{name, current_version, created, source, devices_on_current,
    devices_personal, pending, metrics}]; accuracy {prequential, held_out_fleet, held_out_personal} (means over
    devices, None without reports); memory {training_peak, memory_limit} (the largest of any device, bytes); traffic
    {deltas, delta_bytes, float32_bytes}; merging: the running job or None; merge: the settings of `[merge]`.
    """
    devices = store.devices()
    reports = [d["telemetry"] for d in devices if d["telemetry"]]
    jobs = store.rows("SELECT id, model, created, attempts, from_version FROM jobs WHERE state = 'running' LIMIT 1")
    return {
        "fleet": settings.server.fleet,
        "devices": {"total": len(devices), "online": sum(d["online"] for d in devices)},
        "models": [_model(store, row, reports) for row in store.models()],
        "accuracy": {
            key: _mean((r.get(key) or {}).get("value") for r in reports)
            for key in ("prequential", "held_out_fleet", "held_out_personal")
        },
        "memory": {key: max((r.get(key, 0) for r in reports), default=0) for key in ("training_peak", "memory_limit")},
        "traffic": {
            "deltas": sum(d["deltas_accepted"] for d in devices),
            "delta_bytes": sum(d["delta_bytes"] for d in devices),
            "float32_bytes": sum(d["float32_bytes"] for d in devices),
        },
        "merging": jobs[0] if jobs else None,
        "merge": {name: getattr(settings.merge, name) for name in settings.merge.__struct_fields__},
    }


def metrics(store: Store, settings: Settings, *, connected: bool) -> dict[str, float]:
    """Counters (`..._total`) and gauges; no device is named, so the number of series does not grow with the fleet."""
    now = status(store, settings)
    pending = sum(m["pending"]["deltas"] for m in now["models"])
    gauges: dict[str, float | None] = {
        "devices": now["devices"]["total"],
        "devices_online": now["devices"]["online"],
        "models": len(now["models"]),
        "deltas_pending": pending,
        "broker_connected": float(connected),
        "merge_running": float(now["merging"] is not None),
        "largest_training_peak_bytes": now["memory"]["training_peak"],
        **{f"mean_accuracy_{key}": value for key, value in now["accuracy"].items()},
    }
    totals = {f"{name}_total": float(value) for name, value in store.counters().items()}
    totals |= {
        "delta_bytes_total": now["traffic"]["delta_bytes"],
        "float32_bytes_total": now["traffic"]["float32_bytes"],
    }
    return {**totals, **{name: value for name, value in gauges.items() if value is not None}}


def _model(store: Store, row: Row, reports: list[Row]) -> Row:
    current = store.current(row["name"]) or {}
    own = [r for r in reports if r.get("model") == row["name"]]
    return {
        "name": row["name"],
        "current_version": row["current_version"],
        "created": current.get("created"),
        "source": current.get("source"),
        "metrics": current.get("metrics", {}),
        "devices_on_current": sum(r.get("version") == row["current_version"] for r in own),
        "devices_personal": sum(r.get("serving") == "personal" for r in own),
        "pending": store.pending(row["name"]),
    }


def _mean(values: Iterable[Any]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
