"""A trainer in one file: the plan, and behind it the weights and the optimizer's state as they are in memory.

Strategy: the same archive as a plan, plus `state.json` and one raw member per array, each checked for its size; the
archive's CRC32 covers every byte. Written under a temporary name, synced, and renamed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ..host.files import write_durably
from .errors import PlanError
from .plan import TrainingPlan, read_plan

FloatArray = npt.NDArray[np.float32]


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers of a trainer that are not arrays."""

    steps: int
    learning_rate: float
    options: dict[str, float]


@dataclass(frozen=True, slots=True)
class Arrays:
    """Raw members of a trainer file."""

    path: Path
    members: dict[str, bytes]

    def into(self, flat: Mapping[int, FloatArray], state: Mapping[int, FloatArray]) -> None:
        """Copy into the arrays of a trainer. Raises PlanError unless every size fits."""
        for kind, arrays in (("weights", flat), ("optimizer", state)):
            for index, array in arrays.items():
                data = self.members.get(f"{kind}{index}", b"")
                if len(data) != array.nbytes:
                    raise PlanError(f"{self.path}: its {kind} do not fit its plan; the file is damaged")
                array[...] = np.frombuffer(data, "<f4").reshape(array.shape)


def write_checkpoint(
    path: Path, plan: TrainingPlan, state: State, flat: Mapping[int, FloatArray], moments: Mapping[int, FloatArray]
) -> None:
    """Write a trainer: whole or not at all. Raises OSError."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        plan.write_into(archive)
        archive.writestr("state.json", msgspec.json.encode(state))
        for kind, arrays in (("weights", flat), ("optimizer", moments)):
            for index, array in arrays.items():
                archive.writestr(f"{kind}{index}", array.astype("<f4", copy=False).tobytes())
    write_durably(path, buffer.getvalue())


def read_checkpoint(path: Path) -> tuple[TrainingPlan, State, Arrays]:
    """Read what `write_checkpoint` wrote. Raises PlanError."""
    try:
        with zipfile.ZipFile(path) as archive:
            plan = read_plan(archive, str(path))
            state = msgspec.json.decode(archive.read("state.json"), type=State)
            names = [n for n in archive.namelist() if n.startswith(("weights", "optimizer"))]
            return plan, state, Arrays(path, {n: archive.read(n) for n in names})
    except PlanError:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, EOFError, msgspec.MsgspecError,
            NotImplementedError, RuntimeError) as error:  # fmt: skip
        raise PlanError(f"{path}: is not a saved trainer, or is damaged ({error}); start from the plan") from error
