"""Ctrl-C and termination, asked politely once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

#: What a first one makes of the process's exit status: 128 and the signal's number, as shells have it.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While this is entered, the first SIGINT or SIGTERM sets `status`; the next one does what it always does."""

    def __init__(self) -> None:
        self.status = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.status = 128 + number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
