"""The wrist recordings as a fleet sees them: who is the lab, who is a device, what comes when.

140 recordings of a smartwatch (acceleration and rotation, 6 channels, 50 Hz) of 10 people doing 7 shoulder exercises,
with either arm, shipped in the package `seglearn` (BSD). Source: Burns et al., "Shoulder physiotherapy exercise
recognition", Physiological Measurement 39 (2018).

A window is 100 samples (2 s), a new one begins every 50. Each recording is cut in time: its first 60 % is what a device
gets to see, its last 38 % is what it is judged on; the 2 % between, and windows that cross a cut, belong to neither, so
no sample of a judged window was ever learned from.
"""

from __future__ import annotations

import importlib.metadata
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

WINDOW, STEP = 100, 50
SEEN, UNSEEN = 0.60, 0.38
LAB_PEOPLE = (1, 2, 3, 4)
DEVICE_PEOPLE = (5, 6, 7, 8, 9)
NEW_PERSON = 10
#: Windows of one bout: a person does an exercise for about ten seconds, then the next one.
BOUT = 8

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """`x`: float32 [n, 6, 100], normalized; `y`: int64 [n], index into the exercise names."""

    x: F32
    y: I64

    def __len__(self) -> int:
        return len(self.y)

    def save(self) -> bytes:
        """As the bytes of an `.npz` with arrays `x` and `y`."""
        file = io.BytesIO()
        np.savez(file, x=self.x, y=self.y)
        return file.getvalue()


@dataclass(frozen=True)
class Person:
    """One person's windows: `seen` in the order in which they happen, `unseen` for judging."""

    seen: Windows
    unseen: Windows


def exercise_names() -> list[str]:
    """The seven labels, in the order of their numbers."""
    return [str(name) for name in _recordings()["y_labels"]]


def person(number: int) -> Person:
    """The windows of person 1 to 10, normalized with the statistics of the lab's people."""
    mean, deviation = _lab_statistics()
    bouts: list[tuple[int, int, F32]] = []
    unseen: list[tuple[int, F32]] = []
    data = _recordings()
    indices = [i for i, subject in enumerate(data["subject"]) if subject == number]
    for index in indices:
        signal, label = np.asarray(data["X"][index], np.float64), int(data["y"][index])
        first, last = int(len(signal) * SEEN), int(len(signal) * (1 - UNSEEN))
        seen_windows = _windows((signal[:first] - mean) / deviation)
        for number_of_bout, start in enumerate(range(0, len(seen_windows), BOUT)):
            bouts.append((number_of_bout, label, seen_windows[start : start + BOUT]))
        unseen.append((label, _windows((signal[last:] - mean) / deviation)))
    # one bout of each recording, then the next of each: every exercise comes early, none only at the end
    bouts.sort(key=lambda bout: bout[0])
    return Person(
        seen=_join([(label, windows) for _, label, windows in bouts]),
        unseen=_join(unseen),
    )


def lab() -> Windows:
    """All windows of the lab's people, in random (fixed) order."""
    people = [person(number) for number in LAB_PEOPLE]
    windows = together(*(part for p in people for part in (p.seen, p.unseen)))
    order = np.random.default_rng(0).permutation(len(windows))
    return Windows(windows.x[order], windows.y[order])


def together(*parts: Windows) -> Windows:
    """All windows of several sets."""
    return Windows(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def anchor(windows: Windows, each: int = 12) -> Windows:
    """A small balanced set (`each` of every exercise) that travels with a release: no better model may fail on it."""
    chosen = np.concatenate([np.flatnonzero(windows.y == label)[:each] for label in range(len(exercise_names()))])
    return Windows(windows.x[chosen], windows.y[chosen])


def _windows(signal: NDArray[np.float64]) -> F32:
    """[samples, channels] to [windows, channels, WINDOW]."""
    if len(signal) < WINDOW:
        return np.zeros((0, signal.shape[1], WINDOW), np.float32)
    views = np.lib.stride_tricks.sliding_window_view(signal, WINDOW, axis=0)[::STEP]
    return np.ascontiguousarray(views, np.float32)


def _join(parts: list[tuple[int, F32]]) -> Windows:
    x = np.concatenate([windows for _, windows in parts])
    y = np.concatenate([np.full(len(windows), label, np.int64) for label, windows in parts])
    return Windows(x, y)


@cache
def _lab_statistics() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    data = _recordings()
    samples = np.concatenate([x for x, who in zip(data["X"], data["subject"], strict=True) if who in LAB_PEOPLE])
    return samples.mean(axis=0), samples.std(axis=0)


@cache
def _recordings() -> dict[str, NDArray[np.object_]]:
    for file in importlib.metadata.files("seglearn") or []:
        if file.name == "watch_dataset.npy":
            # object arrays need pickle; the file comes from the pinned package that pip has verified
            loaded: dict[str, NDArray[np.object_]] = np.load(str(file.locate()), allow_pickle=True).item()
            return loaded
    raise FileNotFoundError("the wrist recordings are missing: pip install seglearn==1.2.5")
