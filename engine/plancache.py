"""Plans that were made before, by model and wishes.

Strategy: a plan follows from the model's bytes, the wishes, this version of the planner, the runtime, and the machine
that it was measured on; a hash over all of these is the name of its file. So nothing is ever out of date: what would
be is not found. A file that is damaged counts as not there. Files are written whole or not at all; when there are too
many, those that were not used for longest go.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from .errors import PlanError
from .plan import VERSION, TrainingPlan, load_plan

#: The most plans that a folder keeps, and their bytes.
MOST_PLANS, MOST_BYTES = 64, 512 * 2**20
#: Libraries whose version changes what a plan is, or what its process holds.
_LIBRARIES = ("sanderling", "onnxruntime", "onnx", "numpy")
_ENDING = ".plan"
_SOURCES = Path(__file__).parent


def default_folder() -> Path:
    """Where the command line keeps plans: `sanderling/plans` in the user's cache (XDG Base Directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if Path(base).is_absolute() else Path.home() / ".cache", "sanderling", "plans")


@lru_cache(maxsize=1)
def circumstances() -> str:
    """What a plan depends on besides model and wishes: versions, and the processor's abilities."""
    versions = {name: _version(name) for name in _LIBRARIES}
    made = {"format": VERSION, "python": platform.python_version(), "system": platform.platform(), **versions}
    return hashlib.sha256(msgspec.json.encode((made, _planner(), _processor()), order="sorted")).hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _planner() -> str:
    """The planner itself: between two releases its version says nothing."""
    files = sorted(_SOURCES.rglob("*.py"))
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()


def _processor() -> list[str]:
    """Architecture and instruction sets, which decide what the runtime's operators are able to do."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    able = {line.partition(":")[2].strip() for line in lines if line.lower().startswith(("flags", "features"))}
    return [platform.machine(), *sorted(able)]


def key(model: bytes, wishes: Mapping[str, Any]) -> str:
    """The name of the plan for a model and wishes (numbers, strings, arrays, lists and dicts of these)."""
    told = msgspec.json.encode(wishes, order="deterministic", enc_hook=_told)
    parts = (circumstances().encode(), hashlib.sha256(model).digest(), told)
    return hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()[:40]


def _told(value: Any) -> Any:
    """What JSON has no form for: arrays by their content."""
    if hasattr(value, "tobytes"):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    return repr(value)


class PlanCache:
    """Plans in a folder, which is made when the first is kept."""

    def __init__(self, folder: str | Path, most: int = MOST_PLANS, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self.most, self.most_bytes = Path(folder), most, most_bytes

    def path(self, name: str) -> Path:
        """The file of a plan."""
        return self.folder / (name + _ENDING)

    def find(self, name: str) -> TrainingPlan | None:
        """The plan of this key, or None; a damaged file is removed."""
        path = self.path(name)
        if not path.exists():
            return None
        try:
            plan = load_plan(path)
        except PlanError:
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # it was used
        return plan

    def keep(self, name: str, plan: TrainingPlan) -> bool:
        """Keep a plan. Returns whether it is kept: what cannot be written is not worth an error."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            plan.save(self.path(name))
        except OSError:
            return False
        self._tidy(self.path(name))
        return self.path(name).exists()

    def _tidy(self, newest: Path) -> None:
        """Remove what was not used for longest, until the folder keeps to its bounds."""
        found = []
        for path in self.folder.glob("*" + _ENDING):
            with suppress(OSError):  # another process tidies as well
                known = path.stat()
                found.append((path == newest, known.st_mtime_ns, known.st_size, path))
        count, size = 0, 0
        for _, _, length, path in sorted(found, reverse=True):
            count, size = count + 1, size + length
            if count > self.most or size > self.most_bytes:
                with suppress(OSError):
                    path.unlink()
