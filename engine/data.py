"""Labelled data sets in `.npz` files: `y`, and `x` or one array per model input. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import DataError
from .graph import Array

#: How a file of numpy.save begins: one array, where an archive of several is needed.
_ARRAY = b"\x93NUMPY"


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
        if not 0 <= fraction < 1:
            raise DataError(f"the held-out fraction is {fraction}; it must be at least 0 and below 1")
        order = np.random.default_rng(seed).permutation(len(self))
        held = round(fraction * len(self))
        if held == len(self):
            raise DataError(f"holding out {fraction:.0%} of {len(self)} samples leaves none to train on")
        return self.take(np.sort(order[held:])), self.take(np.sort(order[:held]))

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Dataset]:
        """All samples once, in random order, `size` at a time (the last batch may be smaller)."""
        order = rng.permutation(len(self))
        for start in range(0, len(order), size):
            yield self.take(order[start : start + size])


def sample_sizes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """{name: sizes of one sample} of the arrays in an .npz file, from its headers; {} for unreadable files."""
    sizes: dict[str, tuple[int, ...]] = {}
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                sizes[member.removesuffix(".npy")] = read(file)[0][1:]
    return sizes


def load_dataset(path: str | Path, input_names: list[str] | None = None) -> Dataset:
    """Read and check a data set; `input_names` are those of the model. Raises DataError."""
    try:
        with Path(path).open("rb") as file:  # numpy would give the array itself, which is no context manager
            if file.read(len(_ARRAY)) == _ARRAY:
                raise DataError(f"{path}: holds one bare array; save it with numpy.savez(path, x=..., y=...)")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
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
    if "y" not in arrays:
        raise DataError(f"{path}: has no array 'y' with the labels; it has {', '.join(arrays) or 'nothing'}")
    targets = arrays.pop("y")
    if not arrays:
        raise DataError(f"{path}: has no inputs beside 'y'; add 'x' or one array per input of the model")
    if input_names is not None and len(input_names) == 1 and set(arrays) == {"x"}:
        arrays = {input_names[0]: arrays["x"]}
    if input_names is not None and set(arrays) != set(input_names):
        raise DataError(f"{path}: has the inputs {', '.join(arrays)}; the model has {', '.join(input_names)}")
    for name, array in {**arrays, "y": targets}.items():
        if array.ndim == 0 or len(array) != len(targets):
            raise DataError(f"{path}: {name!r} has shape {list(array.shape)}, but 'y' has {targets.shape[:1]} samples")
        if array.dtype.kind not in "fiub":
            raise DataError(f"{path}: {name!r} is of type {array.dtype}; numbers are needed")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{path}: {name!r} holds NaN or infinite values; remove those samples")
    if not len(targets):
        raise DataError(f"{path}: holds no samples")
    return Dataset({n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()}, targets)
