"""Carries out what the update protocol (`update.py`) decides: children, disk and subscriptions.

Events are handled one after the other by one task, so the protocol needs no locks. What was half done when the process
was killed is found on the disk at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sanderling.codec.topics import Topic, build

from . import children, update
from .children import Failure
from .config import Settings
from .errors import StorageError, StorageFullError
from .jobs import HealthDone, HealthJob, VerifyDone, VerifyJob
from .ledger import Ledger
from .limits import LIMITS
from .outbox import EventKind
from .slots import DamagedFileError, Installed, Slots

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the updater asks of the agent."""

    subscribe: Callable[[list[str]], None]
    unsubscribe: Callable[[list[str]], None]
    report: Callable[[EventKind, int, str], None]
    switched: Callable[[Installed], None]


class Updater:
    """One model's updates."""

    def __init__(self, settings: Settings, ledger: Ledger, slots: Slots, hooks: Hooks) -> None:
        self._settings, self._ledger, self._slots, self._hooks = settings, ledger, slots, hooks
        current = slots.current()
        self.protocol = update.Update(
            settings.device.fleet,
            settings.model.name,
            current.version if current else 0,
            current.digest if current else "",
            ledger.refused(),
        )
        self._events: asyncio.Queue[update.Event] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._candidate: Installed | None = None
        self._fed = 0.0
        self._failed_checks = 0

    def start(self) -> None:
        """Begin to handle events."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(), name="updater"), loop.create_task(self._tick(), name="ticks")]

    async def stop(self) -> None:
        """Stop; what is on the disk is used at the next start."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def feed(self, event: update.Event) -> None:
        """An event from outside."""
        self._fed = asyncio.get_running_loop().time()
        self._events.put_nowait(event)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LIMITS.chunk_patience / 2)
            if loop.time() - self._fed >= LIMITS.chunk_patience:
                self.feed(update.Tick())

    async def _run(self) -> None:
        while True:
            event = await self._events.get()
            try:
                actions = self.protocol.handle(event)
            except update.IllegalEventError:
                log.exception("update: an event that does not fit; ignored")
                continue
            for action in actions:
                try:
                    await self._perform(action)
                except StorageError as error:  # a tick tries again what is left undone
                    self._trouble(error)

    async def _perform(self, action: update.Action) -> None:
        match action:
            case update.Verify(envelope):
                self._events.put_nowait(await self._verify(envelope))
            case update.Stage(release, digest, envelope):
                await self._stage(action)
            case update.Ask(digests):
                self._hooks.subscribe([self._topic(digest) for digest in digests])
            case update.Leave(digests):
                self._hooks.unsubscribe([self._topic(digest) for digest in digests])
            case update.Store(digest, data):
                self._events.put_nowait(update.Stored(digest, self._store(digest, data)))
            case update.Check():
                self._events.put_nowait(await self._check())
            case update.Switch():
                await self._switch()
            case update.Refuse(release, digest, reason):
                self._ledger.refuse(digest, release.version, reason)
                self._slots.discard()
            case update.Report(kind, version, reason):
                self._hooks.report(kind, version, reason)

    def _topic(self, digest: str) -> str:
        return build(Topic(self._settings.device.fleet, "chunk", digest))

    async def _verify(self, envelope: bytes) -> update.Event:
        job = VerifyJob(envelope, self._settings.release.trusted_keys)
        done = await children.run("verifier", job, VerifyDone, LIMITS.health_seconds)
        if isinstance(done, Failure):
            log.error("the signature could not be checked, it is tried again: %s", done.reason)
            await asyncio.sleep(LIMITS.chunk_patience / 2)
            return update.Announced(envelope)
        if done.release is None:
            return update.Unverified(envelope, done.reason)
        return update.Verified(envelope, done.release, done.digest)

    async def _stage(self, action: update.Stage) -> None:
        missing = await self._until_done(lambda: self._slots.stage(action.release, action.digest, action.envelope))
        count = sum(len(target.chunks) for target in action.release.targets.values())
        log.info("release %d: %d of %d chunks to fetch", action.release.version, len(missing), count)
        self._events.put_nowait(update.Staged(missing))

    def _store(self, digest: str, data: bytes) -> bool:
        try:
            self._slots.store(digest, data)
        except StorageError as error:
            self._trouble(error)
            return False
        return True

    async def _check(self) -> update.Checked:
        try:
            candidate = self._candidate = self._slots.assemble()
        except DamagedFileError as error:
            return update.Checked(False, str(error))
        except StorageError as error:
            self._trouble(error)
            return update.Checked(False, str(error), transient=True)
        current = self._slots.current()
        job = HealthJob(
            str(candidate.model),
            str(current.model) if current else "",
            str(candidate.anchor or ""),
            self._settings.learn.anchor_drop,
        )
        done = await children.run("health", job, HealthDone, LIMITS.health_seconds)
        if isinstance(done, Failure):
            # Once may be an accident (memory was short, somebody killed it); again and again is the model.
            self._failed_checks += 1
            reason = f"the health check did not end well: {done.reason}"
            return update.Checked(False, reason, transient=self._failed_checks % LIMITS.health_attempts != 0)
        self._failed_checks = 0
        return update.Checked(done.healthy, done.reason)

    async def _switch(self) -> None:
        candidate = self._candidate
        assert candidate is not None
        await self._until_done(lambda: self._slots.switch(candidate))
        self._hooks.switched(candidate)

    async def _until_done(self, step: Callable[[], T]) -> T:
        """The protocol waits for this step, so it is tried until the disk lets it."""
        while True:
            try:
                return step()
            except StorageError as error:
                self._trouble(error)
                await asyncio.sleep(LIMITS.chunk_patience)

    def _trouble(self, error: StorageError) -> None:
        if isinstance(error, StorageFullError):
            self._hooks.report("storage_full", self.protocol.progress()[0], str(error))
        else:
            log.error("update: %s", error)
