"""Decides when the device trains, and runs planner and trainer: at most one, never in the way of predictions.

Training is due when enough new labelled samples came, or the base changed, and enough samples are stored. A run that
fails is tried again with backoff; one that cannot succeed with this model and these settings (an operator without a
gradient, a limit that is too small) turns learning off for exactly that combination, and is reported once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sanderling import __version__
from sanderling.host.files import write_durably

from . import children
from .backoff import Backoff
from .children import Failure, Running
from .config import Settings
from .errors import StorageError
from .jobs import PlanDone, PlanJob, TrainDone, TrainJob
from .layout import Layout
from .ledger import Ledger
from .limits import LIMITS
from .slots import Installed
from .store import Counts, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the learner asks and tells the agent."""

    current: Callable[[], Installed | None]
    done: Callable[[TrainDone], None]
    failed: Callable[[str], None]


def is_due(counts: Counts, trained_seen: int, *, base_is_new: bool, new_labels: int, min_samples: int) -> bool:
    """Whether it is time to train."""
    if counts.stored == 0 or counts.stored + counts.held_out < min_samples:
        return False
    return base_is_new or counts.seen - trained_seen >= new_labels


class Learner:
    """The schedule of training runs."""

    def __init__(self, settings: Settings, layout: Layout, ledger: Ledger, store: Store, hooks: Hooks) -> None:
        self._settings, self._layout, self._ledger, self._store, self._hooks = settings, layout, ledger, store, hooks
        self._wake, self._hurry = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._run: asyncio.Task[TrainDone | Failure] | None = None
        self._backoff = Backoff(2.0, LIMITS.longest_backoff)
        self._told = ""
        self.running = Running()

    def start(self) -> None:
        """Begin to watch."""
        if self._settings.learn.enabled:
            self._task = asyncio.get_running_loop().create_task(self._watch(), name="learner")
            self._wake.set()

    def poke(self) -> None:
        """Something changed: samples came, or the base."""
        self._wake.set()

    def base_changed(self) -> None:
        """What is being learned now is for a base that is no longer in use: end it and begin anew."""
        if self._run is not None:
            self._run.cancel()
        self._hurry.set()
        self._wake.set()

    async def stop(self) -> None:
        """End a run under way (nothing is lost: it is all or nothing) and stop watching."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def off_reason(self) -> str:
        """Why learning is off for the present model and settings, "" when it is not."""
        current = self._hooks.current()
        if current is None or self._ledger.text("training_off") != self._key(current):
            return ""
        return self._ledger.text("training_off_reason")

    def _key(self, current: Installed) -> str:
        learn = self._settings.learn
        return f"{current.digest} {learn.memory_limit_bytes} {learn.batch} {learn.optimizer} {__version__}"

    async def _watch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            with contextlib.suppress(StorageError):
                current = self._hooks.current()
                while current is not None and self._due(current):
                    await self._train(current)
                    current = self._hooks.current()

    def _due(self, current: Installed) -> bool:
        learn = self._settings.learn
        return not self.off_reason() and is_due(
            self._store.counts(),
            self._ledger.number("trained_seen"),
            base_is_new=self._ledger.text("trained_base") != current.digest,
            new_labels=learn.new_labels,
            min_samples=learn.min_samples,
        )

    async def _train(self, current: Installed) -> None:
        self._run = asyncio.get_running_loop().create_task(self._plan_and_train(current), name="training")
        try:
            result = await self._run
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                self._run.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._run
                raise
            return  # the base changed: look again
        finally:
            self._run = None
        if isinstance(result, TrainDone):
            self._backoff.reset()
            self._told = ""
            self._hooks.done(result)
            return
        if result.permanent:
            self._ledger.put("training_off_reason", result.reason)
            self._ledger.put("training_off", self._key(current))
            self._hooks.failed(f"learning is off for version {current.version}: {result.reason}")
            return
        if result.reason != self._told:
            self._told = result.reason
            self._hooks.failed(result.reason)
        wait = self._backoff.next()
        log.info("training is tried again in %.0f s", wait)
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._hurry.wait()  # a new base is a new chance

    async def _plan_and_train(self, current: Installed) -> TrainDone | Failure:
        learn = self._settings.learn
        planned = await self._plan(current)
        if isinstance(planned, Failure):
            return planned
        job = TrainJob(
            state_directory=str(self._layout.root),
            model_name=self._settings.model.name,
            base_version=current.version,
            base_digest=current.digest,
            model=str(current.model),
            anchor=str(current.anchor or ""),
            plan=planned.plan,
            weights=planned.weights,
            memory_limit=learn.memory_limit_bytes,
            store_bytes=learn.store_limit_bytes,
            held_out=learn.held_out,
            epochs=learn.epochs,
            batch=learn.batch,
            learning_rate=learn.learning_rate,
            seed=learn.seed,
            anchor_drop=learn.anchor_drop,
            quality=self._settings.sync.quality,
        )
        result = await children.run("trainer", job, TrainDone, LIMITS.training_seconds, self.running)
        if isinstance(result, Failure):  # whatever it was, the next attempt looks at the plan anew
            self._plan_note(current).unlink(missing_ok=True)
        return result

    def _plan_note(self, current: Installed) -> Path:
        key = hashlib.sha256(self._key(current).encode()).hexdigest()[:32]
        return self._layout.plans / f"{key}.json"

    async def _plan(self, current: Installed) -> PlanDone | Failure:
        """The plan for a release: from the note of an earlier planner, so that most runs start no planner at all."""
        note = self._plan_note(current)
        with contextlib.suppress(OSError, msgspec.DecodeError):
            known = msgspec.json.decode(note.read_bytes(), type=PlanDone)
            for path in (note, Path(known.plan), Path(known.weights)):
                os.utime(path)  # in use: not swept away; raises when it is gone, and then planning is due
            return known
        learn = self._settings.learn
        job = PlanJob(
            str(current.model), str(self._layout.plans), learn.memory_limit_bytes, learn.batch, learn.optimizer
        )
        planned = await children.run("planner", job, PlanDone, LIMITS.planning_seconds)
        if isinstance(planned, PlanDone):
            with contextlib.suppress(OSError):  # only a short cut
                write_durably(note, msgspec.json.encode(planned))
        return planned
