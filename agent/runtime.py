"""One interface to whatever executes a model, and onnxruntime behind it.

A runtime takes and gives dictionaries of arrays whose first dimension is the batch. `load` is the only place that
knows which runtime serves which kind of file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import ServingError
from .tensors import Arrays


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a model takes or gives: numpy's type, and the shape with -1 for dimensions that are free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Runtime(Protocol):
    """A loaded model, ready to predict."""

    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def run(self, inputs: Arrays) -> Arrays:
        """All outputs for these inputs; raises `ServingError` when they do not fit or the runtime fails."""
        ...


def load(path: Path) -> Runtime:
    """The model in a file, by the kind that its name says; raises `ServingError`."""
    if path.suffix == ".onnx":
        return OnnxRuntime(path)
    raise ServingError(f"{path.name}: no runtime here serves {path.suffix or 'such'} files; release an .onnx model")


_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}  # fmt: skip


class OnnxRuntime:
    """The stock onnxruntime on one CPU thread, without the arena that keeps peak memory for ever."""

    platform = "onnxruntime_onnx"

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4  # failures come as exceptions, which say the same
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises classes of its own that share no base
            raise ServingError(f"{path.name}: onnxruntime cannot load it: {_first_line(error)}") from error
        self.inputs = tuple(map(_describe, self._session.get_inputs()))
        self.outputs = tuple(map(_describe, self._session.get_outputs()))
        self._names = [output.name for output in self.outputs]

    def run(self, inputs: Arrays) -> Arrays:
        """See `Runtime.run`."""
        try:
            results = self._session.run(self._names, inputs)
        except Exception as error:
            raise ServingError(f"onnxruntime cannot run the model on these inputs: {_first_line(error)}") from error
        return dict(zip(self._names, results, strict=True))


def _describe(value: Any) -> Tensor:
    if value.type not in _TYPES:
        raise ServingError(f"{value.name}: values of type {value.type} are not served; use a numeric tensor")
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in value.shape)
    return Tensor(value.name, np.dtype(_TYPES[value.type]), shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:500]


def sample_batch(runtime: Runtime, rows: int) -> Arrays:
    """Zeros that fit the model, for a trial run; free dimensions beyond the batch become 1."""
    batch = {}
    for tensor in runtime.inputs:
        shape = [max(size, 1) for size in tensor.shape]
        if shape and tensor.shape[0] == -1:
            shape[0] = rows
        batch[tensor.name] = np.zeros(shape, tensor.dtype)
    return batch


def predicted_labels(outputs: Arrays) -> NDArray[np.int64]:
    """The most likely label of each row: the largest entry of the first floating-point output of shape [N, classes]."""
    return np.asarray(scores(outputs).argmax(axis=1), dtype=np.int64)


def scores(outputs: Arrays) -> NDArray[Any]:
    """The output that classifies; raises `ServingError` when the model has none."""
    for array in outputs.values():
        if array.ndim == 2 and array.dtype.kind == "f":
            return array
    raise ServingError("the model has no output of shape [N, classes], so labels say nothing about it")
