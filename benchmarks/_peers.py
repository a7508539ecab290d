"""Other coders' bytes for the same integers, each computed once and kept in the cache folder.

zlib 9, lzma (raw LZMA2, preset 9 extreme), zstd 19 and brotli 11 get the values, all arrays one after the other in
their own types, and before them what somebody needs to tell the arrays apart: a line of text for each, name, type and
shape, compressed in the same stream. `values_only` are their bytes without these lines: no names, no shapes, no
checksum beyond what their stream needs. NNCodec gets names and shapes, as we do.
"""

from __future__ import annotations

import itertools
import json
import lzma
import math
import os
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _sets
from benchmarks._packages import CACHE, environment

_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
_STORE = CACHE / f"codec-{_sets.VERSION}" / "peers.json"
#: NNCodec's weight of bytes against error in trellis quantization: its default, and two above it.
LAMBDA_SCALES = (0, 1, 2)
#: Neighbouring points whose bytes differ by more than this factor bound a gap, in which nothing is interpolated.
_GAP = 3


def _zstd(data: bytes) -> int:
    import zstandard

    return len(zstandard.ZstdCompressor(level=19).compress(data))


def _brotli(data: bytes) -> int:
    import brotli

    return len(brotli.compress(data, quality=11))


GENERAL: dict[str, Callable[[bytes], int]] = {
    "zlib": lambda data: len(zlib.compress(data, 9)),
    "lzma": lambda data: len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=_LZMA)),
    "zstd": _zstd,
    "brotli": _brotli,
}
PEERS = ("nncodec", *GENERAL)


class Peers:
    """Results of peers, computed when they are first asked for."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = json.loads(_STORE.read_text()) if _STORE.exists() else {}

    def sizes(self, name: str, arrays: dict[str, Any]) -> dict[str, Any]:
        """{peer: bytes} of a set of integers; `nncodec_tuned`, and `values_only` of the general ones."""
        key = f"{name} {_sets.fingerprint(arrays)}"
        if key not in self._known:
            values = b"".join(array.tobytes() for array in arrays.values())
            lines = "".join(f"{n} {v.dtype.str} {' '.join(map(str, v.shape))}\n" for n, v in arrays.items()).encode()
            standard = nncodec(arrays, how="integers")
            self._keep(
                key,
                {
                    "nncodec": standard["bytes"],
                    "nncodec_tuned": standard["tuned"],
                    **{peer: call(lines + values) for peer, call in GENERAL.items()},
                    "values_only": {peer: call(values) for peer, call in GENERAL.items()},
                },
            )
        result: dict[str, Any] = self._known[key]
        return result

    def trellis(self, name: str, delta: dict[str, Any]) -> list[dict[str, Any]]:
        """NNCodec's dependent quantization of a float delta: bytes and squared error at some settings."""
        key = f"trellis {name} {_sets.fingerprint(delta)}"
        if key not in self._known:
            mean = sum(float(np.square(v, dtype=np.float64).sum()) for v in delta.values())
            mean /= sum(v.size for v in delta.values())
            # four steps an octave, 0 for a step of 1: begin at an eleventh of the root mean square
            finest = round(2 * math.log2(mean)) - 14
            self._keep(key, nncodec(delta, how="trellis", qp=finest, scales=LAMBDA_SCALES))
        result: list[dict[str, Any]] = self._known[key]
        return result

    def _keep(self, key: str, value: Any) -> None:
        self._known[key] = value
        partial = _STORE.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
        partial.replace(_STORE)


def nncodec(arrays: dict[str, Any], **request: Any) -> Any:
    """NNCodec's answer to one request of `_nncodec.py` about these arrays."""
    python = environment(
        "nncodec-2.1.3",
        ["numpy<2", "pybind11", "setuptools", "wheel"],
        # from its source distribution; of what it requires only numpy is needed to code tensors
        ["--no-binary=nncodec", "--no-deps", "nncodec==2.1.3"],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "arrays.npz")
        np.savez(path, **_sets.numbered(arrays))
        request_path = Path(folder, "request.json")
        request_path.write_text(json.dumps([{"path": str(path), **request}]))
        script = str(Path(__file__).with_name("_nncodec.py"))
        done = subprocess.run([python, script, str(request_path)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)[0]


def interpolate(points: Sequence[tuple[float, float]], error: float) -> float | None:
    """Bytes at an error from (error, bytes) points: linear in logarithms between two; None outside and in gaps."""
    ordered = sorted((e, b) for e, b in points if e > 0)
    for (low, most), (high, least) in itertools.pairwise(ordered):
        if low <= error <= high and most <= _GAP * least:
            share = math.log(error / low) / math.log(high / low) if high > low else 0.0
            return float(most * (least / most) ** share)
    return None
