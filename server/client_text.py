"""What `sanderling model` and `sanderling fleet` print for people: figures as text, answers as tables.

Names, reasons and notes come from devices and other people: they pass `clean`, so that none can write to the terminal
anything but letters, and enter tables as `Text`, so that none is read as markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]

#: Columns of text that the whole table of devices needs, and what narrower ones do without.
WIDE, SPARED = 118, (">live", ">memory", ">deltas", ">sent")


def clean(value: object) -> str:
    r"""`value` as text without control characters.

    >>> clean("a\x1b[31mb\n")
    'a�[31mb�'
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in str(value))


def size(value: float) -> str:
    """Bytes for people.

    >>> size(134217728), size(1536), size(12)
    ('128 MiB', '1.5 KiB', '12 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 or value == int(value) else f"{value:.1f} {unit}"


def percent(value: float | None) -> str:
    """An accuracy for people; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f} %"


def ago(then: float | None, now: float) -> str:
    """How long ago, for people.

    >>> ago(100.0, 112.2), ago(0.0, 7200.0), ago(None, 1.0)
    ('12 s ago', '2 h ago', 'never')
    """
    if then is None:
        return "never"
    gone = max(0.0, now - then)
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if gone < limit:
            return f"{gone / unit:.0f} {name} ago"
    return f"{gone / 86400:.0f} d ago"


def moment(then: float) -> str:
    """Local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then))


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> Table:
    """A plain table; a column whose name starts with ">" is aligned to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row))
    return made


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values, one pair a line; pairs without a value are left out."""
    made = Table.grid(padding=(0, 2, 0, 0))
    for name, value in pairs:
        if value not in (None, ""):
            made.add_row(Text(name, style="dim"), Text(clean(value)))
    return made


def status(now: Row) -> RenderableType:
    """The answer of /api/status."""
    devices, accuracy, memory, traffic = now["devices"], now["accuracy"], now["memory"], now["traffic"]
    broker, job = now["broker"], now["merging"]
    gained = ""
    if accuracy["before"] is not None and accuracy["now"] is not None:
        gained = f" ({percent(accuracy['before'])} before, {100 * (accuracy['now'] - accuracy['before']):+.1f} points)"
    ratio = traffic["float32_bytes"] / traffic["delta_bytes"] if traffic["delta_bytes"] else 0.0
    models = [
        (m["name"], f"v{m['current_version']}", m["source"], m["devices_on_current"], m["devices_personal"],
         m["pending"]["deltas"])
        for m in now["models"]
    ]  # fmt: skip
    head = facts(
        [
            ("fleet", now["fleet"]),
            ("broker", broker["address"] + ("" if broker["connected"] else f", not connected: {broker['reason']}")),
            ("devices", f"{devices['online']} of {devices['total']} online"),
            ("silent", ", ".join(devices["silent"])),
            ("accuracy", percent(accuracy["now"]) + gained),
            ("training peak", _against(memory["training_peak"], memory["memory_limit"])),
            ("sent", f"{size(traffic['delta_bytes'])}, 1/{ratio:.1f} of plain float32" if ratio else "nothing yet"),
            ("merging", f"{job['model']} since {ago(job['created'], now['time'])}" if job else ""),
        ]
    )
    if not models:
        return Group(head, Text("no model yet: push one with `sanderling model push MODEL.onnx --name NAME`"))
    columns = ("model", "version", "source", ">devices on it", ">serving their own", ">deltas waiting")
    return Group(head, Text(), table(columns, models))


def _against(value: int, limit: int) -> str:
    return "-" if not value else f"{size(value)} of {size(limit)}" if limit else size(value)


def devices(rows: list[Row], now: float, width: int) -> Table:
    """The answer of /api/devices in `width` columns of text: narrow terminals get the columns that matter most."""
    cells: dict[str, Callable[[Row], object]] = {
        "device": lambda d: d["name"],
        "state": lambda d: Text("online", "green") if d["online"] else Text("silent", "yellow"),
        "version": lambda d: (f"v{d['version']}" + ("" if d["is_current"] else " behind")) if d["version"] else "-",
        "serving": lambda d: d["serving"] or "-",
        ">held-out": lambda d: percent((d["accuracy"]["serving"] or {}).get("value")),
        ">live": lambda d: percent((d["accuracy"]["prequential"] or {}).get("value")),
        ">memory": lambda d: size(d["memory"]["total"]),
        ">training peak": lambda d: _against(d["memory"]["training_peak"], d["memory"]["memory_limit"]),
        ">deltas": lambda d: f"{d['deltas']['accepted']}" + (f" +{n}" if (n := d["deltas"]["waiting"]) else ""),
        ">sent": lambda d: size(d["deltas"]["bytes"]),
        ">last seen": lambda d: ago(d["last_seen"], now),
    }
    names = [name for name in cells if width >= WIDE or name not in SPARED]
    return table(names, [[cells[name](d) for name in names] for d in rows])


def device(d: Row, now: float) -> RenderableType:
    """The answer of /api/devices/{name}."""
    measured, deltas = d["accuracy"], d["deltas"]

    def accuracy(name: str) -> str:
        found = measured[name]
        return f"{percent(found['value'])} of {found['count']} samples" if found else ""

    shown = facts(
        [
            ("device", d["name"]),
            ("state", f"{'online' if d['online'] else 'silent'}, last seen {ago(d['last_seen'], now)}"),
            ("agent", f"{d['agent_version']}, boot {d['boot']}"),
            ("model", f"{d['model']} v{d['version']}, serving {d['serving']}" if d["model"] else "none yet"),
            ("fleet's model", accuracy("held_out_fleet")),
            ("its own model", accuracy("held_out_personal")),
            ("live", accuracy("prequential")),
            ("memory", ", ".join(f"{name} {size(value)}" for name, value in d["memory"]["resident"].items())),
            ("training peak", _against(d["memory"]["training_peak"], d["memory"]["memory_limit"])),
            ("samples", f"{d['samples']['seen']} seen, {d['samples']['stored']} kept on the device"),
            ("deltas", f"{deltas['accepted']} accepted, {deltas['merged']} merged, {deltas['rejected']} rejected"),
            ("sent", f"{size(deltas['bytes'])} ({size(deltas['float32_bytes'])} as plain float32)"),
        ]
    )
    happened = [(ago(e["received"], now), e["kind"], f"{e['model']} v{e['version']}", e["reason"]) for e in d["events"]]
    return Group(shown, Text(), table(("when", "event", "model", "reason"), happened[:20])) if happened else shown


def models(rows: list[Row]) -> Table:
    """The answer of /api/models."""
    return table(
        ("model", "version", "first released", ">deltas waiting", "labels"),
        [
            (m["name"], f"v{m['current_version']}", moment(m["created"]), m["pending"]["deltas"],
             ", ".join(m["labels"] or [])) for m in rows
        ],
    )  # fmt: skip


def releases(rows: list[Row], now: float) -> RenderableType:
    """The answer of /api/models/{model}/releases, with the candidates of the newest merge."""
    listed = table(
        ("version", "source", "released", ">validation", ">devices", ">deltas", ">model", "digest"),
        [
            (
                f"v{r['version']}",
                r["source"],
                ago(r["created"], now),
                percent(r["metrics"].get("validation_accuracy", r["metrics"].get("proxy_accuracy"))),
                len(r["lineage"].get("devices", [])) or "-",
                r["lineage"].get("deltas", "-"),
                size(r["files"]["model.onnx"]["length"]),
                r["digest"][:12],
            )
            for r in rows
        ],
    )
    merged = next((r for r in rows if r["lineage"].get("candidates")), None)
    if merged is None:
        return listed
    chosen = merged["metrics"].get("candidate")
    candidates = [
        (f"{name} (released)" if name == chosen else name, percent(f.get("accuracy")), percent(f.get("agreement")))
        for name, f in merged["lineage"]["candidates"].items()
    ]
    of = Text(f"candidates of v{merged['version']}", style="dim")
    return Group(listed, Text(), of, table(("candidate", ">validation", ">agreement with devices"), candidates))
