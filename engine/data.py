"""Labelled data sets in `.npz` files: `y`, and `x` or one array per model input. Nothing is unpickled.

Strategy: one set of checks for both ways to hold the data: whole in memory (`Dataset`), or in its file, from which the
rows of a batch are read as they are needed (`Samples`).
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .errors import DataError
from .graph import Array
from .rows import Rows, open_rows

#: How a file of numpy.save begins: one array, where an archive of several is needed.
_ARRAY = b"\x93NUMPY"


Column = Array | Rows


@dataclass(frozen=True, slots=True)
class Dataset:
    """Inputs {name: [N, ...]} and targets [N, ...]. The single input of a file that calls it `x` is named "x"."""

    inputs: dict[str, Array]
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.inputs.values()) + self.targets.nbytes

    def take(self, which: Array) -> Dataset:
        """The samples at these positions."""
        return Dataset({n: a[which] for n, a in self.inputs.items()}, self.targets[which])

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """(training part, held-out part with this fraction of the samples), shuffled. Raises DataError."""
        training, held_out = split(len(self), fraction, seed)
        return self.take(np.sort(training)), self.take(np.sort(held_out))

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Dataset]:
        """All samples once, in random order, `size` at a time (the last batch may be smaller)."""
        order = rng.permutation(len(self))
        for start in range(0, len(order), size):
            yield self.take(order[start : start + size])


@dataclass(frozen=True, slots=True)
class Samples:
    """What `Trainer.step` takes, read row by row from an .npz file. All columns have as many rows."""

    inputs: dict[str, Column]
    #: By the names of the plan's targets: labels, targets, teacher.
    targets: dict[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batch(self, which: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """(inputs, targets) of the samples at these positions."""
        return {n: c[which] for n, c in self.inputs.items()}, {n: c[which] for n, c in self.targets.items()}


def shuffled(count: int, seed: int) -> Array:
    """The numbers from 0 to count - 1 in an order that follows from the seed (numpy's generators cost 6 MB)."""
    order = array("q", range(count))
    Random(seed).shuffle(order)
    return np.frombuffer(order, np.int64)


def split(count: int, fraction: float, seed: int) -> tuple[Array, Array]:
    """(training, held out): positions of `count` samples, shuffled, that share held out. Raises DataError."""
    if not 0 <= fraction < 1:
        raise DataError(f"the held-out fraction is {fraction}; it must be at least 0 and below 1")
    held = round(fraction * count)
    if held == count:
        raise DataError(f"holding out {fraction:.0%} of {count} samples leaves none to train on")
    order = shuffled(count, seed)
    return order[held:], order[:held]


def sample_sizes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """{name: sizes of one sample} of the arrays in an .npz file, from its headers; {} for unreadable files."""
    return {name: shape[1:] for name, (shape, _, _) in _headers(path).items()}


def sample_bytes(path: str | Path, batch: int) -> int:
    """Resident bytes that the samples of an .npz file take while batches of them are read; 0 for unreadable files."""
    total = 0
    for shape, dtype, stored in _headers(path).values():
        rows = 2 * batch if stored else 2 * max(shape[:1], default=1)  # as they lie in the file, and as they are used
        total += rows * dtype.itemsize * math.prod(shape[1:])
    return total


def _headers(path: str | Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any], bool]]:
    """{name: (shape, type, whether its rows can be read one by one)}; {} for unreadable files."""
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any], bool]] = {}
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, columns_first, dtype = read(file)
                rows = member.compress_type == zipfile.ZIP_STORED and not columns_first
                found[member.filename.removesuffix(".npy")] = (shape, dtype, rows)
    return found


def load_dataset(path: str | Path, input_names: list[str] | None = None) -> Dataset:
    """Read and check a data set; `input_names` are those of the model. Raises DataError."""
    arrays = _read(Path(path), stream=False)
    targets = _split_off(arrays, ("y",), path)["y"]
    _check(arrays, {"y": targets}, input_names, path)
    whole = {n: np.asarray(a[:]) for n, a in _named(arrays, input_names).items()}
    return Dataset({n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in whole.items()}, targets[:])


def open_samples(path: str | Path, input_names: list[str], targets: list[str]) -> Samples:
    """The samples in an .npz file for a model: its inputs, `y` for labels or targets, and `teacher` where it is one
    of the targets. Looks at every number once. Raises DataError."""
    stored = {name: name if name == "teacher" else "y" for name in targets}
    arrays = _read(Path(path), stream=True)
    found = _split_off(arrays, tuple(stored.values()), path)
    _check(arrays, found, input_names, path)
    return Samples(_named(arrays, input_names), {name: found[at] for name, at in stored.items()})


def some_samples(path: str | Path, count: int, seed: int = 0) -> tuple[Any, Any]:
    """(inputs, targets) of some samples of an .npz file, as `Trainer.step` takes them. Raises DataError."""
    arrays = _read(Path(path), stream=True)
    targets = _split_off(arrays, tuple(n for n in ("y", "teacher") if n in arrays), path)
    _check(arrays, targets, None, path)
    which = shuffled(len(next(iter(arrays.values()))), seed)[:count]
    inputs = {name: column[which] for name, column in arrays.items()}
    found = {{"y": "labels"}.get(name, name): column[which] for name, column in targets.items()}
    wanted = found if "teacher" in found else found.get("labels")
    return (inputs["x"] if set(inputs) == {"x"} else inputs), wanted


def _read(path: Path, stream: bool) -> dict[str, Column]:
    """The arrays of a file by name."""
    arrays: dict[str, Column] = {}
    try:
        with path.open("rb") as file:  # numpy would give the array itself, which is no context manager
            if file.read(len(_ARRAY)) == _ARRAY:
                raise DataError(f"{path}: holds one bare array; save it with numpy.savez(path, x=..., y=...)")
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                rows = open_rows(path, archive.zip, f"{name}.npy") if stream else None
                arrays[name] = archive[name] if rows is None else rows
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        # numpy's own text would recommend to load pickles, which run whatever their author wrote
        raise DataError(
            f"{path}: is not a readable .npz file of plain arrays; save it with numpy.savez(path, x=..., y=...), "
            "numbers only"
        ) from error
    return arrays


def _split_off(arrays: dict[str, Column], names: tuple[str, ...], path: str | Path) -> dict[str, Column]:
    """The targets, which are then no longer among the arrays."""
    for name in names:
        if name not in arrays:
            what = "the labels" if name == "y" else "the teacher's outputs"
            raise DataError(f"{path}: has no array {name!r} with {what}; it has {', '.join(arrays) or 'nothing'}")
    targets = {name: arrays.pop(name) for name in names}
    if not arrays:
        raise DataError(f"{path}: has no inputs beside 'y'; add 'x' or one array per input of the model")
    return targets


def _named(arrays: dict[str, Column], input_names: list[str] | None) -> dict[str, Column]:
    """The inputs by the model's names: a single one may be called `x`."""
    if input_names is not None and len(input_names) == 1 and set(arrays) == {"x"}:
        return {input_names[0]: arrays["x"]}
    return arrays


def _check(
    arrays: dict[str, Column], targets: dict[str, Column], input_names: list[str] | None, path: str | Path
) -> None:
    """Raises DataError for names, sizes, types and numbers that cannot be trained on."""
    inputs = _named(arrays, input_names)
    if input_names is not None and set(inputs) != set(input_names):
        raise DataError(f"{path}: has the inputs {', '.join(inputs)}; the model has {', '.join(input_names)}")
    first, reference = next(iter((targets or inputs).items()))
    for name, column in {**inputs, **targets}.items():
        if column.ndim == 0 or column.shape[:1] != reference.shape[:1]:
            raise DataError(
                f"{path}: {name!r} has shape {list(column.shape)}, but {first!r} has {reference.shape[:1]} samples"
            )
        if column.dtype.kind not in "fiub":
            raise DataError(f"{path}: {name!r} is of type {column.dtype}; numbers are needed")
        if not (column.finite() if isinstance(column, Rows) else column.dtype.kind != "f" or np.isfinite(column).all()):
            raise DataError(f"{path}: {name!r} holds NaN or infinite values; remove those samples")
    if not len(reference):
        raise DataError(f"{path}: holds no samples")
