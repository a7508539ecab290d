"""Where everything lies in the state directory; no other file joins these paths.

::

    agent.lock      held by the one running agent
    control.sock    commands from `sanderling agent status|rollback`
    agent.db        outbox, personal models, counters (SQLite)
    samples.db      labelled samples (SQLite); never leaves the device
    slots/          installed releases, one directory each; `current` is a symbolic link to the one in use
    slots/staging   the inactive slot: the release that is being downloaded
    personal/       personal models, one ONNX file each
    plans/          training plans and base weights, by content; may be deleted at any time
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import storage_errors


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths under one state directory."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "agent.lock"

    @property
    def control(self) -> Path:
        return self.root / "control.sock"

    @property
    def database(self) -> Path:
        return self.root / "agent.db"

    @property
    def samples(self) -> Path:
        return self.root / "samples.db"

    @property
    def slots(self) -> Path:
        return self.root / "slots"

    @property
    def personal(self) -> Path:
        return self.root / "personal"

    @property
    def plans(self) -> Path:
        return self.root / "plans"

    def create(self) -> None:
        """Make the directories, readable by their owner only; raises `StorageError`."""
        with storage_errors(f"creating {self.root}"):
            for directory in (self.root, self.slots, self.personal, self.plans):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
