"""A person who wears a device: lives through the recordings, and now and then is judged on what nobody has learned."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from .application import AgentError, Application
from .data import Person

#: Seconds between two judgements of a device.
JUDGE_EVERY = 5.0


@dataclass
class Wearer:
    """One device's application in a thread of its own. `began` is the story's beginning by `time.monotonic`."""

    name: str
    number: int
    person: Person
    application: Application
    began: float
    #: (seconds since the story began, accuracy on unseen windows, version), oldest first.
    curve: list[tuple[float, float, int]] = field(default_factory=list)
    streamed: int = 0
    failure: Exception | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def judge(self) -> float:
        """Accuracy of what the device answers now; noted in `curve`."""
        accuracy = self.application.accuracy(self.person.unseen)
        version = int(self.application.status()["version"])
        self.curve.append((time.monotonic() - self.began, accuracy, version))
        return accuracy

    def live(self, seconds: float, again: bool = False) -> None:
        """Begin: predict, then learn from the feedback, window by window over `seconds`; then be judged until `stop`.

        With `again` the stream starts over when it has ended.
        """
        self._stop.clear()
        self._thread = threading.Thread(target=self._live, args=(seconds, again), name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the last request has been answered."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _live(self, seconds: float, again: bool) -> None:
        try:
            while True:
                self._stream(seconds)
                if not again or self._stop.is_set():
                    break
            while not self._stop.wait(JUDGE_EVERY):
                self.judge()
        except AgentError as error:  # the story looks at `failure` and ends with its text
            self.failure = error

    def _stream(self, seconds: float) -> None:
        seen = self.person.seen
        pace, began, judged = seconds / len(seen), time.monotonic(), time.monotonic()
        for index in range(len(seen)):
            if self._stop.wait(max(0.0, began + index * pace - time.monotonic())):
                return
            window, label = seen.x[index : index + 1], int(seen.y[index])
            _, request = self.application.predict(window)
            self.application.feedback(request, label, window)
            self.streamed += 1
            if time.monotonic() - judged > JUDGE_EVERY:
                self.judge()
                judged = time.monotonic()
