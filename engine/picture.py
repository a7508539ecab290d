"""The memory over one training step as a picture: what was computed, and what a process really had.

Strategy. Computed: all that is held at each moment, stacked; what passes between sessions and what is alive inside
them follows from lifetimes, node by node. Measured: the resident memory of a fresh process over its first step. The
two do not mean the same (a page that was touched stays resident after its tensor is gone), so a line says what should
be resident: everything touched so far. That line and the measured one are to be compared. The axis is the measured
time of the first step; inside a session its nodes are spread evenly.

matplotlib is needed here and nowhere else; a device never draws.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .describe import clean
from .errors import EngineError
from .exchange import Exchange, arrange, padded
from .plan import Description, TrainingPlan
from .trial import Trial, try_plan

#: Okabe and Ito's colours, which people tell apart who see fewer; from the bottom of the stack to its top.
_LAYERS = (
    ("process", "interpreter, libraries, sessions", "#c9ced6"),
    ("weights", "weights and inputs", "#0072b2"),
    ("optimizer", "optimizer state", "#56b4e9"),
    ("gradients", "gradients of the batch", "#009e73"),
    ("between", "between sessions", "#e69f00"),
    ("inside", "inside sessions", "#cc79a7"),
)
_LIMIT, _INK, _FAINT = "#d55e00", "#1b1b1b", "#5f6670"
_MEBI = 2**20
#: Share of the width that a session needs for its name.
_NAMED = 0.022
#: Points by which the optimizer's touching of its state is drawn.
_PARTS = 16


@dataclass(slots=True)
class Course:
    """Bytes over one step: each entry holds from its time to the next one's."""

    times: list[float] = field(default_factory=list)
    #: Layers by name, what is held at that time.
    layers: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name, _, _ in _LAYERS})
    #: What should be resident: all pages touched so far.
    resident: list[int] = field(default_factory=list)


def check_library() -> None:
    """Raises EngineError where nothing can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "drawing needs matplotlib, which is not installed: pip install matplotlib (or 'sanderling[demo]'); "
            "the figures themselves come without it, in --json"
        ) from error


def measure(plan: TrainingPlan) -> Trial:
    """A trial run of the plan with the course of its memory: without the hard limit, which would count who watches."""
    return try_plan(plan, curve=True)


def course(info: Description, measured: Trial) -> Course:
    """What is held, and what should be resident, at the times at which a trial run's sessions began and ended."""
    exchange = arrange(info)
    shapes = {t.name: t.shape for t in (*info.weights, *info.tensors)}
    groups = {i: 4 * sum(padded(shapes[n]) for n in names) for i, names in exchange.groups.items()}
    trained = max(sum(groups.values()), 1)
    print_ = info.footprint
    held = print_.gradients > 0
    touched = _Touched(exchange)
    fixed = print_.baseline + print_.sessions
    last = len(info.steps) - 1
    text = gradients = optimizer = reached = 0
    result = Course()

    def note(time: float, between: int, inside: int) -> None:
        nonlocal reached
        reached = max(reached, inside)
        values = (fixed + text, print_.weights + print_.inputs, optimizer, gradients, between, inside)
        result.times.append(time - measured.began)
        for (name, _, _), value in zip(_LAYERS, values, strict=True):
            result.layers[name].append(value)
        result.resident.append(sum(values[:4]) + touched.total + reached + reached // 32)

    def update(begin: float, end: float, share: int, between: int) -> None:
        nonlocal optimizer
        before = optimizer
        for part in range(_PARTS):
            optimizer = min(before + round(print_.optimizer * share / trained * part / _PARTS), print_.optimizer)
            note(begin + (end - begin) * part / _PARTS, between, 0)
        optimizer = min(before + round(print_.optimizer * share / trained), print_.optimizer)

    note(measured.began, 0, 0)
    runs = list(_runs(measured))
    for (begin, end, index), (following, _, _) in zip(runs, [*runs[1:], (measured.ended, 0.0, 0)], strict=True):
        step = info.steps[index]
        between = sum(s.size for s in exchange.spans.values() if s.first <= index <= s.last)
        touched.by(index)
        nodes = max(len(step.alive), 1)
        full = step.workspace / max(max(step.alive, default=1), 1)  # how far it reaches for what is alive
        for node, alive in enumerate(step.alive):
            text = max(text, round(print_.step * (index + (node + 1) / nodes) / (last + 1)))
            note(begin + (end - begin) * node / nodes, between, alive)
            reached = max(reached, round(alive * full))
        if index in groups and held:
            gradients = min(gradients + round(print_.gradients * groups[index] / trained), print_.gradients)
        elif index in groups:  # the group steps at once, while its gradient is still there
            update(end, following, groups[index], between)
        after = 0 if index == last else sum(s.size for s in exchange.spans.values() if s.first <= index < s.last)
        note(following if index in groups and not held else end, after, 0)
    if held:  # all groups step in the end
        clock = result.times[-1] + measured.began
        length = measured.ended - clock
        for share in groups.values():
            update(clock, clock + length * share / trained, share, 0)
            clock += length * share / trained
            note(clock, 0, 0)
    note(measured.ended, 0, 0)
    return result


def _runs(measured: Trial) -> Iterator[tuple[float, float, int]]:
    """(begin, end, session) in the order in which they ran."""
    marks = measured.sessions
    for (begin, index, _), (end, _, _) in zip(marks[::2], marks[1::2], strict=True):
        yield begin, end, index


class _Touched:
    """Bytes of the buffer between sessions that have been written."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._seen = -1
        self.total = 0

    def by(self, index: int) -> None:
        """Everything up to a session."""
        if index <= self._seen:
            return
        self._seen = index
        spans = sorted(
            (self._exchange.offsets[slot], self._exchange.offsets[slot] + s.size)
            for slot, s in self._exchange.spans.items()
            if s.first <= index
        )
        self.total = reached = 0
        for begin, end in spans:
            self.total += max(0, end - max(begin, reached))
            reached = max(reached, end)


def draw(info: Description, measured: Trial, path: Path) -> None:
    """Write the picture as a PNG. Raises EngineError, OSError."""
    check_library()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    computed = course(info, measured)
    milliseconds = [1e3 * t for t in computed.times]
    with pyplot.rc_context({"font.size": 9, "font.family": "sans-serif", "axes.edgecolor": _FAINT}):
        figure, axes = pyplot.subplots(figsize=(9, 5.2), dpi=110)
        shown = [layer for layer in _LAYERS if any(computed.layers[layer[0]])]
        axes.stackplot(
            milliseconds, [[v / _MEBI for v in computed.layers[name]] for name, _, _ in shown], step="post",
            labels=[text for _, text, _ in shown], colors=[colour for _, _, colour in shown], linewidth=0,
        )  # fmt: skip
        begin = bisect.bisect_left(measured.curve, (measured.began, 0))
        curve = [(1e3 * (t - measured.began), b) for t, b in measured.curve[begin:] if t <= measured.ended]
        axes.plot(
            milliseconds, [v / _MEBI for v in computed.resident], drawstyle="steps-post", color=_INK, linewidth=1.1,
            linestyle=(0, (4, 2)), label="computed: touched so far, so resident",
        )  # fmt: skip
        axes.plot(
            [t for t, _ in curve], [b / _MEBI for _, b in curve], color=_INK, linewidth=1.7,
            label="measured: resident in the first step",
        )  # fmt: skip
        end = milliseconds[-1]
        limit = None if info.memory_limit is None else (info.memory_limit - info.footprint.reserve) / _MEBI
        top = max(max(computed.resident), measured.peak, (limit or 0) * _MEBI) / _MEBI
        if limit is not None:
            axes.axhline(limit, color=_LIMIT, linewidth=1.4)
            axes.text(
                end,
                limit + 0.012 * top,
                f"limit {limit:.0f} MiB",
                color=_LIMIT,
                ha="right",
                va="bottom",
                weight="bold",
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
            )
        _mark(axes, info, measured, top * 1.15, end)
        axes.set_xlim(0, end)
        axes.set_ylim(0, top * 1.15)
        axes.set_ylabel("MiB")
        axes.set_xlabel("milliseconds in the first step (the slowest: it touches every page for the first time)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(_title(info), loc="left", fontsize=11.5, weight="bold", pad=24)
        axes.text(0, 1.025, _subtitle(info, computed, measured), transform=axes.transAxes, color=_FAINT, va="bottom")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles[::-1], labels[::-1], loc="lower center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 0.0)
        )
        figure.tight_layout(rect=(0, 0.13, 1, 1))
        figure.savefig(path, format="png")
        pyplot.close(figure)


def _title(info: Description) -> str:
    name = clean(Path(info.source).name)
    return f"{name}: the memory of one training step" if len(name) < 50 else "The memory of one training step"


def _subtitle(info: Description, computed: Course, measured: Trial) -> str:
    calls = -(-info.batch // info.micro_batch)
    how = f"batch {info.batch}" + (f" in {calls} micro-batches" if calls > 1 else "")
    how += f", {info.segments} segment{'s' if info.segments > 1 else ''}, {info.optimizer} in {info.optimizer_state}"
    peaks = f"peak computed {max(computed.resident) / _MEBI:.1f}, measured {measured.peak / _MEBI:.1f} MiB"
    return f"{how}; {peaks}"


def _mark(axes: Any, info: Description, measured: Trial, top: float, end: float) -> None:
    """Sessions as bands and names at the top: ▸1 forward through segment 1, ◂1 back through it."""
    runs = [(1e3 * (a - measured.began), 1e3 * (b - measured.began), i) for a, b, i in _runs(measured)]
    calls = max(len(runs) // max(len(info.steps), 1), 1)
    if calls > 1:
        size = len(info.steps)
        for call in range(calls):
            begin, stop = runs[call * size][0], runs[(call + 1) * size - 1][1]
            axes.axvline(begin, color=_INK, linewidth=0.5, alpha=0.5)
            if stop - begin > _NAMED * end:
                name = f"micro-batch {call + 1}" if stop - begin > 6 * _NAMED * end else str(call + 1)
                axes.text((begin + stop) / 2, top * 0.985, name, ha="center", va="top", color=_FAINT, size=8)
        return
    for begin, stop, index in runs:
        axes.axvline(begin, color="white", linewidth=0.6, alpha=0.7)
        if stop - begin > _NAMED * end:
            arrow = "→" if info.steps[index].kind == "forward" else "←"
            name = f"{arrow}{info.steps[index].segment + 1}" if len(info.steps) > 1 else "forward and backward"
            axes.text((begin + stop) / 2, top * 0.985, name, ha="center", va="top", color=_FAINT, size=8)
