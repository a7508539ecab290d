"""The supervisor: puts the parts together, and keeps them going.

Imports neither numpy nor a runtime: what it does all day is wait. Every part reports here by a callback, and here it is
decided what a change means for the others (a new base ends the training for the old one, a crash withdraws a model).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path

import msgspec

from sanderling.codec.messages import Telemetry
from sanderling.engine.memory import trim

from . import control, learning, pipe, sync, telemetry, updating
from .choice import Choice
from .config import Settings
from .errors import ControlError, SettingsError, StorageError
from .jobs import TrainDone
from .keeper import Keeper, listen
from .layout import Layout
from .ledger import Ledger
from .notify import notify, watchdog_seconds
from .outbox import EventKind
from .slots import Installed
from .store import Store

log = logging.getLogger(__name__)
#: Crashes of the worker in a row after which the model that it serves is no longer trusted.
CRASHES = 3


class Agent:
    """One running agent."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._settings = settings
        learn = settings.learn
        self._ledger = Ledger(layout.database)
        self._store = Store(layout.samples, capacity=learn.store_limit_bytes, held_out=learn.held_out)
        self._choice = Choice(settings, layout, self._ledger)
        self._boot = self._count_boot()
        self._stopping = asyncio.Event()
        self._storage_full = False
        start = pipe.Start(
            model=settings.model.name,
            samples=str(layout.samples),
            store_bytes=learn.store_limit_bytes,
            held_out=learn.held_out,
            idle_seconds=settings.serve.idle_seconds,
        )
        self._keeper = Keeper(listen(settings.serve), start, self._worker_said, self._worker_crashed)
        self._link = sync.Link(
            settings,
            self._boot,
            self._choice.outbox,
            sync.Hooks(self._telemetry, self._models, lambda event: self._updater.feed(event)),
        )
        self._updater = updating.Updater(
            settings,
            self._ledger,
            self._choice.slots,
            updating.Hooks(self._link.subscribe, self._link.unsubscribe, self._report, self._switched),
        )
        self._learner = learning.Learner(
            settings,
            layout,
            self._ledger,
            self._store,
            learning.Hooks(lambda: self._choice.current, self._trained, self._training_failed),
        )
        self._control = control.ControlServer(layout.control, self._command)

    def _count_boot(self) -> int:
        try:
            return self._ledger.add("boot")
        except StorageError as error:  # a full disk is no reason not to predict
            log.error("%s", error)
            return self._ledger.number("boot") + 1

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        self._choice.sweep()
        self._keeper.serve(self._choice.serving())
        await self._control.start()
        self._keeper.start()
        self._updater.start()
        self._learner.start()
        await self._link.start()
        trim()
        notify("READY=1")
        log.info("ready: model %s on %s", self._settings.model.name, self._settings.serve.socket)
        watchdog = watchdog_seconds()
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(watchdog):
                    await self._stopping.wait()
            notify("WATCHDOG=1")
        notify("STOPPING=1")
        await self._stop()

    async def _stop(self) -> None:
        await self._control.stop()
        await self._learner.stop()
        await self._updater.stop()
        await self._keeper.stop()
        await self._link.stop()
        self._ledger.close()
        self._store.close()
        Path(self._settings.serve.socket).unlink(missing_ok=True)
        log.info("stopped")

    def _models(self) -> dict[str, int]:
        current = self._choice.current
        return {self._settings.model.name: current.version} if current else {}

    def _telemetry(self) -> Telemetry:
        return telemetry.report(
            self._settings,
            self._boot,
            self._choice,
            self._store,
            worker=self._keeper.pid,
            trainer=self._learner.running.pid,
        )

    def _status(self) -> bytes:
        version, missing = self._updater.protocol.progress()
        return telemetry.with_details(
            self._telemetry(),
            {
                "device": self._settings.device.name,
                "fleet": self._settings.device.fleet,
                "connected": self._link.connection.connected,
                "connection": self._link.reason,
                "update": {
                    "state": self._updater.protocol.state.value,
                    "version": version,
                    "missing_chunks": missing,
                },
                "learning": self._learner.off_reason() or self._ledger.text("verdict"),
            },
        )

    async def _command(self, command: control.Command) -> bytes:
        if command.do == "status":
            return self._status()
        done = self._go_back(by_release=command.release, reason="the operator asked for it")
        return msgspec.json.encode(done)

    def _go_back(self, *, by_release: bool, reason: str) -> str:
        if not by_release and self._choice.serving().which == "personal":
            done = self._choice.withdraw_personal(reason)
        else:
            before = self._choice.current
            done = self._choice.withdraw_release(reason)
            if before is not None and self._choice.current is not None:
                self._updater.protocol.refused.add(before.digest)
                self._updater.protocol.moved(self._choice.current.version, self._choice.current.digest)
            self._learner.base_changed()
        log.warning("%s: %s", done, reason)
        self._refresh()
        return done

    def _refresh(self) -> None:
        """After any change of models: the worker answers with the right one, and the server hears of it."""
        self._keeper.serve(self._choice.serving())
        self._link.poke()
        self._link.changed()

    def _report(self, kind: EventKind, version: int, reason: str) -> None:
        log.warning("%s: %s", kind.replace("_", " "), reason)
        if kind == "storage_full":  # once per full disk: there may be no room for more
            if self._storage_full:
                return
            self._storage_full = True
        try:
            self._choice.outbox.queue_event(kind, self._settings.model.name, version, reason)
        except StorageError as error:
            log.error("%s", error)
        self._link.poke()

    def _switched(self, slot: Installed) -> None:
        self._choice.current = slot
        self._storage_full = False
        try:
            self._choice.note_installed(slot)
        except StorageError as error:  # it is noted at the next start
            log.error("%s", error)
        log.info("version %d is installed", slot.version)
        self._learner.base_changed()
        self._refresh()
        self._tidy()

    def _tidy(self) -> None:
        if self._learner.running.pid == 0:
            with contextlib.suppress(StorageError):
                self._choice.sweep()

    def _trained(self, done: TrainDone) -> None:
        try:
            if done.peak > self._ledger.number("training_peak"):
                self._ledger.put("training_peak", done.peak)
        except StorageError as error:
            log.error("%s", error)
        log.info("trained in %.1f s, peak %.1f MiB: %s", done.seconds, done.peak / 2**20, done.reason)
        self._refresh()
        self._tidy()

    def _training_failed(self, reason: str) -> None:
        current = self._choice.current
        self._report("training_failed", current.version if current else 0, reason)
        self._link.changed()

    def _worker_said(self, message: pipe.FromWorker) -> None:
        match message:
            case pipe.Labelled():
                self._storage_full = False
                self._learner.poke()
            case pipe.CannotServe(_, which, reason):
                self._distrust(which, f"the worker cannot load it: {reason}")
            case pipe.StorageTrouble(reason):
                self._report("storage_full", self._choice.serving().version, reason)
            case pipe.AskStatus():
                try:
                    body = self._status()
                except StorageError as error:
                    body = msgspec.json.encode({"error": str(error)})
                self._keeper.tell(pipe.Status(msgspec.Raw(body)))
            case pipe.Serving(version, which):
                log.info("predictions come from the %s model of version %d", which, version)

    def _worker_crashed(self, how: str, in_a_row: int) -> None:
        serving = self._choice.serving()
        self._report("worker_crashed", serving.version, f"{how} while serving the {serving.which} model")
        if in_a_row >= CRASHES:
            self._distrust(serving.which, f"the worker crashed {in_a_row} times in a row with it")

    def _distrust(self, which: pipe.Which, reason: str) -> None:
        """The model in use does not work: go back to the one before, if there is one."""
        if which == self._choice.serving().which and which != "none":
            try:
                self._go_back(by_release=which == "fleet", reason=reason)
            except (ControlError, StorageError) as error:
                log.error("%s; %s", reason, error)


def run(settings: Settings) -> None:
    """Run an agent with these settings until it is told to stop; raises `SettingsError` or `StorageError`."""
    layout = Layout(Path(settings.device.state_directory))
    layout.create()
    with control.only_one(layout) as alone:
        if not alone:
            raise SettingsError(
                f"another agent runs on {layout.root}; stop it, or give this one its own device.state_directory"
            )
        asyncio.run(_run(settings, layout))


async def _run(settings: Settings, layout: Layout) -> None:
    await Agent(settings, layout).run()
