"""Anchor and proxy data: samples with or without labels, split in the same way whenever they are read."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sanderling.engine import DataError
from sanderling.engine.data import load_dataset
from sanderling.engine.inference import Predictor

#: Every so many samples of a class one is for validation.
VALIDATION_EVERY = 4
#: Samples that pass through a model at once; measured: small models run twice as fast as with 256 (cache).
BATCH = 32


@dataclass(frozen=True, slots=True)
class Samples:
    """Model inputs by name (first axis: samples), and integer labels [samples] or None."""

    inputs: dict[str, npt.NDArray[np.generic]]
    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, indices: npt.NDArray[np.intp]) -> Samples:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[indices]
        return Samples({name: array[indices] for name, array in self.inputs.items()}, labels)

    def split(self) -> tuple[Samples, Samples]:
        """(training, validation): of each class every fourth sample is for validation, by position alone."""
        order = np.arange(len(self)) if self.labels is None else np.argsort(self.labels, kind="stable")
        chosen = np.zeros(len(self), bool)
        chosen[order[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]] = True
        return self.take(np.flatnonzero(~chosen)), self.take(np.flatnonzero(chosen))


def read(path: Path, model: bytes) -> Samples:
    """The samples in an .npz file, checked against the model's inputs; without an array `y` they have no labels.

    Raises `EngineError` naming the file as it is called in a release.
    """
    names = Predictor(model).input_names
    if _has_labels(path):
        data = load_dataset(path, names)
        if data.targets.ndim != 1 or data.targets.dtype.kind not in "iu":
            raise DataError(f"'y' holds one class number per sample, not {data.targets.dtype} {data.targets.shape}")
        return Samples(data.inputs, data.targets.astype(np.int64))
    with np.load(path, allow_pickle=False) as archive:
        inputs = {name: archive[name] for name in archive.files}
    if len(names) == 1 and set(inputs) == {"x"}:
        inputs = {names[0]: inputs["x"]}
    if set(inputs) != set(names) or len({len(a) for a in inputs.values() if a.ndim}) != 1:
        raise DataError(f"the arrays are {', '.join(inputs) or 'none'}; the model has the inputs {', '.join(names)}")
    if any(a.dtype.kind not in "fiub" or not np.isfinite(a).all() for a in inputs.values()):
        raise DataError("the arrays must hold finite numbers")
    return Samples({n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in inputs.items()}, None)


def logits(model: bytes, samples: Samples) -> npt.NDArray[np.float32]:
    """The model's first output for every sample, [samples, classes]. Raises `EngineError`."""
    predictor = Predictor(model)
    outputs = predictor(samples.inputs, BATCH)[predictor.output_names[0]]
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise DataError(f"the first output has shape {list(outputs.shape)}; classification needs [N, classes]")
    return outputs.astype(np.float32)


def accuracy(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> float:
    """The share of rows whose largest score is at the label, 0 to 1."""
    return float(np.mean(scores.argmax(axis=1) == labels))


def measure(model: bytes, samples: Samples) -> tuple[float | None, int]:
    """(accuracy, or None without labels; classes). Raises `EngineError` if model and samples do not fit."""
    said = logits(model, samples)
    classes = said.shape[1]
    if samples.labels is None:
        return None, classes
    if samples.labels.min() < 0 or samples.labels.max() >= classes:
        raise DataError(
            f"labels run from {samples.labels.min()} to {samples.labels.max()}, classes are 0 to {classes - 1}"
        )
    return accuracy(said, samples.labels), classes


def _has_labels(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "y.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"is not an .npz file ({error}); save it with numpy.savez(path, x=..., y=...)") from error
