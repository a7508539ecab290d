"""What the demo ends with: one table, one picture, one JSON document, all from the same figures."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass
class DeviceResult:
    """One device's outcome. Accuracies are shares (0 to 1) of windows that it never learned from; sizes in bytes."""

    name: str
    person: int
    accuracy_before: float
    accuracy_after: float
    version: int
    serving: str
    training_peak: int
    memory_limit: int
    delta_bytes: int
    float32_bytes: int
    deltas: int
    versions_installed: list[int]
    #: (seconds since the story began, accuracy, version), oldest first.
    curve: list[tuple[float, float, int]] = field(default_factory=list)


@dataclass
class Outcome:
    """The whole story in figures."""

    devices: list[DeviceResult]
    #: The device that joined at the end: it has learned nothing itself.
    new_device: DeviceResult
    #: (seconds since the story began, version), oldest first.
    releases: list[tuple[float, int]]
    broker: str
    restarts: dict[str, int]
    seconds: float

    def summary(self) -> dict[str, float]:
        """The figures that the README quotes: means over the devices and sums of bytes."""
        n = len(self.devices)
        return {
            "mean_accuracy_before": sum(d.accuracy_before for d in self.devices) / n,
            "mean_accuracy_after": sum(d.accuracy_after for d in self.devices) / n,
            "new_device_gain_points": 100 * (self.new_device.accuracy_after - self.new_device.accuracy_before),
            "largest_training_peak": max(d.training_peak for d in self.devices),
            "memory_limit": max(d.memory_limit for d in self.devices),
            "traffic_ratio": sum(d.float32_bytes for d in self.devices)
            / max(1, sum(d.delta_bytes for d in self.devices)),
            "releases": float(len(self.releases)),
        }

    def write_json(self, path: Path) -> None:
        """All figures, with the summary under "summary"."""
        path.write_text(json.dumps({"summary": self.summary(), **asdict(self)}, indent=2) + "\n")


def show(outcome: Outcome, console: Console) -> None:
    """Print the table; it fits into 80 columns."""
    table = Table(
        title="Accuracy on windows that no device has learned from", title_justify="left", box=SIMPLE_HEAD,
        pad_edge=False, padding=(0, 0, 0, 1), expand=False,
    )  # fmt: skip
    table.add_column("device")
    for heading in ("before", "after", "gain", "version", "answers", "peak", "sent", "float32"):
        table.add_column(heading, justify="right")
    for device in outcome.devices:
        table.add_row(*_row(device))
    totals = outcome.summary()
    table.add_section()
    before, after = totals["mean_accuracy_before"], totals["mean_accuracy_after"]
    table.add_row(
        "mean", _percent(before), _percent(after), _gain(after - before), "", "", "",
        f"1/{totals['traffic_ratio']:.1f}", style="bold",
    )  # fmt: skip
    table.add_section()
    table.add_row(*_row(outcome.new_device))
    console.print(table)
    limit = totals["memory_limit"] / 2**20
    new = outcome.new_device
    for line in (
        f"before: version 1, made from four other people. peak: the whole training process, {limit:.0f} MiB allowed.",
        "sent: weight deltas as they went over the wire; float32: what they would have been uncompressed.",
        f"{new.name} joined at the end and has learned nothing itself: what it gains, the fleet learned for it.",
    ):
        console.print(line, style="dim", highlight=False, soft_wrap=True)
    again = {name: count for name, count in outcome.restarts.items() if count}
    told = f"{len(outcome.releases)} signed releases, broker {outcome.broker}, {outcome.seconds:.0f} s"
    if again:
        told += ", started again: " + ", ".join(f"{name} {count}×" for name, count in again.items())
    console.print(told, highlight=False, soft_wrap=True)


def _row(device: DeviceResult) -> list[str | Text]:
    return [
        device.name,
        _percent(device.accuracy_before),
        _percent(device.accuracy_after),
        _gain(device.accuracy_after - device.accuracy_before),
        str(device.version),
        "fleet's" if device.serving == "fleet" else "its own",
        f"{math.ceil(device.training_peak / 2**20)} MiB" if device.training_peak else "–",
        f"{device.delta_bytes / 1e3:.1f} kB" if device.delta_bytes else "–",
        f"{device.float32_bytes / 1e3:.0f} kB" if device.float32_bytes else "–",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _gain(share: float) -> Text:
    return Text(f"{100 * share:+.1f}", style="green" if share > 0 else "red" if share < 0 else "")


def draw(outcome: Outcome, path: Path) -> None:
    """The picture: accuracy over time, a line per device, the mean, the releases, and the new device's two points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5.4), dpi=130, layout="constrained")
    colours = ["#3b6fb6", "#d1802f", "#3f9b62", "#b5493f", "#7e65b1"]
    for device, colour in zip(outcome.devices, colours, strict=False):
        times, shares = [t for t, _, _ in device.curve], [100 * a for _, a, _ in device.curve]
        axes.plot(
            times, shares, color=colour, linewidth=1.2, alpha=0.75, label=f"{device.name}, person {device.person}"
        )
    times, means = _mean_curve(outcome.devices)
    axes.plot(times, means, color="#222222", linewidth=2.6, label="mean of the five")
    for when, version in outcome.releases[1:]:
        axes.axvline(when, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"v{version}", (when, 1), xycoords=("data", "axes fraction"), xytext=(3, -11), textcoords="offset points",
            fontsize=8, color="#666666",
        )  # fmt: skip
    new = outcome.new_device
    end = max([*times, *(t for t, _ in outcome.releases)], default=1.0)
    axes.plot(
        [end * 1.04] * 2, [100 * new.accuracy_before, 100 * new.accuracy_after], color="#222222", linewidth=1, zorder=2
    )
    axes.plot(end * 1.04, 100 * new.accuracy_before, "o", mfc="white", mec="#222222", markersize=7, zorder=3)
    axes.plot(
        end * 1.04, 100 * new.accuracy_after, "o", color="#222222", markersize=7, zorder=3,
        label=f"{new.name} joins: version 1 (hollow), fleet's model (full)",
    )  # fmt: skip
    axes.set(
        xlabel="seconds since version 1 was released", ylabel="accuracy on unseen windows, %", xlim=(0, end * 1.08)
    )
    axes.set_title("Five people's devices learn, and a sixth profits", loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, framealpha=0.9, edgecolor="white", loc="lower right")
    figure.savefig(path)
    pyplot.close(figure)


def _mean_curve(devices: list[DeviceResult]) -> tuple[list[float], list[float]]:
    """The devices' mean, in percent, second by second while all of them were judged; between judgements, a line."""
    begin = max(device.curve[0][0] for device in devices)
    end = min(device.curve[-1][0] for device in devices)
    moments = np.linspace(begin, end, max(2, int(end - begin)))
    curves = [np.interp(moments, [t for t, *_ in d.curve], [a for _, a, _ in d.curve]) for d in devices]
    return moments.tolist(), (100 * np.mean(curves, axis=0)).tolist()
