"""The picture of `federated.py`: accuracy against bytes sent, a panel for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

#: By the first word of a method. Colours that colour-blind people can tell apart (Okabe and Ito, 2008), and a mark.
_STYLES = {
    "float32": ("#000000", "o"),
    "sanderling": ("#0072B2", "s"),
    "top-k": ("#D55E00", "^"),
    "QSGD": ("#009E73", "D"),
}
_TITLES = {
    "wrist": "Wrist motions: 6 people, one client each",
    "mnist": "MNIST, CNN: 10 clients, Dirichlet(0.5)",
}


def draw(runs: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Write the picture: means over seeds, bands from the lowest seed to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(runs), figsize=(6 * len(runs), 5.6), dpi=130, layout="constrained")
    for axes, (task, methods) in zip(np.atleast_1d(panels), runs.items(), strict=True):
        lowest, first = 100.0, np.inf
        for name, found in sorted(methods.items(), key=lambda item: _place(item[0])):
            kind, _, share = name.rpartition(" ")
            colour, mark = _STYLES[(kind or share).split()[0]]
            sent = np.mean([[point[1] for point in run["curve"]] for run in found], axis=0) / 1e3
            accuracy = np.array([[point[2] for point in run["curve"]] for run in found])
            mean = accuracy.mean(axis=0)
            dashed = share.endswith("/100")
            axes.plot(
                sent, mean, color=colour, linewidth=1.8, linestyle=(0, (4, 2)) if dashed else "-", marker=mark,
                markersize=4.5, markevery=3, markerfacecolor="white" if dashed else colour, label=name,
            )  # fmt: skip
            axes.fill_between(sent, accuracy.min(axis=0), accuracy.max(axis=0), color=colour, alpha=0.08, linewidth=0)
            first = min(first, float(np.interp(80.0, mean, sent)))
            lowest = min(lowest, float(np.median(mean[: len(mean) // 2])))
        final = float(np.mean([run["accuracy"] for run in methods["float32"]])) if "float32" in methods else 100.0
        axes.axhline(final, color="#888888", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
        axes.annotate(
            f"float32 at the end: {final:.1f} %", (0.99, final), xycoords=("axes fraction", "data"), xytext=(0, 4),
            textcoords="offset points", ha="right", fontsize=8, color="#555555",
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_ylim(lowest - 6, final + 2)
        axes.set_xlim(first / 1.5, None)
        axes.set_title(_TITLES.get(task, task), loc="left", fontsize=11)
        axes.set(xlabel="kilobytes sent by a client so far (log scale)", ylabel="accuracy on unseen samples, %")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e8e8e8", linewidth=0.7)
        axes.set_axisbelow(True)
    lines, names = np.atleast_1d(panels)[0].get_legend_handles_labels()
    figure.legend(lines, names, fontsize=9, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)
    pyplot.close(figure)


def _place(name: str) -> tuple[int, int]:
    """The order of methods: as in `_STYLES`, then by how much they may send."""
    kind, _, share = name.rpartition(" ")
    return list(_STYLES).index((kind or share).split()[0]), int(share.partition("/")[2] or 1)
