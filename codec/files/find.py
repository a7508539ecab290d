"""Which bytes of a file are tensors: formats are told by how they begin, and each has a finder of its own.

What is found here only decides how small a file becomes, never whether it comes back: a finder that errs costs bytes.
Any bytes give a list, in bounded time and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import in_archives, in_onnx, in_tflite
from .source import Source
from .tensors import Tensor

#: Tensors of fewer bytes are not worth their entry.
SMALLEST = 64
#: Tensors of one file that are told apart; the largest are kept.
MOST = 1 << 13


def find(source: Source, smallest: int = SMALLEST) -> list[Tensor]:
    """Tensors in ascending order that do not overlap; none if the file is in no format known here."""
    found: list[Tensor] = []
    try:
        found.extend(_format(source)[1](source))
    except Exception:  # zipfile, json and ast raise a dozen types on damaged files: what cannot be read has no tensors
        return []
    large = sorted((t for t in found if t.size >= smallest), key=lambda t: (-t.size, t.start))[:MOST]
    result: list[Tensor] = []
    end = 0
    for tensor in sorted(large, key=lambda t: (t.start, -t.size)):
        if tensor.start >= end and tensor.end <= source.size:
            result.append(tensor)
            end = tensor.end
    return result


def format_name(source: Source) -> str:
    """How the format is called that `find` would take a file for."""
    return _format(source)[0]


def _format(source: Source) -> tuple[str, Callable[[Source], Iterator[Tensor]]]:
    start = source.read(0, min(16, source.size))
    if start[:4] == in_archives.ZIP:
        return "npz", in_archives.find_npz
    if start[:6] == in_archives.NPY:
        return "npy", in_archives.find_npy
    if start[4:8] == in_tflite.IDENTIFIER:
        return "TFLite", in_tflite.find
    if start[8:10] in (b'{"', b"{ ", b"{\n"):
        return "safetensors", in_archives.find_safetensors
    return "ONNX", in_onnx.find
