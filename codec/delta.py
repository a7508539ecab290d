"""Deltas: changes of weights, quantized, coded, and what was not sent kept for the next time.

Error feedback (Seide and others, "1-bit stochastic gradient descent", 2014; Karimireddy and others, 2019): the
residual is added to the next delta before that is quantized, so nothing is ever lost, only late. Tensors are float32
all along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import container, directory, quantize
from .coding import arrays
from .coding.bits import BitReader, BitWriter
from .container import Kind
from .directory import Entry
from .errors import CodecError
from .limits import DEFAULT_LIMITS, CodecLimits
from .quantize import DEFAULT_QUALITY

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_FLOAT32 = np.dtype(np.float32)
#: Order of the Exp-Golomb numbers that hold the change of step number from tensor to tensor.
_STEP_ORDER = 2
#: Levels that the encoder can produce; larger ones in a blob were not made by it.
_LARGEST_LEVEL = 1 << 20
#: Magnitudes from here on are refused like infinite ones.
_LARGEST_VALUE = np.float32(2.0**120)


def encode_delta(
    delta: Mapping[str, F32],
    residual: Mapping[str, F32] | None = None,
    quality: float = DEFAULT_QUALITY,
    *,
    limits: CodecLimits = DEFAULT_LIMITS,
) -> tuple[bytes, dict[str, F32]]:
    """Encode float32 tensors, to be sent; returns the blob and the residual to hand in with the next delta.

    `quality`, above 0 and below 1, is the share of each tensor's energy (sum of squares) that arrives with this blob;
    the rest stays in the residual: `delta + residual == decode_delta(blob) + new residual`, in float32, element by
    element. Raises `CodecError` if something is not float32 or not finite, or if names or shapes of `residual`
    differ.
    """
    if not 0.0 < quality < 1.0:
        raise CodecError(f"quality {quality} is not between 0 and 1: 0.9 sends nine tenths of the energy of a delta")
    if residual is not None and residual.keys() != delta.keys():
        names = sorted(residual.keys() ^ delta.keys())
        raise CodecError(f"residual and delta differ in {names[:5]}: the residual is of another model; start with None")
    entries = [Entry(name, _FLOAT32, _float32(value, name).shape) for name, value in delta.items()]
    directory.check(entries, limits)
    flat: list[I64] = []
    steps: list[int | None] = []
    left: dict[str, F32] = {}
    for name, value in delta.items():
        total = _sum(value, None if residual is None else residual[name], name)
        levels, step = quantize.quantize(total, quality)
        flat.append(levels.reshape(-1))
        steps.append(step)
        left[name] = total if step is None else total - quantize.dequantize(levels, step)
    head = BitWriter()
    directory.write(head, entries, typed=False)
    before = 0
    for step in steps:
        step = before if step is None else step
        head.signed(step - before, _STEP_ORDER)
        before = step
    rest = arrays.encode(head, flat)
    return container.wrap(Kind.DELTA, head.to_bytes() + rest), left


def decode_delta(blob: bytes, *, limits: CodecLimits = DEFAULT_LIMITS) -> dict[str, F32]:
    """The float32 tensors of a blob. Raises `CodecError` for any bytes that are no delta, within `limits`."""
    return dict(_decoded(blob, limits))


def accumulate(
    blob: bytes,
    into: Mapping[str, npt.NDArray[np.floating[Any]]],
    weight: float = 1.0,
    *,
    limits: CodecLimits = DEFAULT_LIMITS,
) -> None:
    """Add `weight` times the delta in `blob` to float tensors `into`, in place, in their own precision.

    `into` may have more tensors than the blob. Raises `CodecError` if the blob is malformed, names a tensor that is
    not there, or one of another shape; `into` is unchanged then.
    """
    decoded = decode_delta(blob, limits=limits)
    for name, tensor in decoded.items():
        if name not in into:
            raise CodecError(f"the delta changes {name!r}, which the model does not have: it belongs to another model")
        if into[name].shape != tensor.shape:
            raise CodecError(
                f"the delta has {name!r} in shape {tensor.shape}, the model in {into[name].shape}: "
                "it belongs to another model"
            )
    while decoded:
        name, tensor = decoded.popitem()
        target = into[name]
        np.add(target, target.dtype.type(weight) * tensor, out=target)


def _decoded(blob: bytes, limits: CodecLimits) -> Iterator[tuple[str, F32]]:
    payload = container.unwrap(bytes(blob), Kind.DELTA, limits)
    head = BitReader(payload)
    entries = directory.read(head, limits, typed=False)
    steps: list[int] = []
    before = 0
    for entry in entries:
        before += head.signed(_STEP_ORDER)
        if before not in quantize.STEP_NUMBERS:
            raise CodecError(f"the step of {entry.name!r} is of no float32: the blob is damaged")
        steps.append(before)
    flat = arrays.decode(head, payload, [entry.count for entry in entries], limits)
    for entry, step, levels in zip(entries, steps, flat, strict=True):
        if np.any((levels > _LARGEST_LEVEL) | (levels < -_LARGEST_LEVEL)):
            raise CodecError(f"{entry.name!r} has levels that no quantizer makes: the blob is damaged")
        with np.errstate(over="ignore"):
            tensor = quantize.dequantize(levels, step).reshape(entry.shape)
        if not np.isfinite(tensor).all():
            raise CodecError(f"{entry.name!r} has values beyond float32: the blob is damaged")
        yield entry.name, tensor


def _float32(value: F32, name: str) -> F32:
    array = np.asarray(value)
    if array.dtype.newbyteorder("=") != _FLOAT32:
        raise CodecError(f"tensor {name!r} is of type {array.dtype}, not float32: convert it, deltas are float32")
    return array


def _sum(value: F32, residual: F32 | None, name: str) -> F32:
    total = _float32(value, name).astype(np.float32)
    if residual is not None:
        rest = _float32(residual, f"{name} (residual)")
        if rest.shape != total.shape:
            raise CodecError(
                f"the residual of {name!r} has shape {rest.shape}, the delta {total.shape}: "
                "it is of another model; start with None"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            total = total + rest
    # NaN fails the comparison too. The bound leaves room for a decoded value half a step above.
    if not (np.abs(total) < _LARGEST_VALUE).all():
        raise CodecError(
            f"tensor {name!r} has NaN, infinite or huge values: the training diverged; lower the learning rate"
        )
    return total
