"""NNCodec's side of `codec.py`: runs in an environment of NNCodec's own, reads requests from a file, prints JSON.

    python benchmarks/_nncodec.py REQUESTS.json

NNCodec (the reference software of ISO/IEC 15938-17) codes int32 tensors as they are, so what is compared is the coding
of the same integers. Its packages for PyTorch and TensorFlow models are not loaded: they are not needed for
tensors, and would pull in gigabytes. Every bitstream is decoded again and compared.

A request is {"path": npz file, "how": "integers" | "trellis" | "speed", ...}; an answer stands for each. `integers`
takes the smaller of two settings, with and without skipping of zero rows (scanning in blocks was larger on every set
that it was tried on); `trellis` gives bytes and squared error of float tensors under dependent quantization
(`use_dq`) for each [qp, lambda_scale] in `points` (NNCodec's default is a lambda_scale of 0: distortion only); `speed`
gives Mweights/s, median of `rounds`.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

for _name in ("framework", "framework.pytorch_model", "framework.tensorflow_model", "framework.use_case_init"):
    sys.modules[f"nncodec.{_name}"] = mock.MagicMock()

from nncodec import nnc  # noqa: E402


def read(path: str) -> dict[str, Any]:
    """The tensors of a file written by `codec.py`, in order."""
    with np.load(path) as stored:
        return {key[5:].replace("\x01", "/"): stored[key] for key in sorted(stored.files)}


def encode(tensors: dict[str, Any], **settings: Any) -> bytes:
    """NNCodec's whole bitstream."""
    with contextlib.redirect_stdout(io.StringIO()):
        return bytes(nnc.compress(dict(tensors), bitstream_path=None, return_bitstream=True, **settings))


def decode(blob: bytes) -> dict[str, Any]:
    """The tensors of a bitstream."""
    result: dict[str, Any] = nnc.decompress(bytearray(blob))
    return result


def integers(tensors: dict[str, Any]) -> dict[str, Any]:
    """Bytes by setting, each checked; `bytes` is the smallest."""
    found: dict[str, int] = {}
    for rows in (True, False):
        blob = encode(tensors, row_skipping=rows)
        back = decode(blob)
        assert list(back) == list(tensors), "names"
        assert all(np.array_equal(back[name], value) for name, value in tensors.items()), "values"
        found["skip zero rows" if rows else "plain"] = len(blob)
    return {"bytes": min(found.values()), "settings": found}


def trellis(tensors: dict[str, Any], points: list[tuple[int, float]]) -> list[dict[str, Any]]:
    """Bytes and squared error at each point; tensors of one dimension get the same step as the others."""
    found = []
    for qp, scale in points:
        blob = encode(tensors, row_skipping=True, qp=qp, nonweight_qp=qp, use_dq=True, lambda_scale=scale)
        back = decode(blob)
        error = sum(float(np.square(np.float64(back[n]) - np.float64(v)).sum()) for n, v in tensors.items())
        found.append({"qp": qp, "lambda_scale": scale, "bytes": len(blob), "squared_error": error})
    return found


def speed(tensors: dict[str, Any], rounds: int) -> dict[str, float]:
    """Mweights/s of encoding and decoding."""
    count = sum(value.size for value in tensors.values()) / 1e6
    blob = encode(tensors, row_skipping=True)
    times: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(rounds):
        start = time.perf_counter()
        encode(tensors, row_skipping=True)
        middle = time.perf_counter()
        decode(blob)
        times["encode"].append(middle - start)
        times["decode"].append(time.perf_counter() - middle)
    return {what: round(count / statistics.median(taken), 2) for what, taken in times.items()}


def main() -> None:
    """Answer all requests."""
    answers: list[Any] = []
    for request in json.loads(Path(sys.argv[1]).read_text()):
        tensors = read(request["path"])
        if request["how"] == "trellis":
            answers.append(trellis({n: v.astype(np.float32) for n, v in tensors.items()}, request["points"]))
            continue
        whole = {name: value.astype(np.int32) for name, value in tensors.items()}
        answers.append(integers(whole) if request["how"] == "integers" else speed(whole, request["rounds"]))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
