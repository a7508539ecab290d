"""NNCodec's side of `codec.py`: runs in an environment of NNCodec's own, reads requests from a file, prints JSON.

    python benchmarks/_nncodec.py REQUESTS.json

NNCodec (the reference software of ISO/IEC 15938-17) codes int32 tensors as they are, so what is compared is the coding
of the same integers. Its packages for PyTorch and TensorFlow models are not loaded: they are not needed for
tensors, and would pull in gigabytes. Every bitstream is decoded again and compared.

A request is {"path": npz file, "how": "integers" | "trellis" | "speed", ...}; an answer stands for each. `integers`
gives the smaller of two settings, with and without skipping of zero rows (scanning in blocks was larger on every set
that it was tried on), and as `tuned` the smallest over three lengths of the unary part besides; `trellis` gives bytes
and squared error of float tensors under dependent quantization (`use_dq`) for quantization parameters from `qp` on and
each lambda_scale in `scales` (NNCodec's default is 0: it looks at the error only); `speed` gives Mweights/s, median of
`rounds`.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

for _name in ("framework", "framework.pytorch_model", "framework.tensorflow_model", "framework.use_case_init"):
    sys.modules[f"nncodec.{_name}"] = mock.MagicMock()

from nncodec import nnc  # noqa: E402

#: `cabac_unary_length_minus1`: bins that count a magnitude one by one, before Golomb codes take over.
DEFAULT_UNARY = 10
OTHER_UNARY = (1, 24)


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


def integers(tensors: dict[str, Any]) -> dict[str, int]:
    """`bytes` with the unary length as it comes, and `tuned`; every bitstream is checked."""
    found: dict[tuple[int, bool], int] = {}
    for unary in (DEFAULT_UNARY, *OTHER_UNARY):
        for rows in (True, False):
            blob = encode(tensors, row_skipping=rows, cabac_unary_length_minus1=unary)
            back = decode(blob)
            assert list(back) == list(tensors), "names"
            assert all(np.array_equal(back[name], value) for name, value in tensors.items()), "values"
            found[unary, rows] = len(blob)
    default = min(size for (unary, _), size in found.items() if unary == DEFAULT_UNARY)
    return {"bytes": default, "tuned": min(found.values())}


def trellis(tensors: dict[str, Any], qp: int, scales: list[float]) -> list[dict[str, Any]]:
    """Bytes and squared error from a fine step on, until hardly anything is sent.

    Tensors of one dimension get the same step as the others (by default theirs is finer).
    """
    energy = sum(float(np.square(np.float64(value)).sum()) for value in tensors.values())
    found = []
    for scale in scales:
        error = 0.0
        for coarser in range(qp, qp + 60):
            if error > 0.98 * energy:
                break
            settings = {"qp": coarser, "nonweight_qp": coarser, "lambda_scale": scale}
            blob = encode(tensors, row_skipping=True, use_dq=True, **settings)
            back = decode(blob)
            error = sum(float(np.square(np.float64(back[n]) - np.float64(v)).sum()) for n, v in tensors.items())
            found.append({**settings, "bytes": len(blob), "squared_error": error, "share": error / energy})
    return found


def speed(tensors: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Mweights/s of encoding and decoding, by the clock and in processor time."""
    count = sum(value.size for value in tensors.values()) / 1e6
    blob = encode(tensors, row_skipping=True)
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: encode(tensors, row_skipping=True),
        "decode": lambda: decode(blob),
    }
    taken: dict[str, list[tuple[float, float]]] = {what: [] for what in calls}
    for _ in range(rounds):
        for what, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            taken[what].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        what: {
            "mweights_s": round(count / statistics.median(wall for wall, _ in times), 2),
            "cpu": round(count / statistics.median(cpu for _, cpu in times), 2),
        }
        for what, times in taken.items()
    }


def main() -> None:
    """Answer all requests."""
    answers: list[Any] = []
    for request in json.loads(Path(sys.argv[1]).read_text()):
        tensors = read(request["path"])
        if request["how"] == "trellis":
            answers.append(
                trellis({n: v.astype(np.float32) for n, v in tensors.items()}, request["qp"], request["scales"])
            )
            continue
        whole = {name: value.astype(np.int32) for name, value in tensors.items()}
        answers.append(integers(whole) if request["how"] == "integers" else speed(whole, request["rounds"]))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
