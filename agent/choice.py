"""Which model a device has in hand, and going back: the part of the agent that needs no event loop.

Used by the supervisor while it runs, and by `sanderling agent rollback` while none does.
"""

from __future__ import annotations

import logging

from . import pipe
from .config import Settings
from .errors import ControlError, StorageFullError
from .gate import serves
from .layout import Layout
from .ledger import Ledger
from .outbox import Outbox
from .slots import Installed, Slots
from .versions import Personal, Versions

log = logging.getLogger(__name__)
#: Files that planning one release leaves: the plan, the weights, and the note that names both.
_PLAN_FILES = 3


class Choice:
    """Installed releases and personal models, and which of them answers."""

    def __init__(self, settings: Settings, layout: Layout, ledger: Ledger) -> None:
        self._settings = settings
        self.ledger = ledger
        self._plans = layout.plans
        self.slots = Slots(layout.slots)
        self.outbox = Outbox(ledger)
        self.versions = Versions(ledger, layout.personal)
        self._recover()
        self.current = self.slots.current()

    def _recover(self) -> None:
        """Finish what a kill interrupted: a rollback that was decided, an installation that was not reported."""
        current = self.slots.current()
        if current is not None and current.digest in self.ledger.refused() and (older := self._older(current)):
            self.slots.switch(older)
        if (current := self.slots.current()) is not None:
            try:
                self.note_installed(current)
            except StorageFullError as error:  # predictions need no room; it is noted at a later start
                log.error("%s", error)

    def note_installed(self, slot: Installed) -> None:
        """Queue the event of an installation, exactly once however often we are killed around it."""
        with self.ledger.transaction("noting an installation"):
            if self.ledger.text("installed") != slot.digest:
                self.ledger.put("installed", slot.digest)
                self.outbox.queue_event("installed", slot.release.model, slot.version, "")
        self.current = slot

    def serving(self) -> pipe.Serve:
        """The model that is to answer now."""
        if self.current is None:
            return pipe.Serve("", 0, "none")
        if (personal := self._personal(self.current)) is not None:
            return pipe.Serve(str(self.versions.path(personal, ".onnx")), self.current.version, "personal")
        return pipe.Serve(str(self.current.model), self.current.version, "fleet")

    def _personal(self, current: Installed) -> Personal | None:
        policy = self._settings.serve.policy
        personal = self.versions.latest(current.digest, adopted=policy == "best")
        if personal is None or serves(policy, personal.adopted, True) == "fleet":
            return None
        return personal if self.versions.path(personal, ".onnx").exists() else None

    def withdraw_personal(self, reason: str) -> str:
        """Stop using the personal model that answers now; returns what happened, for people."""
        personal = self._personal(self.current) if self.current is not None else None
        if personal is None or self.current is None:
            raise ControlError("no personal model is in use; `--release` goes back to the previous release")
        with self.ledger.transaction("withdrawing a personal model"):
            self.versions.withdraw(personal.identifier)
            self.outbox.queue_event("rolled_back", self.current.release.model, self.current.version, reason)
        now = f"the {self.serving().which} model of version {self.current.version} answers"
        return f"withdrew personal model {personal.file}; {now}"

    def withdraw_release(self, reason: str) -> str:
        """Go back to the newest older release that was not refused, and never take the present one again."""
        current = self.current
        older = self._older(current) if current is not None else None
        if current is None or older is None:
            raise ControlError("there is no older release on this device to go back to")
        with self.ledger.transaction("going back a release"):
            self.ledger.refuse(current.digest, current.version, reason)
            self.ledger.put("installed", older.digest)
            self.outbox.queue_event("rolled_back", current.release.model, current.version, reason)
        self.slots.switch(older)
        self.current = older
        return f"went back from version {current.version} to {older.version}"

    def _older(self, current: Installed) -> Installed | None:
        refused = self.ledger.refused()
        older = (slot for slot in self.slots.installed() if slot.version < current.version)
        return next((slot for slot in older if slot.digest not in refused), None)

    def sweep(self) -> None:
        """Remove what is older than the kept versions (not while a trainer runs)."""
        keep = self._settings.learn.keep_versions
        self.slots.prune(keep)
        if self.current is not None:
            self.versions.sweep(keep, self.current.digest)
        plans = sorted(self._plans.iterdir(), key=lambda path: -path.stat().st_mtime)
        for path in plans[_PLAN_FILES * (keep + 1) :]:
            path.unlink(missing_ok=True)
