"""Checking a batch against a plan, and handing it out in micro-batches.

Strategy: all checks run on the whole batch before anything is copied; a wrong array is named with what was expected.
A micro-batch that is not full is filled up with its first sample, at weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import DataError
from .graph import Array
from .losses import LABELS, SAMPLE_WEIGHT, TARGETS, TEACHER, find_loss
from .plan import Description, Tensor


@dataclass(slots=True)
class Batch:
    """Checked arrays by the name of the session input."""

    arrays: dict[str, Array]
    samples: int
    size: int
    #: What the sum of the samples' losses is divided by to become the mean: their number, unless the loss says other.
    weight: float

    @property
    def parts(self) -> int:
        """Number of micro-batches."""
        return -(-self.samples // self.size)

    def fill(self, part: int, buffers: Mapping[str, Array], weight: float) -> None:
        """Copy one micro-batch into the session inputs, each sample at this weight."""
        begin = part * self.size
        count = min(self.size, self.samples - begin)
        for name, array in self.arrays.items():
            buffer = buffers[name]
            with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and then the loss says so
                buffer[:count] = array[begin : begin + count]
                if count < self.size:
                    buffer[count:] = array[begin]
        weights = buffers[SAMPLE_WEIGHT]
        weights[:count] = weight
        weights[count:] = 0


def check_batch(info: Description, inputs: Any, targets: Any) -> Batch:
    """The batch, ready to hand out. Raises DataError and then nothing has changed."""
    given = inputs if isinstance(inputs, Mapping) else {info.inputs[0].name: inputs}
    if not isinstance(inputs, Mapping) and len(info.inputs) > 1:
        raise DataError(f"the model has the inputs {_names(info.inputs)}: give a dict of arrays")
    if set(given) != {t.name for t in info.inputs}:
        raise DataError(f"inputs given: {', '.join(map(str, given))}; the model has {_names(info.inputs)}")
    arrays = {t.name: _array(t, given[t.name], f"input {t.name!r}") for t in info.inputs}
    samples = len(arrays[info.inputs[0].name])
    wanted = [t for t in info.targets if t.name != SAMPLE_WEIGHT]
    given_targets = {
        tensor.name: _array(tensor, _spread(tensor, value), tensor.name.rpartition(".")[2])
        for tensor, value in _targets(info, wanted, targets)
    }
    for name, array in {**arrays, **given_targets}.items():
        if len(array) != samples:
            raise DataError(f"{name!r} has {len(array)} samples, {info.inputs[0].name!r} has {samples}")
    if samples == 0:
        raise DataError("the batch has no samples")
    if info.whole and samples != info.batch:
        raise DataError(
            f"the batch has {samples} samples and must have {info.batch}, neither more nor padding: {info.whole}; give "
            "whole batches, or make the plan for this size"
        )
    weight = find_loss(info.loss).prepare(given_targets or arrays, info.loss_options, info.classes)
    return Batch(arrays | given_targets, samples, info.micro_batch, weight)


def _targets(info: Description, wanted: list[Tensor], targets: Any) -> list[tuple[Tensor, Any]]:
    if info.loss == "distillation":
        if isinstance(targets, tuple) and len(targets) == 2:
            targets = {"labels": targets[0], "teacher": targets[1]}
        if not isinstance(targets, Mapping):
            raise DataError('distillation needs targets {"labels": [N], "teacher": logits [N, C]} or such a pair')
    if not wanted and targets is not None and not (isinstance(targets, Mapping) and not targets):
        raise DataError("the model computes its loss itself and takes no targets: labels are among its inputs")
    if wanted and targets is None:
        raise DataError(f"{info.loss} needs targets, the second argument")
    if not isinstance(targets, Mapping):
        return [(tensor, targets) for tensor in wanted[:1]]
    short = {t.name.rpartition(".")[2]: t for t in wanted}
    missing = set(short) - set(targets)
    unknown = set(targets) - {n.rpartition(".")[2] for n in (LABELS, TARGETS, TEACHER)}
    if missing or unknown:
        raise DataError(f"targets given: {', '.join(map(str, targets))}; {info.loss} needs {', '.join(short)}")
    return [(tensor, targets[name]) for name, tensor in short.items()]


def _spread(tensor: Tensor, value: Any) -> Any:
    """One number per sample, [N], for an output of one number, [N, 1]."""
    if len(tensor.shape) < 2 or any(n != 1 for n in tensor.shape[1:]) or not isinstance(value, np.ndarray):
        return value
    return value.reshape(-1, *tensor.shape[1:]) if value.ndim == 1 else value


def _array(tensor: Tensor, value: Any, what: str) -> Array:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is no array: {error}") from error
    if array.ndim != len(tensor.shape) or array.shape[1:] != tuple(tensor.shape[1:]):
        shape = ", ".join(map(str, ("N", *tensor.shape[1:])))
        raise DataError(f"{what} has shape {list(array.shape)}; the model needs [{shape}]")
    integer = tensor.dtype.startswith(("int", "uint"))
    if integer and array.dtype.kind not in "iu":
        raise DataError(f"{what} is {array.dtype}; the model needs integers ({tensor.dtype})")
    if not integer and array.dtype.kind not in "fiub":
        raise DataError(f"{what} is {array.dtype}; the model needs numbers ({tensor.dtype})")
    return array


def _names(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(repr(t.name) for t in tensors)
