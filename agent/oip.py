"""The Open Inference Protocol v2 (REST, as KServe and Triton speak it): JSON bodies to arrays and back, without I/O.

Anything that a client may send gives arrays or a `RequestError` with the status to answer. Data may be nested or flat
("row-major"), as the protocol allows. The feedback request is an extension of ours in the same style.
Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from .errors import RequestError
from .limits import LIMITS
from .runtime import Tensor
from .tensors import Arrays

DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_NAMES = {numpy: name for name, numpy in DATATYPES.items()}

Label = Annotated[int, Meta(ge=0, lt=LIMITS.labels)]


class _Input(msgspec.Struct):
    name: str
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=2**31)]], Meta(max_length=16)]
    datatype: str
    data: list[Any]


class _Output(msgspec.Struct):
    name: str


class InferRequest(msgspec.Struct):
    """The body of POST /v2/models/{model}/infer. Unknown fields (parameters of other servers) are ignored."""

    inputs: Annotated[list[_Input], Meta(min_length=1, max_length=256)]
    id: Annotated[str, Meta(max_length=256)] = ""
    outputs: list[_Output] | None = None


class FeedbackRequest(msgspec.Struct):
    """The body of POST /v2/models/{model}/feedback: either the id of a prediction or the inputs, and the labels."""

    id: Annotated[str, Meta(max_length=256)] = ""
    inputs: Annotated[list[_Input], Meta(max_length=256)] = []
    label: Label | None = None
    labels: Annotated[list[Label], Meta(max_length=LIMITS.request_samples)] | None = None

    def given_labels(self) -> list[int]:
        """The labels, one for each sample; raises `RequestError` unless exactly one of the two fields is there."""
        if (self.label is None) == (self.labels is None):
            raise RequestError(400, 'give either "label" (one sample) or "labels" (one for each sample of the batch)')
        return [self.label] if self.label is not None else list(self.labels or [])


R = TypeVar("R", InferRequest, FeedbackRequest)


def decode(kind: type[R], body: bytes) -> R:
    """The request in a body; raises `RequestError` 400."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(400, f"the body is not what is expected here: {error}") from error


def read_inputs(given: Sequence[_Input], expected: Sequence[Tensor]) -> Arrays:
    """Arrays that fit the model; raises `RequestError` 400 that names the input and says what would fit."""
    wanted = {tensor.name: tensor for tensor in expected}
    arrays: Arrays = {}
    for entry in given:
        if entry.name not in wanted:
            raise RequestError(400, f"the model has no input {entry.name[:80]!r}; it takes {', '.join(wanted)}")
        if entry.name in arrays:
            raise RequestError(400, f"input {entry.name!r} is given twice")
        arrays[entry.name] = _read(entry, wanted[entry.name])
    if missing := wanted.keys() - arrays.keys():
        raise RequestError(400, f"input {', '.join(sorted(missing))} is missing")
    if len({array.shape[0] for array in arrays.values() if array.ndim}) > 1:
        raise RequestError(400, "the inputs have different numbers of samples (their first dimension)")
    return arrays


def _read(entry: _Input, wanted: Tensor) -> Any:
    datatype = _NAMES[wanted.dtype.name]
    if entry.datatype != datatype:
        raise RequestError(400, f"input {wanted.name}: datatype {entry.datatype[:20]!r}, the model takes {datatype}")
    fits = len(entry.shape) == len(wanted.shape) and all(
        want in (-1, have) for want, have in zip(wanted.shape, entry.shape, strict=True)
    )
    if not fits:
        takes = f"the model takes {list(wanted.shape)} (-1: any)"
        raise RequestError(400, f"input {wanted.name}: shape {entry.shape}, {takes}")
    if entry.shape and entry.shape[0] > LIMITS.request_samples:
        raise RequestError(400, f"{entry.shape[0]} samples in one request, at most {LIMITS.request_samples} are taken")
    try:
        array = np.asarray(entry.data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise RequestError(400, f"input {wanted.name}: data is ragged or no array of numbers") from error
    allowed = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[wanted.dtype.kind]
    if array.size and array.dtype.kind not in allowed:
        raise RequestError(400, f"input {wanted.name}: data holds values that are no {datatype}")
    if array.size != math.prod(entry.shape):
        raise RequestError(400, f"input {wanted.name}: {array.size} values for shape {entry.shape}")
    if wanted.dtype.kind in "iu" and array.size:
        bounds = np.iinfo(wanted.dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise RequestError(400, f"input {wanted.name}: values outside {datatype}'s range")
    with np.errstate(over="ignore"):
        result = array.astype(wanted.dtype).reshape(entry.shape)
    if result.dtype.kind == "f" and not np.isfinite(result).all():
        raise RequestError(400, f"input {wanted.name}: values outside {datatype}'s range")
    return result


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the protocol tells about a model."""

    name: str
    version: str
    platform: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]


def metadata(info: ModelInfo) -> bytes:
    """The answer to GET /v2/models/{model}."""
    return msgspec.json.encode(
        {
            "name": info.name,
            "versions": [info.version],
            "platform": info.platform,
            "inputs": [_tensor(tensor) for tensor in info.inputs],
            "outputs": [_tensor(tensor) for tensor in info.outputs],
        }
    )


def infer_response(
    info: ModelInfo, request: InferRequest, outputs: Arrays, identifier: str, parameters: Mapping[str, str]
) -> bytes:
    """The answer to an infer request, with only the outputs it asked for; raises `RequestError` for unknown ones."""
    names = [output.name for output in request.outputs] if request.outputs else list(outputs)
    if unknown := [name for name in names if name not in outputs]:
        raise RequestError(400, f"the model has no output {unknown[0][:80]!r}; it gives {', '.join(outputs)}")
    return msgspec.json.encode(
        {
            "model_name": info.name,
            "model_version": info.version,
            "id": identifier,
            "parameters": parameters,
            "outputs": [
                {
                    "name": name,
                    "shape": list(outputs[name].shape),
                    "datatype": _NAMES[outputs[name].dtype.name],
                    "data": outputs[name].ravel().tolist(),
                }
                for name in names
            ],
        }
    )


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": _NAMES[tensor.dtype.name], "shape": list(tensor.shape)}
