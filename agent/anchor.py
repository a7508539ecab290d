"""The anchor set that may come with a release: labelled samples on which no model may get much worse.

A NumPy archive with an array `y` of labels and one array per model input (`x` stands for the only one).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sanderling.codec.messages import Accuracy

from .errors import ServingError
from .limits import LIMITS
from .runtime import Runtime, predicted_labels
from .tensors import Arrays


@dataclass(frozen=True, slots=True)
class Anchor:
    """Inputs by name and their labels, one for each row."""

    inputs: Arrays
    labels: NDArray[Any]

    def accuracy(self, runtime: Runtime) -> Accuracy:
        """How often the model is right; raises `ServingError` when the samples do not fit it."""
        inputs = self.inputs
        names = [tensor.name for tensor in runtime.inputs]
        if len(names) == 1 and set(inputs) == {"x"}:
            inputs = {names[0]: inputs["x"]}
        if set(inputs) != set(names):
            raise ServingError(f"the anchor set has {', '.join(inputs)}; the model takes {', '.join(names)}")
        cast = {tensor.name: inputs[tensor.name].astype(tensor.dtype, copy=False) for tensor in runtime.inputs}
        right = 0
        for begin in range(0, len(self.labels), LIMITS.evaluation_batch):
            rows = slice(begin, begin + LIMITS.evaluation_batch)
            predicted = predicted_labels(runtime.run({name: array[rows] for name, array in cast.items()}))
            right += int((predicted == self.labels[rows]).sum())
        return Accuracy(value=right / len(self.labels), count=len(self.labels))


def read_anchor(path: Path) -> Anchor:
    """The anchor set in a file; raises `ServingError` for anything else (nothing in it is executed)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ServingError(f"{path.name} is no NumPy archive: {error}") from error
    labels = arrays.pop("y", None)
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or not arrays:
        raise ServingError(f"{path.name}: needs an array y of integer labels and the inputs")
    if len(labels) == 0 or any(array.ndim == 0 or len(array) != len(labels) for array in arrays.values()):
        raise ServingError(f"{path.name}: arrays of different or no length")
    return Anchor(arrays, labels)
