"""Prints digests of blobs of larger data, one a line: run under several versions of numpy, the lines must be equal.

    python tests/codec/digests.py

Data come from integer arithmetic alone (a multiplicative hash of positions), so that they are the same everywhere.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from sanderling.codec import encode_delta, encode_integers
from sanderling.codec.files.pack import pack_file

I64 = npt.NDArray[np.int64]


def noise(count: int, seed: int) -> I64:
    """`count` numbers from -2**15 to 2**15 - 1, nearly a bell."""
    at = np.arange(count, dtype=np.uint64) + np.uint64(seed << 32)
    total = np.zeros(count, np.int64)
    for constant in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93):
        mixed = (at ^ (at >> np.uint64(29))) * np.uint64(constant)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(constant)
        total += (mixed >> np.uint64(48)).astype(np.int64) - 2**15
    return total >> 2


def matrices(seed: int) -> dict[str, I64]:
    """Magnitudes that follow rows and columns, as in changes of weights."""
    found: dict[str, I64] = {}
    for index, (rows, columns) in enumerate([(64, 300), (500, 40), (128, 27), (1, 900), (33, 1)]):
        values = noise(rows * columns, seed + index).reshape(rows, columns)
        row = np.arange(rows) % 7
        column = np.arange(columns) % 5
        found[f"layer{index}.weight"] = values >> (5 + row[:, None] + column[None, :])
    return found


def main() -> None:
    """Digests of integers, deltas at qualities and sizes, and a packed file."""
    blobs = [encode_integers(matrices(seed)) for seed in range(4)]
    for seed in range(4):
        delta = {k: np.ldexp(v.astype(np.float32), -20 - seed).astype(np.float32) for k, v in matrices(seed).items()}
        residual = None
        for quality in (0.5, 0.9, 0.99):
            blob, residual = encode_delta(delta, residual, quality)
            blobs.append(blob)
            blobs.append(b"".join(v.tobytes() for v in residual.values()))
        blobs.append(encode_delta(delta, target_bytes=3000)[0])
    blobs.append(pack_file(noise(50_000, 9).astype("<f4").tobytes(), "noise.bin"))
    for blob in blobs:
        print(len(blob), hashlib.sha256(blob).hexdigest())


if __name__ == "__main__":
    main()
