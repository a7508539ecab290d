"""A plan for people: what was chosen, the memory item by item, and what each segment stores and runs again.

Strategy: one set of figures (`figures`, which is what `--json` writes), and one text of them that fits 80 columns, is
the same in a terminal and in a file, and asks for nothing but a function that may set headings apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from .checkpoints import STORED
from .exchange import bytes_of
from .memory import format_size
from .plan import GRADIENT

if TYPE_CHECKING:
    from .plan import Description, StepInfo, Tensor

Style = Callable[[str], str]
#: Columns of the text, of a bar in it, and of a list of names.
WIDTH, _BAR, _NAMES = 80, 24, 60


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of the forward pass, counted from 1."""

    number: int
    #: Operators of the model in it, its loss among those of the last.
    operators: int
    #: Whether a backward pass reaches it: whether anything in it or before it is trained.
    differentiated: bool
    #: Whether its forward pass runs twice.
    recomputed: bool
    #: Tensors that it makes and keeps for a backward pass, their bytes, and whether these hold a byte per number.
    stored: tuple[str, ...]
    stored_bytes: int
    in_8_bits: bool
    #: The most bytes that one of its sessions holds inside.
    inside_bytes: int
    #: Share of the predicted time of a step, 0 to 1.
    time: float


def segments(info: Description) -> list[Segment]:
    """The segments of a plan, in the order of the forward pass."""
    kinds = {t.name: t for t in info.tensors}
    backward = [s for s in info.steps if s.kind == "backward"]
    read = {name for s in backward for name in s.reads if not name.startswith(GRADIENT)}
    whole = sum(s.seconds for s in info.steps)
    ends = [*info.cuts, info.nodes]
    result = []
    for index, (begin, end) in enumerate(zip([0, *info.cuts], ends, strict=True)):
        own = [s for s in info.steps if s.segment == index]
        twice = {s.kind for s in own} == {"forward", "backward"}
        kept = [kinds[n] for s in own if s.kind == "forward" for n in s.writes if n in kinds and n in read]
        result.append(
            Segment(
                index + 1,
                end - begin,
                any(s.kind == "backward" for s in own),
                twice,
                tuple(dict.fromkeys(_stands_for(t, kinds) for t in kept)),
                sum(bytes_of(t.dtype, t.shape) for t in kept),
                any(t.name != _stands_for(t, kinds) for t in kept),
                max((s.workspace for s in own), default=0),
                sum(s.seconds for s in own) / whole if whole else 0.0,
            )
        )  # fmt: skip
    return result


def _stands_for(tensor: Tensor, kinds: dict[str, Tensor]) -> str:
    """The tensor whose coded form this is, or itself."""
    for ending in STORED:
        name = tensor.name.removesuffix(ending)
        if name != tensor.name and all(name + other in kinds for other in STORED):
            return name
    return tensor.name


def figures(info: Description) -> dict[str, Any]:
    """Everything of a plan that can be written as JSON, sizes in bytes and times in seconds."""
    trained = set(info.trainable)
    return {
        "model": info.source, "loss": info.loss, "loss_options": info.loss_options, "output": info.output,
        "batch": info.batch, "micro_batch": info.micro_batch, "segments": info.segments,
        "recompute_ratio": info.recompute_ratio, "threads": info.threads,
        "optimizer": info.optimizer, "optimizer_state": info.optimizer_state, "stored_tensors": info.checkpoints,
        "hold_gradients": info.hold_gradients, "gradient_sums": info.gradient_sums,
        "memory_limit": info.memory_limit, "peak_bytes": info.peak_bytes, "baseline_bytes": info.baseline_bytes,
        "footprint": msgspec.to_builtins(info.footprint), "measured": info.measured, "step_seconds": info.seconds,
        "weights": sum(map(_count, info.weights)),
        "trained_weights": sum(_count(t) for t in info.weights if t.name in trained),
        "trained": list(info.trainable), "adapters": [a.weight for a in info.adapters],
        "integer_weights": [q.weight for q in info.quantized],
        "inputs": {t.name: [t.dtype, list(t.shape)] for t in info.inputs},
        "targets": {t.name: [t.dtype, list(t.shape)] for t in info.targets},
        "segment_list": [asdict(s) for s in segments(info)],
        "sessions": [_session(s) for s in info.steps],
    }  # fmt: skip


def _session(step: StepInfo) -> dict[str, Any]:
    return {
        "kind": step.kind, "segment": step.segment + 1, "operators": step.operators, "inside_bytes": step.workspace,
        "seconds": step.seconds, "reads": list(step.reads), "writes": list(step.writes),
    }  # fmt: skip


def text(info: Description, style: Style = str) -> str:
    """The tables. `style` is applied to headings and names of facts (to make them bold or dim)."""
    parts = [_facts(info, style), _memory(info, style), _segments(info, style)]
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts)


def _facts(info: Description, style: Style) -> list[str]:
    trained = [t for t in info.weights if t.name in set(info.trainable)]
    numbers, moved = sum(map(_count, info.weights)), sum(map(_count, trained))
    calls = -(-info.batch // info.micro_batch)
    limit = "" if info.memory_limit is None else f" of {format_size(info.memory_limit)} allowed"
    how = ", measured in a trial run" if info.measured else ", computed"
    pairs = [
        ("model", clean(info.source)),
        ("loss", info.loss + (f" of output {clean(info.output)}" if info.output else "")),
        ("batch", f"{info.batch}" + (f", {info.micro_batch} at a time in {calls} micro-batches" if calls > 1 else "")),
        ("segments", _cut(info)),
        ("stored", _stored(info)),
        ("gradients", f"added up in {info.gradient_sums}" if info.footprint.gradients else ""),
        ("optimizer", f"{info.optimizer}, its state in {info.optimizer_state}"),
        ("trained", f"{moved:,} of {numbers:,} weights, {len(trained)} of {len(info.weights)} tensors"),
    ]
    if len(trained) < len(info.weights):
        pairs.append(("", _listed([t.name for t in trained], _NAMES)))
    if info.adapters:
        pairs.append(("adapters", f"of rank {info.adapters[0].rank} beside {len(info.adapters)} weights"))
    if info.quantized:
        pairs.append(("integers", f"{len(info.quantized)} weights are trained as the integers they are"))
    pairs += [
        ("peak memory", f"{format_size(info.peak_bytes)}{limit}{how}"),
        ("step", f"{_duration(info.seconds)}{', measured' if info.measured else ' or so; not measured here'}"),
    ]
    return [f"{style(name) + ' ' * (13 - len(name))}{value}" for name, value in pairs if value]


def _stored(info: Description) -> str:
    if info.segments == 1:
        return ""
    return "tensors between segments, in " + ("a byte per number" if info.checkpoints == "int8" else info.checkpoints)


def _cut(info: Description) -> str:
    if info.segments == 1:
        return "1: nothing runs twice"
    return f"{info.segments}: {info.recompute_ratio:.0%} of the forward pass runs twice"


def _memory(info: Description, style: Style) -> list[str]:
    rows = info.footprint.rows()
    total = max(info.footprint.total, 1)
    lines = [style(f"{'memory':<30}{'MiB':>8}")]
    lines += [f"{what:<30}{_mebi(count):>8}  {'▇' * round(_BAR * max(count, 0) / total)}" for what, count in rows]
    lines.append(f"{'at most at once':<30}{_mebi(info.footprint.total):>8}")
    if info.memory_limit is not None:
        lines.append(f"{'limit':<30}{_mebi(info.memory_limit):>8}")
    return lines


def _segments(info: Description, style: Style) -> list[str]:
    found = segments(info)
    room = WIDTH - 50
    head = f"{'segment':<9}{'operators':<11}{'stored at its end':<{room}}{'MiB':>7}  {'inside MiB':>10}  {'time':>5}"
    lines = [style(head)]
    for s in found:
        stored = _listed([*s.stored], room - 2 - 6 * s.in_8_bits) + (" 8 bit" if s.in_8_bits else "")
        size = _mebi(s.stored_bytes) if s.stored else "–"
        runs = f"{s.operators}" + (" ×2" if s.recomputed else "" if s.differentiated else " ×1 *")
        lines.append(
            f"{s.number:<9}{runs:<11}{stored if s.stored else '–':<{room}}{size:>7}  "
            f"{_mebi(s.inside_bytes):>10}  {s.time:>5.0%}"
        )
    notes = []
    if any(s.recomputed for s in found):
        notes.append("×2: runs again in the backward pass, from what the segments before it stored")
    if any(not s.differentiated for s in found):
        notes.append("*: nothing in it or before it is trained, so no backward pass reaches it")
    return [*lines, "", *notes] if notes else lines


def clean(name: str) -> str:
    r"""A name from a model without what could steer a terminal.

    >>> clean("a\x1b[31mb")
    'a�[31mb'
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def _listed(names: list[str], width: int) -> str:
    """As many names as fit, and how many more there are.

    >>> _listed(["first", "second", "third"], 19), _listed(["very/long/name/of/a/tensor"], 12)
    ('first and 2 more', 'very/…tensor')
    """
    for shown in range(len(names), 0, -1):
        rest = len(names) - shown
        line = ", ".join(clean(n) for n in names[:shown]) + (f" and {rest} more" if rest else "")
        if len(line) <= width:
            return line
    if not names:
        return ""
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    keep = width - len(more) - 1
    name = clean(names[0])
    if len(name) > keep + 1:
        tail = keep - keep // 2
        name = f"{name[: keep // 2]}…{name[-tail:]}"
    return name + more


def _mebi(count: int) -> str:
    return f"{count / 2**20:.1f}" if abs(count) >= 2**20 // 20 or count == 0 else f"{count / 2**20:.2g}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _count(tensor: Tensor) -> int:
    return math.prod(tensor.shape)
