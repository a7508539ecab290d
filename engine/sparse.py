"""Which weights to train when not all fit: those that contribute most per byte.

Strategy. A weight's contribution is how much a first step would lower the loss by moving it: the sum of its squared
gradient for SGD, of its absolute gradient for Adam (whose step is the same for every weight), on data of the caller's
or on noise. Its cost is its gradient and optimizer state; what is common to many weights, keeping activations back to
the earliest of them, is the cost of a depth. So for a range of depths, what the limit leaves after that depth's
activations is filled with the weights of most contribution per byte, and the depth that gathers most is taken
(sparse update after Lin et al., "On-Device Training Under 256KB Memory", 2022, who measure contributions offline).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .drafts import Drafts, Level, Way
from .graph import Array
from .loss import LABELS, SAMPLE_WEIGHT
from .optimizers import state_bytes
from .plan import TrainingPlan
from .search import Search

#: Shares of the layers that are trained, counted from the end.
_DEPTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
#: What is left for weights is lowered by this factor when the plan does not fit after all, so many times.
_SHRINK, _SHRINKS = 0.75, 6


@dataclass(frozen=True, slots=True)
class _Choice:
    """Weights to train, and the share of all contributions that is theirs."""

    names: tuple[str, ...]
    share: float


def choose_sparse(drafts: Drafts, search: Search, samples: tuple[Any, Any] | None) -> TrainingPlan:
    """The plan that trains what contributes most within the search's limit; everything, where that fits.

    Raises MemoryLimitError, ModelError, DataError.
    """
    plan = search.find(drafts)
    if plan is not None:
        return plan
    assert search.limit is not None
    scores = contributions(drafts, samples)
    least: Sequence[str] = drafts.trainable
    for choice in _choices(drafts, search, search.limit, scores):
        plan = search.find(drafts.only(choice.names))
        if plan is not None:
            return plan
        least = min(least, choice.names, key=len)
    return search.choose(drafts.only(least))


def contributions(drafts: Drafts, samples: tuple[Any, Any] | None) -> dict[str, float]:
    """{trained weight: how much moving it lowers the loss, to first order}, on some samples or on noise."""
    from .trainer import Trainer

    size = drafts.micro_batches()[0]
    way = drafts.ways([size], 1, Level())[0]
    plan = drafts.plan(way, drafts.footprint(way), None)
    inputs, targets = _noise(plan, size) if samples is None else _first(samples, size)
    _, gradients = Trainer(plan).gradients(inputs, targets)
    power = 2 if drafts.optimizer == "sgd" else 1
    return {n: float(np.sum(np.abs(g.astype(np.float64)) ** power)) for n, g in gradients.items()}


def _noise(plan: TrainingPlan, size: int) -> tuple[dict[str, Array], dict[str, Array]]:
    rng = np.random.default_rng(0)

    def draw(dtype: str, shape: tuple[int, ...], below: int) -> Array:
        if dtype.startswith(("int", "uint", "bool")):
            return rng.integers(0, max(below, 1), (size, *shape[1:])).astype(dtype)
        return rng.standard_normal((size, *shape[1:])).astype(dtype)

    info = plan.info
    inputs = {t.name: draw(t.dtype, t.shape, 2) for t in info.inputs}
    targets = {
        t.name.rpartition(".")[2]: draw(t.dtype, t.shape, info.classes if t.name == LABELS else 2)
        for t in info.targets if t.name != SAMPLE_WEIGHT
    }  # fmt: skip
    return inputs, targets


def _first(samples: tuple[Any, Any], size: int) -> tuple[Any, Any]:
    """The first samples of (inputs, targets), each an array or {name: array}."""

    def cut(value: Any) -> Any:
        return {n: np.asarray(a)[:size] for n, a in value.items()} if isinstance(value, Mapping) else value[:size]

    return cut(samples[0]), cut(samples[1])


def _choices(drafts: Drafts, search: Search, limit: int, scores: Mapping[str, float]) -> Iterator[_Choice]:
    """What to try, the most promising first; each again with less, should it not fit."""
    level, micro_batches = search.levels[-1], search.micro_batches
    graph, _ = drafts.graph(micro_batches[-1])
    first = {w: next(i for i, n in enumerate(graph.nodes) if w in n.inputs) for w in drafts.trainable}
    order = sorted(drafts.trainable, key=lambda w: first[w])
    cost = {
        w: graph.types[w].gradient.nbytes + state_bytes(drafts.optimizer, level.state, [graph.types[w].shape])
        for w in order
    }  # fmt: skip
    everything = sum(scores.values()) or 1.0
    found: list[tuple[float, int, list[str]]] = []
    for depth in _DEPTHS:
        deep = order[len(order) - max(1, round(depth * len(order))) :]
        # the cheapest of the earliest weights carries the cost of reaching them
        reached = min(deep[: max(2, len(deep) // 8)], key=lambda w: cost[w])
        room = limit - _least(drafts.only({reached}), level, micro_batches) + cost[reached]
        if room > 0:
            chosen = _fill(deep, cost, scores, room)
            found.append((sum(scores.get(w, 0.0) for w in chosen) / everything, room, deep))
    for _, room, deep in sorted(found, key=lambda f: -f[0]):
        for attempt in range(_SHRINKS):
            chosen = _fill(deep, cost, scores, room * _SHRINK**attempt)
            if chosen:
                yield _Choice(tuple(chosen), sum(scores.get(w, 0.0) for w in chosen) / everything)


def _least(drafts: Drafts, level: Level, micro_batches: Sequence[int]) -> int:
    """Bytes of the smallest way, roughly."""
    ways: list[Way] = []
    for size in {micro_batches[0], micro_batches[-1]}:
        ways += drafts.ways([size], None, level)
    return min(drafts.rough(way) for way in ways)


def _fill(names: Collection[str], cost: Mapping[str, int], scores: Mapping[str, float], room: float) -> list[str]:
    """Weights of most contribution per byte that fit."""
    chosen: list[str] = []
    for name in sorted(names, key=lambda w: -scores.get(w, 0.0) / max(cost[w], 1)):
        if cost[name] <= room and scores.get(name, 0.0) > 0:
            chosen.append(name)
            room -= cost[name]
    return chosen
