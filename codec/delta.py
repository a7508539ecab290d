"""Deltas: changes of weights, quantized, coded, and what was not sent kept for the next time.

Error feedback (Seide and others, "1-bit stochastic gradient descent", 2014; Karimireddy and others, 2019): the
residual is added to the next delta before that is quantized, so nothing is ever lost, only late. Tensors are float32
all along.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import container, directory, groups, quantize, scaled
from .coding import arrays
from .coding.bits import BitReader, BitWriter
from .container import Kind
from .directory import Entry
from .errors import CodecError
from .limits import DEFAULT_LIMITS, CodecLimits
from .quantize import DEFAULT_QUALITY, Quantized
from .steps import STEP_NUMBERS, multiply

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Levels = npt.NDArray[np.signedinteger[Any]]
Floats = npt.NDArray[np.floating[Any]]

_FLOAT32 = np.dtype(np.float32)
#: Order of the Exp-Golomb numbers that hold the change of step number from tensor to tensor.
_STEP_ORDER = 2
#: Levels that the encoder can produce; larger ones in a blob were not made by it.
_LARGEST_LEVEL = 1 << 20
#: Bytes of levels that `accumulate` keeps from verifying to adding.
_KEPT = 1 << 23
#: Magnitudes from here on are refused like infinite ones.
_LARGEST_VALUE = np.float32(2.0**120)


def encode_delta(
    delta: Mapping[str, F32],
    residual: Mapping[str, F32] | None = None,
    quality: float = DEFAULT_QUALITY,
    *,
    target_bytes: int | None = None,
    limits: CodecLimits = DEFAULT_LIMITS,
) -> tuple[bytes, dict[str, F32]]:
    """Encode float32 tensors, to be sent; returns the blob and the residual to hand in with the next delta.

    `quality`, above 0 and below 1, is the share of the energy (sum of squares of all tensors together, residual
    included) that arrives with this blob, at least; with as few bytes as that takes. The rest stays in the residual:
    `delta + residual == decode_delta(blob) + new residual`, in float32, element by element. A tensor with little of the
    energy may have to wait there until it has more.

    With `target_bytes`, `quality` is not looked at: the blob, all included, has at most so many bytes, and is close to
    it, unless all is sent as finely as levels can with fewer. The error is about the least for these bytes.

    Each tensor is asked for once, in order; besides the new residual, levels of one group are held at a time. Raises
    `CodecError` if something is not float32 or not finite, if names or shapes of `residual` differ, or if even
    nothing but zeros takes more than `target_bytes`.
    """
    _check_quality(quality)
    if residual is not None and residual.keys() != delta.keys():
        names = sorted(residual.keys() ^ delta.keys())
        raise CodecError(f"residual and delta differ in {names[:5]}: the residual is of another model; start with None")
    totals = directory.Totals(limits)
    entries: list[Entry] = []
    left: dict[str, F32] = {}
    for name in delta:
        value = _float32(delta[name], name)
        entries.append(totals.add(Entry(name, _FLOAT32, value.shape)))
        left[name] = _sum(value, None if residual is None else residual[name], name)
    tensors = list(left.values())
    if target_bytes is None:
        found = quantize.keep(tensors, quality)
        return _blob(entries, _kept(found, left)), left
    smallest = len(_blob(entries, map(quantize.zero, tensors)))
    if target_bytes < smallest:
        raise CodecError(
            f"{target_bytes} bytes are too few: even if nothing is sent, this delta takes {smallest} bytes"
        )
    blob, found = quantize.fit(tensors, target_bytes, smallest, lambda levels: _blob(entries, levels))
    for _ in _kept(found, left):
        pass
    return blob, left


def encode_each(delta: Mapping[str, F32], quality: float, *, limits: CodecLimits = DEFAULT_LIMITS) -> bytes:
    """Encode a delta after which no other will come: of each tensor's energy by itself, the share `quality` arrives.

    Each tensor is asked for once, in order, and one group is held at a time: `delta` may make its values when they are
    asked for. Raises `CodecError` as `encode_delta` does.
    """
    _check_quality(quality)
    totals = directory.Totals(limits)
    entries: list[Entry] = []

    def quantized() -> Iterator[Quantized]:
        for name in delta:
            value = _float32(delta[name], name)
            entries.append(totals.add(Entry(name, _FLOAT32, value.shape)))
            yield from quantize.keep([_sum(value, None, name)], quality)

    return _blob(entries, quantized())


def decode_delta(blob: bytes, *, limits: CodecLimits = DEFAULT_LIMITS) -> dict[str, F32]:
    """The float32 tensors of a blob. Raises `CodecError` for any bytes that are no delta, within `limits`."""
    return dict(iterate_delta(blob, limits=limits))


def iterate_delta(blob: bytes, *, limits: CodecLimits = DEFAULT_LIMITS) -> Iterator[tuple[str, F32]]:
    """(name, tensor) of each tensor of a blob, in order; only the group in which it lies is held.

    Raises `CodecError` for what is damaged or beyond `limits`: at once for the frame and the directory, and when its
    turn comes for a group that the checksum did not betray.
    """
    payload, at, entries = _open(blob, limits)
    return _tensors(payload, at, entries, limits)


def accumulate(
    blob: bytes, into: Mapping[str, Floats], weight: float = 1.0, *, limits: CodecLimits = DEFAULT_LIMITS
) -> None:
    """Add `weight` times the delta in `blob` to float tensors `into`, in place, in their own precision.

    `into` may have more tensors than the blob. One group of levels is held, and 8 MiB of those that were verified:
    what does not fit is decoded twice, first to verify it, then to add it. Raises `CodecError` if the blob is
    malformed, names a tensor that is not there, or one of another shape; `into` is unchanged then.
    """
    if not math.isfinite(weight):
        raise CodecError(f"a weight of {weight} would destroy the sum: weights are finite")
    payload, at, entries = _open(blob, limits)
    for entry in entries:
        _check_target(entry, into)
    members = list(groups.cut(entries, lambda entry: entry.count))
    kept: list[list[tuple[Levels, int]]] = []
    room = _KEPT
    for group, data in zip(members, groups.split(payload, at, len(members)), strict=True):
        levels = _decode_group(data, group, limits)
        if len(members) > 1:
            levels = [(scaled.narrow(array), step) for array, step in levels]
            room -= sum(array.nbytes for array, _ in levels)
        kept.append(levels if room >= 0 else [])
        del levels
    for group, data, levels in zip(members, groups.split(payload, at, len(members)), kept, strict=True):
        _add(group, levels or _decode_group(data, group, limits), into, weight)


def _add(group: Sequence[Entry], levels: list[tuple[Levels, int]], into: Mapping[str, Floats], weight: float) -> None:
    """Add the levels of a group, and let go of each when it is added."""
    for entry in reversed(group):
        array, step = levels.pop()
        scaled.add(array.reshape(-1), step, into[entry.name], weight)


def _check_quality(quality: float) -> None:
    if not 0.0 < quality < 1.0:
        raise CodecError(f"quality {quality} is not between 0 and 1: 0.9 sends nine tenths of the energy of a delta")


def _kept(found: Iterable[Quantized], left: dict[str, F32]) -> Iterator[Quantized]:
    """What was found for the tensors of `left`, which become, in place, what that leaves over."""
    for total, each in zip(left.values(), found, strict=True):
        if each.residual is not total:
            total[...] = each.residual
        yield each


def _blob(entries: Sequence[Entry], tensors: Iterable[Quantized]) -> bytes:
    """The blob of tensors; their entries need not be there before they are."""
    coded = [_encode_group(group) for group in groups.cut(tensors, lambda each: each.levels.size)]
    head = BitWriter()
    directory.write(head, entries, typed=False)
    return container.wrap(Kind.DELTA, [head.to_bytes(), *groups.join(coded)])


def _encode_group(group: Sequence[Quantized]) -> bytes:
    head = BitWriter()
    before = 0
    for tensor in group:
        step = before if tensor.step is None else tensor.step
        head.signed(step - before, _STEP_ORDER)
        before = step
    return head.to_bytes() + arrays.encode([tensor.levels for tensor in group])


def _open(blob: bytes, limits: CodecLimits) -> tuple[bytes, int, list[Entry]]:
    """(payload, where its groups begin, tensors) of a blob."""
    payload = container.unwrap(bytes(blob), Kind.DELTA, limits)
    head = BitReader(payload)
    entries = directory.read(head, limits, typed=False)
    return payload, head.align(), entries


def _decode_group(data: bytes, group: Sequence[Entry], limits: CodecLimits) -> list[tuple[Levels, int]]:
    """(levels, step number) of each tensor, all of them such that their values are finite."""
    head = BitReader(data)
    steps: list[int] = []
    before = 0
    for entry in group:
        before += head.signed(_STEP_ORDER)
        if before not in STEP_NUMBERS:
            raise CodecError(f"the step of {entry.name!r} is of no float32: the blob is damaged")
        steps.append(before)
    found = arrays.decode(data[head.align() :], [entry.shape for entry in group], limits)
    for entry, step, levels in zip(group, steps, found, strict=True):
        peak = max(int(levels.max()), -int(levels.min()))
        if peak > _LARGEST_LEVEL:
            raise CodecError(f"{entry.name!r} has levels that no quantizer makes: the blob is damaged")
        if not scaled.fits(peak, step):
            raise CodecError(f"{entry.name!r} has values beyond float32: the blob is damaged")
    return list(zip(found, steps, strict=True))


def _tensors(payload: bytes, at: int, entries: Sequence[Entry], limits: CodecLimits) -> Iterator[tuple[str, F32]]:
    members = list(groups.cut(entries, lambda entry: entry.count))
    parts = zip(members, groups.split(payload, at, len(members)), strict=True)
    decoded: dict[str, tuple[Levels, int]] = {}
    for entry in entries:
        if entry.count and not decoded:
            group, data = next(parts)
            decoded = {m.name: found for m, found in zip(group, _decode_group(data, group, limits), strict=True)}
        values = _values(*decoded.pop(entry.name)) if entry.count else np.zeros(0, np.float32)
        yield entry.name, values.reshape(entry.shape)
    next(parts, None)  # without tensors there must be no bytes either


def _values(levels: I64, step: int) -> F32:
    values = levels.astype(np.float32)
    multiply(values, step)
    return values


def _check_target(entry: Entry, into: Mapping[str, Floats]) -> None:
    if entry.name not in into:
        raise CodecError(
            f"the delta changes {entry.name!r}, which the model does not have: it belongs to another model"
        )
    target = into[entry.name]
    if target.shape != entry.shape:
        raise CodecError(
            f"the delta has {entry.name!r} in shape {entry.shape}, the model in {target.shape}: "
            "it belongs to another model"
        )
    if target.dtype.kind != "f" or not target.flags.writeable:
        raise CodecError(f"{entry.name!r} of type {target.dtype} cannot be added to: give writable arrays of floats")


def _float32(value: F32, name: str) -> F32:
    array = np.asarray(value)
    if array.dtype.newbyteorder("=") != _FLOAT32:
        raise CodecError(f"tensor {name!r} is of type {array.dtype}, not float32: convert it, deltas are float32")
    return array


def _sum(value: F32, residual: F32 | None, name: str) -> F32:
    total = value.astype(np.float32)
    if residual is not None:
        rest = _float32(residual, f"{name} (residual)")
        if rest.shape != total.shape:
            raise CodecError(
                f"the residual of {name!r} has shape {rest.shape}, the delta {total.shape}: "
                "it is of another model; start with None"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            total += rest
    # NaN fails the comparison too. The bound leaves room for a decoded value half a step above.
    if not (np.abs(total) < _LARGEST_VALUE).all():
        raise CodecError(
            f"tensor {name!r} has NaN, infinite or huge values: the training diverged; lower the learning rate"
        )
    return total
