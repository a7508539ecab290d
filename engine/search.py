"""The search for a plan: the fastest way to train that fits a number of bytes.

Strategy. Exact ways come before those that hold numbers in fewer bits. Among ways of one precision, ordered by
predicted time, the first that fits is taken: by a rough sum, then by the exact one with its steps written, then by a
trial run in a fresh process under the limit as a hard one. Each of these corrects the one before it, so few ways are
written and fewer tried. A limit that nothing meets is answered with one that was tried and does.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .drafts import Drafts, Level, Way
from .errors import MemoryLimitError, ModelError
from .footprint import Footprint
from .memory import format_size
from .plan import TrainingPlan
from .trial import Trial, try_plan

#: The trial takes a few steps; what differs from a long run (allocator, order of pages) was measured up to 1.2 MiB.
MARGIN_BYTES = 2 * 2**20
#: Steps by which a limit is raised until a trial run under it passes.
_RAISE_BYTES, _RAISES = 2 * 2**20, 8
#: What arenas take of what the chain of cuts says, before one was computed.
_RATIO = 0.85
_WRITTEN = 16  # ways of a level whose steps are written at most


class _Attempt:
    """What was learned so far of one model under one limit."""

    def __init__(self, drafts: Drafts, limit: int, trial: bool) -> None:
        self.drafts, self.limit, self.trial = drafts, limit, trial
        self.offset = 0  # bytes that trials took beyond what was computed
        self.ratios: dict[tuple[int, str], float] = {}

    def ratio(self, way: Way) -> float:
        return self.ratios.get((way.micro_batch, way.level.checkpoints), _RATIO)

    def rough(self, way: Way) -> int:
        return self.drafts.rough(way, self.ratio(way)) + self.offset

    def exact(self, way: Way) -> Footprint:
        footprint = self.drafts.footprint(way)
        steps = self.drafts.steps(way.micro_batch, way.cutting.cuts, way.level.checkpoints)
        arena = max((s.workspace for s in steps), default=0)
        self.ratios[way.micro_batch, way.level.checkpoints] = arena / max(way.cutting.arena, 1)
        return footprint

    def first_fitting(self, ways: Sequence[Way]) -> TrainingPlan | None:
        """The plan of the fastest way that fits, or None."""
        untried = list(ways)
        for _ in range(_WRITTEN):
            way = next((w for w in untried if self.rough(w) <= self.limit), None)
            if way is None:
                return None
            footprint = self.exact(way)
            if footprint.total + self.offset <= self.limit:
                plan = self.tried(way, footprint) if self.trial else self.drafts.plan(way, footprint, self.limit)
                if plan is not None:
                    return plan
            taken = self.rough(way)
            untried = [w for w in untried if w is not way and (self.rough(w) < taken or w.seconds < way.seconds)]
        return None

    def tried(self, way: Way, footprint: Footprint) -> TrainingPlan | None:
        """The plan of a way, if a trial run keeps to the limit."""
        plan = self.drafts.plan(way, footprint, self.limit)
        try:
            trial = try_plan(plan, self.limit - self.drafts.reserve)
        except MemoryLimitError:
            self.offset = max(self.offset, self.limit - footprint.total) + MARGIN_BYTES
            return None
        peak = trial.peak + self.drafts.reserve
        self.offset = peak + MARGIN_BYTES - footprint.total
        if peak + MARGIN_BYTES > self.limit:
            return None
        return measured_plan(plan, trial, self.drafts.reserve)


def measured_plan(plan: TrainingPlan, trial: Trial, reserve: int) -> TrainingPlan:
    """The plan with the figures of its trial run."""
    computed = plan.info.footprint
    correction = computed.correction + trial.peak + reserve + MARGIN_BYTES - computed.total
    footprint = msgspec.structs.replace(computed, correction=correction)
    plan.info = msgspec.structs.replace(plan.info, footprint=footprint, seconds=trial.seconds, measured=True)
    return plan


def choose(
    drafts: Drafts, levels: Sequence[Level], micro_batches: Sequence[int], segments: int | None, limit: int | None,
    trial: bool,
) -> TrainingPlan:  # fmt: skip
    """The plan for the fastest way within a limit. Raises MemoryLimitError, ModelError."""
    if limit is None:
        ways = drafts.ways(micro_batches, segments, levels[0])
        if not ways:
            raise _uncut(drafts)
        plan = drafts.plan(ways[0], drafts.footprint(ways[0]), None)
        return measured_plan(plan, try_plan(plan), drafts.reserve) if trial else plan
    attempt = _Attempt(drafts, limit, trial)
    every: list[Way] = []
    for level in levels:
        ways = drafts.ways(micro_batches, segments, level)
        fitting = attempt.first_fitting(ways)
        if fitting is not None:
            return fitting
        every += ways
    if not every:
        raise _uncut(drafts)
    raise _too_small(attempt, every)


def _uncut(drafts: Drafts) -> ModelError:
    return ModelError(f"{drafts.name}: cannot be cut as asked; leave `segments` to the planner")


def _too_small(attempt: _Attempt, ways: Sequence[Way]) -> MemoryLimitError:
    """The error that names the smallest limit that would do."""
    drafts = attempt.drafts
    best: tuple[int, Way, Footprint] | None = None
    for way in sorted(ways, key=attempt.rough)[:_RAISES]:
        footprint = attempt.exact(way)
        if best is None or footprint.total < best[0]:
            best = (footprint.total, way, footprint)
    assert best is not None
    smallest, way, footprint = best
    if attempt.trial:
        smallest = _tried_smallest(drafts, way, footprint)
    fixed = footprint.baseline + footprint.reserve
    return MemoryLimitError(
        f"{drafts.name}: training needs {format_size(smallest)} at least, the limit is {format_size(attempt.limit)} "
        f"({format_size(fixed)} of it is the process before it trains); raise the limit, use a smaller batch, train "
        "fewer weights (`trainable`) or choose an optimizer with less state (sgd)",
        smallest,
    )


def _tried_smallest(drafts: Drafts, way: Way, footprint: Footprint) -> int:
    """The smallest limit, in small steps, under which a trial run of a way passes."""
    plan = drafts.plan(way, footprint, None)
    limit = try_plan(plan).peak + drafts.reserve + MARGIN_BYTES
    for _ in range(_RAISES):
        try:
            peak = try_plan(plan, limit - drafts.reserve).peak + drafts.reserve
        except MemoryLimitError:
            limit += _RAISE_BYTES
            continue
        if peak + MARGIN_BYTES <= limit:
            break
        limit = peak + MARGIN_BYTES
    return limit
