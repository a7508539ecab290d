"""What a device sends of its changes, in four ways that share one contract: `federated.py` compares them.

A `Sender` lives on one device: it turns each round's change of the weights into bytes, at most `budget` of them, and
keeps what was not sent where its method does that. `add` is the server's side: it reads nothing but the bytes and the
shapes of the model. Every method is held to the same number of
bytes.

- `Float32`: as they are.
- `Sanderling`: the codec's public functions; names, shapes and checksum are in its bytes, in nobody else's.
- `TopK`: the largest changes over the whole model, error feedback (Stich and others, "Sparsified SGD with Memory",
  2018; Aji and Heafield, 2017). Gaps between positions and 8-bit values are deflated apart; as many are sent as fit.
- `Qsgd`: stochastic rounding to {-1, 0, 1} times the Euclidean length of each bucket (Alistarh and others, "QSGD",
  2017, with s = 1, the sparse end, which these rates need). No error feedback: it is unbiased, and its error with
  these norms is larger than the change itself, so feedback would diverge. Buckets are as short as the budget allows.
  Gaps and signs are deflated, which takes fewer bytes here than Elias codes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sanderling.codec import accumulate, encode_delta

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Tensors = dict[str, F32]

#: About what names, shapes and codes take of a blob of ours.
_NAMES = 80
#: What of its budget our sender aims at: what one round leaves the next may use, and a call for nothing costs time.
_AIM = 0.97
#: Gaps from here on are written in more than a byte.
_ESCAPE = 255


class Sender(Protocol):
    """One device's side, and the server's."""

    def send(self, delta: Tensors) -> bytes:
        """The bytes of this round."""

    def add(self, blob: bytes, into: Tensors, weight: float) -> None:
        """Add `weight` times what the bytes say to `into`."""


class Float32:
    """Uncompressed."""

    def __init__(self, budget: int = 0, seed: int = 0) -> None:
        """Takes what it takes."""

    def send(self, delta: Tensors) -> bytes:
        """All values, little-endian."""
        return _flat(delta).astype("<f4").tobytes()

    def add(self, blob: bytes, into: Tensors, weight: float) -> None:
        """The inverse, weighted."""
        _add(np.frombuffer(blob, "<f4"), into, weight)


class Sanderling:
    """The codec, by its public functions.

    `quality` is steered from round to round, so that what was sent so far never exceeds the budget of the rounds so
    far: one call a round, seldom two. (`encode_delta(target_bytes=...)` meets each round's budget by itself, for three
    to five times the time of a call: `exact`.)
    """

    exact = False

    def __init__(self, budget: int, seed: int = 0) -> None:
        self.budget = budget
        self.residual: Tensors | None = None
        self.left = 0
        self.quality = 0.5

    def send(self, delta: Tensors) -> bytes:
        """What is owed, in as many bytes as are left."""
        if self.exact:
            blob, self.residual = encode_delta(delta, self.residual, target_bytes=self.budget)
            return blob
        self.left += self.budget
        while True:
            blob, residual = encode_delta(delta, self.residual, self.quality)
            # error falls about exponentially with bytes; names and shapes are not part of that
            ratio = max(_AIM * self.left - _NAMES, 1) / max(len(blob) - _NAMES, 1)
            self.quality = min(max(1 - (1 - self.quality) ** min(max(ratio, 0.5), 2.0), 1e-3), 0.999)
            if len(blob) <= self.left:
                break
        self.left -= len(blob)
        self.residual = residual
        return blob

    def add(self, blob: bytes, into: Tensors, weight: float) -> None:
        """Straight into the sum."""
        accumulate(blob, into, weight)


class TopK:
    """The largest changes."""

    def __init__(self, budget: int, seed: int = 0) -> None:
        self.budget = budget
        self.residual: F32 | None = None

    def send(self, delta: Tensors) -> bytes:
        """The largest of what is owed, as many as fit."""
        owed = _flat(delta) if self.residual is None else _flat(delta) + self.residual
        order = np.argsort(-np.abs(owed), kind="stable")
        blob = _largest(lambda count: self._blob(owed, order[:count]), len(owed), self.budget)
        self.residual = owed - self._values(blob, len(owed))
        return blob

    def add(self, blob: bytes, into: Tensors, weight: float) -> None:
        """Add at the positions sent."""
        _add(self._values(blob, sum(t.size for t in into.values())), into, weight)

    def _blob(self, owed: F32, chosen: I64) -> bytes:
        chosen = np.sort(chosen)
        scale = np.float32(np.abs(owed[chosen]).max(initial=1e-30) / 127)
        levels = np.rint(owed[chosen] / scale).astype(np.int8)
        gaps = _deflate(_gaps(chosen))
        return scale.tobytes() + len(gaps).to_bytes(4, "little") + gaps + _deflate(levels.tobytes())

    def _values(self, blob: bytes, count: int) -> F32:
        scale, size = np.frombuffer(blob[:4], np.float32)[0], int.from_bytes(blob[4:8], "little")
        result = np.zeros(count, np.float32)
        levels = np.frombuffer(_inflate(blob[8 + size :]), np.int8)
        result[_positions(_inflate(blob[8 : 8 + size]))] = levels * scale
        return result


class Qsgd:
    """Random rounding, unbiased."""

    def __init__(self, budget: int, seed: int = 0) -> None:
        self.budget = budget
        self._random = np.random.default_rng(seed)

    def send(self, delta: Tensors) -> bytes:
        """In buckets as short as the budget allows."""
        values = _flat(delta)
        draws = self._random.random(len(values), np.float32)
        # fewer buckets mean fewer that are not zero: counts of buckets are searched as TopK's counts are
        return _largest(lambda buckets: self._blob(values, draws, buckets), len(values), self.budget)

    def add(self, blob: bytes, into: Tensors, weight: float) -> None:
        """Add plus or minus the length of the bucket at each position sent."""
        total = sum(t.size for t in into.values())
        buckets, size = int.from_bytes(blob[:4], "little"), int.from_bytes(blob[4:8], "little")
        norms = np.frombuffer(blob[8 : 8 + 4 * buckets], "<f4")
        positions = _positions(_inflate(blob[8 + 4 * buckets : 8 + 4 * buckets + size]))
        signs = np.unpackbits(np.frombuffer(blob[8 + 4 * buckets + size :], np.uint8), count=len(positions))
        result = np.zeros(total, np.float32)
        result[positions] = np.where(signs, -1, 1) * norms[positions // -(-total // buckets)]
        _add(result, into, weight)

    @staticmethod
    def _blob(values: F32, draws: F32, buckets: int) -> bytes:
        length = -(-len(values) // buckets)
        buckets = -(-len(values) // length)
        padded = np.zeros(buckets * length, np.float32)
        padded[: len(values)] = values
        norms = np.sqrt(np.square(padded.reshape(buckets, length)).sum(axis=1)).astype("<f4")
        chosen = np.flatnonzero(np.abs(values) > draws * norms[np.arange(len(values)) // length])
        gaps = _deflate(_gaps(chosen))
        head = buckets.to_bytes(4, "little") + len(gaps).to_bytes(4, "little")
        signs: bytes = np.packbits(values[chosen] < 0).tobytes()
        return b"".join([head, norms.tobytes(), gaps, signs])


def _largest(make: Callable[[int], bytes], most: int, budget: int) -> bytes:
    """What `make` gives for the largest count, from 1 to `most`, whose bytes are within the budget."""
    low, high, best = 0, most + 1, b""
    while high - low > max(1, low >> 8):
        middle = min((low + high) // 2, 2 * low + 64)
        blob = make(middle)
        if len(blob) <= budget:
            low, best = middle, blob
        else:
            high = middle
    return best or make(1)


def _flat(tensors: Mapping[str, F32]) -> F32:
    flat: F32 = np.concatenate([t.reshape(-1) for t in tensors.values()])
    return flat


def _add(flat: npt.NDArray[np.floating[Any]], into: Tensors, weight: float) -> None:
    at = 0
    for tensor in into.values():
        tensor += np.float32(weight) * flat[at : at + tensor.size].reshape(tensor.shape)
        at += tensor.size


def _gaps(positions: I64) -> bytes:
    """How many are skipped before each position: as many bytes of 255 as it has 255s, then the rest."""
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(gaps // _ESCAPE + 1)
    out = np.full(int(ends[-1]) if len(ends) else 0, _ESCAPE, np.uint8)
    out[ends - 1] = gaps % _ESCAPE
    return out.tobytes()


def _positions(data: bytes) -> I64:
    digits = np.frombuffer(data, np.uint8)
    steps = np.cumsum(np.where(digits == _ESCAPE, _ESCAPE, digits.astype(np.int64) + 1))
    positions: I64 = steps[digits != _ESCAPE] - 1
    return positions


def _deflate(data: bytes) -> bytes:
    """The smaller of Huffman codes alone and with matches, without zlib's frame."""
    coders = [zlib.compressobj(9, zlib.DEFLATED, -15, 9, way) for way in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)]
    found: list[bytes] = [coder.compress(data) + coder.flush() for coder in coders]
    return min(found, key=len)


def _inflate(data: bytes) -> bytes:
    return zlib.decompress(data, -15)
