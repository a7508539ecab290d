"""How training goes, on one line of a terminal (a library for that would cost 10 MB of the memory limit)."""

from __future__ import annotations

import shutil
import sys
import time

from .memory import peak_resident_bytes, resident_bytes

#: Seconds between two looks at the clock that are shown.
_INTERVAL = 0.1
_CLEAR = "\r\x1b[K"


class Progress:
    """Writes to standard error: a line that is rewritten where it is a terminal, and lines that stay."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._live = limit, sys.stderr.isatty()
        self._head, self._steps, self._shown = "", 1, 0.0
        self._samples, self._since = 0, time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._write("")

    def epoch(self, number: int, of: int, steps: int) -> None:
        """An epoch of so many steps begins."""
        self._head, self._steps = f"{number}/{of}", steps
        self._samples, self._since = 0, time.monotonic()

    def step(self, number: int, loss: float, rate: float, samples: int) -> None:
        """A step of the epoch is done."""
        self._samples += samples
        now = time.monotonic()
        if not self._live or (now - self._shown < _INTERVAL and number < self._steps):
            return
        self._shown = now
        speed = self._samples / max(now - self._since, 1e-9)
        memory = f"{resident_bytes() / 2**20:.0f} MiB, peak {peak_resident_bytes() / 2**20:.0f}"
        memory += f" of {self._limit / 2**20:.0f}" if self._limit else ""
        self._write(
            f"{self._head} {number}/{self._steps}  loss {loss:.4f}  rate {rate:.2g}  {speed:.3g} samples/s  {memory}"
        )

    def line(self, text: str) -> None:
        """A line that stays."""
        self._write("")
        print(text, file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(_CLEAR + text[:width])
            sys.stderr.flush()
