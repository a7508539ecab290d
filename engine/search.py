"""The search for a plan: the fastest way to train that fits a number of bytes.

Strategy. Exact ways come before those that hold numbers in fewer bits. Among ways of one precision, ordered by
predicted time, the first that fits is taken: by a rough sum, then by the exact one with its steps written, then by a
trial run in a fresh process under the limit as a hard one. Each of these corrects the one before it, so few ways are
written and fewer tried. A limit that nothing meets is answered with one that was tried and does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgspec

from .drafts import Drafts, Level, Way
from .errors import ExecutionError, MemoryLimitError, ModelError
from .footprint import Footprint
from .memory import format_size
from .plan import TrainingPlan
from .trial import Trial, try_plan

#: The trial takes a few steps, under a limit that is smaller by this: longer runs were seen to differ by half a MiB.
MARGIN_BYTES = 2**20
#: Steps by which a limit is raised until a trial run under it passes.
_RAISE_BYTES, _RAISES = 2 * 2**20, 8
#: Peaks of the same plan differ from run to run by less than this; it is added to a limit that is said to do.
_SPREAD = 2**19
_WRITTEN, _SMALL, _TRIED = 12, 4, 4  # ways of a level that are written at most, then the smallest, and those tried
_DOUBT = 2 * 2**20  # by which the rough sum may be too large


class _Attempt:
    """What was learned so far of one model under one limit."""

    def __init__(self, drafts: Drafts, limit: int, trial: bool) -> None:
        self.drafts, self.limit, self.trial = drafts, limit, trial
        self.offset = 0  # bytes that trials took beyond what was computed
        self._gaps: dict[tuple[int, Level], int] = {}  # and what was computed beyond the rough sum

    def rough(self, way: Way) -> int:
        """Bytes that a way takes, as far as is known."""
        return self.drafts.rough(way) + self._gaps.get((way.micro_batch, way.level), 0) + self.offset

    def exact(self, way: Way) -> Footprint:
        """The footprint of a way, written."""
        footprint = self.drafts.footprint(way)
        self._gaps[way.micro_batch, way.level] = footprint.total - self.drafts.rough(way)
        return footprint

    def first_fitting(self, ways: Sequence[Way]) -> TrainingPlan | None:
        """The plan of the fastest way that fits, or None."""
        untried = list(ways)
        written = small = tried = 0
        while untried and tried < _TRIED:
            way = next((w for w in untried if self.rough(w) <= self.limit), None) if written < _WRITTEN else None
            if way is None:  # the last looks are at the smallest: better slow than with less precision
                way = min(untried, key=self.rough)
                small += 1
                if small > _SMALL or self.rough(way) > self.limit + _DOUBT:
                    return None
            footprint = self.exact(way)
            written += 1
            if footprint.total + self.offset <= self.limit:
                if not self.trial:
                    return self.drafts.plan(way, footprint, self.limit)
                tried += 1
                plan = self.tried(way, footprint)
                if plan is not None:
                    return plan
            untried.remove(way)
        return None

    def tried(self, way: Way, footprint: Footprint) -> TrainingPlan | None:
        """The plan of a way, if a trial run keeps to the limit."""
        plan = self.drafts.plan(way, footprint, self.limit)
        try:
            trial = try_plan(plan, self.limit - self.drafts.reserve - MARGIN_BYTES)
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


class Search:
    """The search for plans of one model within one limit; what trials teach serves the next search of it as well."""

    def __init__(
        self,
        levels: Sequence[Level],
        micro_batches: Sequence[int],
        segments: int | None,
        limit: int | None,
        trial: bool,
    ) -> None:
        self.levels, self.micro_batches, self.segments = levels, micro_batches, segments
        self.limit, self.trial = limit, trial
        self._offset = 0

    def find(self, drafts: Drafts) -> TrainingPlan | None:
        """The plan for the fastest way within the limit; None where there is none. Raises ModelError."""
        if self.limit is None:
            return self._unlimited(drafts)
        attempt = self._attempt(drafts, self.limit)
        for _, levels in groupby(self.levels, key=lambda level: (level.state, level.checkpoints, level.sums)):
            plan = attempt.first_fitting(self._ways(drafts, [*levels]))
            self._offset = attempt.offset
            if plan is not None:
                return plan
        return None

    def choose(self, drafts: Drafts) -> TrainingPlan:
        """As `find`; raises MemoryLimitError where there is none."""
        plan = self.find(drafts)
        if plan is not None:
            return plan
        assert self.limit is not None
        ways = self._ways(drafts, self.levels)
        if not ways:
            raise _uncut(drafts)
        return self._smallest(self._attempt(drafts, self.limit), ways)

    def _smallest(self, attempt: _Attempt, ways: Sequence[Way]) -> TrainingPlan:
        """The smallest plan, should it keep to the limit after all; else the error that says which limit it needs."""
        drafts = attempt.drafts
        seen: set[Way] = set()
        while (way := min(ways, key=attempt.rough)) not in seen and len(seen) < _WRITTEN:
            seen.add(way)
            footprint = attempt.exact(way)  # each one written says more about those like it
        smallest = footprint.total
        if attempt.trial:
            smallest, plan = _tried_smallest(drafts, way, footprint)
            if smallest <= attempt.limit:
                plan.info = msgspec.structs.replace(plan.info, memory_limit=attempt.limit)
                return plan
            smallest += _SPREAD
        elif smallest <= attempt.limit:
            return drafts.plan(way, footprint, attempt.limit)
        fixed = footprint.baseline + footprint.reserve
        raise MemoryLimitError(
            f"{drafts.name}: training needs {format_size(smallest)} at least, the limit is "
            f"{format_size(attempt.limit)} ({format_size(fixed)} of it is the process before it trains); raise the "
            "limit, use a smaller batch, train fewer weights (`trainable`), or an optimizer with less state (sgd)",
            smallest,
        )

    def _attempt(self, drafts: Drafts, limit: int) -> _Attempt:
        attempt = _Attempt(drafts, limit, self.trial)
        attempt.offset = self._offset
        return attempt

    def _ways(self, drafts: Drafts, levels: Sequence[Level]) -> list[Way]:
        """All ways of some levels, the fastest first."""
        asked = self.levels[0].sums  # other sums change nothing where there are none
        ways = [
            way
            for level in levels
            for way in drafts.ways(self.micro_batches, self.segments, level)
            if level.sums == asked or drafts.sums(way.micro_batch)
        ]
        return sorted(ways, key=lambda w: w.seconds)

    def _unlimited(self, drafts: Drafts) -> TrainingPlan:
        ways = drafts.ways(self.micro_batches, self.segments, self.levels[0])
        if not ways:
            raise _uncut(drafts)
        plan = drafts.plan(ways[0], drafts.footprint(ways[0]), None)
        return measured_plan(plan, try_plan(plan), drafts.reserve) if self.trial else plan


def _uncut(drafts: Drafts) -> ModelError:
    return ModelError(f"{drafts.name}: cannot be cut as asked; leave `segments` to the planner")


def _tried_smallest(drafts: Drafts, way: Way, footprint: Footprint) -> tuple[int, TrainingPlan]:
    """The smallest limit, in small steps, under which a trial run of a way passes; and the plan with its figures."""
    plan = drafts.plan(way, footprint, None)
    limit = try_plan(plan).peak + drafts.reserve + MARGIN_BYTES
    for _ in range(_RAISES):
        try:
            trial = try_plan(plan, limit - drafts.reserve - MARGIN_BYTES)
        except MemoryLimitError:
            limit += _RAISE_BYTES
            continue
        needed = trial.peak + drafts.reserve + MARGIN_BYTES
        if needed <= limit:
            return limit, measured_plan(plan, trial, drafts.reserve)
        limit = needed
    raise ExecutionError(f"{drafts.name}: no trial run of its smallest plan keeps to a limit")
