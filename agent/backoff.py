"""Waiting longer after each failure, with jitter so that a fleet does not come back in step."""

from __future__ import annotations

import random


class Backoff:
    """Seconds to wait: doubling from `first` to `longest`, each jittered by half; `reset` after a success."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self.failures = 0

    def next(self) -> float:
        """The wait after one more failure."""
        self.failures += 1
        seconds: float = min(self._first * 2 ** min(self.failures - 1, 32), self._longest)
        return seconds * random.uniform(0.5, 1.5)

    def reset(self) -> None:
        """It works again."""
        self.failures = 0
