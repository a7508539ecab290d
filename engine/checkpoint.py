"""A trainer in one file: the plan, and behind it the arrays of the trainer as they are in memory.

Strategy: the same archive as a plan, plus `state.json` and one raw member per array, each checked for its size; the
archive's CRC32 covers every byte. Written under a temporary name, synced, and renamed. Arrays go from memory to the
file and back without a second copy, so that saving does not need more memory than training.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..host.files import open_durably
from .errors import EngineError, PlanError
from .plan import TrainingPlan, read_plan
from .schedules import Schedule

Array = npt.NDArray[Any]
#: Bytes that are read at once.
_CHUNK = 1 << 20


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a trainer was told when it was made."""

    schedule: Schedule
    options: dict[str, float]
    clip_norm: float | None = None
    clip_value: float | None = None
    decay: str = "all"
    seed: int = 0


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers of a trainer that are not arrays.

    `pending`: the weight of the samples whose gradients are added up and not applied yet, 0 for none. `random`: the
    state of the generator, as numpy gives it, in JSON; empty while none was used.
    """

    steps: int
    settings: Settings
    pending: float
    random: str


def write_checkpoint(path: Path, plan: TrainingPlan, state: State, arrays: Mapping[str, Array]) -> None:
    """Write a trainer: whole or not at all. Raises OSError."""
    with open_durably(path) as file, zipfile.ZipFile(file, "w") as archive:
        plan.write_into(archive)
        archive.writestr("state.json", msgspec.json.encode(state))
        for name, array in arrays.items():
            with archive.open(name, "w", force_zip64=array.nbytes >= 1 << 31) as member:
                member.write(_bytes(array))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open trainer file."""

    path: Path
    plan: TrainingPlan
    state: State
    archive: zipfile.ZipFile

    def read_into(self, arrays: Mapping[str, Array]) -> None:
        """Fill arrays with the members of their names. Raises PlanError unless every size fits."""
        for name, array in arrays.items():
            view = _bytes(array)
            if self.archive.getinfo(name).file_size != len(view):
                raise PlanError(f"{self.path}: {name} does not fit its plan; the file is damaged")
            with self.archive.open(name) as member:
                done = 0
                while data := member.read(_CHUNK):
                    view[done : done + len(data)] = data
                    done += len(data)


def _bytes(array: Array) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """What `write_checkpoint` wrote. Raises PlanError, also for what goes wrong while it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            plan = read_plan(archive, str(path))
            state = msgspec.json.decode(archive.read("state.json"), type=State)
            yield Checkpoint(path, plan, state, archive)
    except PlanError:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, EOFError, msgspec.MsgspecError,
            NotImplementedError, RuntimeError, EngineError) as error:  # fmt: skip
        raise PlanError(f"{path}: is not a saved trainer, or is damaged ({error}); start from the plan") from error
