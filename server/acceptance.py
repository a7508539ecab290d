"""Whether a delta can ever be merged: it decodes, fits the weights of its base, is finite, and its base is not too old.

Every check that can be made without decoding comes first. What fails here is rejected for good, with the reason sent to
the device; so nothing that may heal by waiting is checked here.
"""

from __future__ import annotations

import numpy as np

from sanderling.codec import CodecError, CodecLimits, decode_delta
from sanderling.codec.messages import Delta

from .errors import DeltaError
from .limits import Limits
from .store import Store

Shapes = dict[str, tuple[int, ...]]


class Bases:
    """Shapes of trainable weights by (model, version); releases never change, so they are read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shapes: dict[tuple[str, int], Shapes] = {}

    def shapes(self, model: str, version: int) -> Shapes | None:
        """The weights of that release, or None if there is no such release."""
        key = (model, version)
        if key not in self._shapes:
            rows = self._store.rows("SELECT weights FROM releases WHERE model = ? AND version = ?", [model, version])
            if not rows:
                return None
            if len(self._shapes) >= 256:
                self._shapes.clear()
            self._shapes[key] = {name: tuple(shape) for name, shape in rows[0]["weights"].items()}
        return self._shapes[key]

    def current(self, model: str) -> int | None:
        """The version that the fleet should run, or None for an unknown model."""
        rows = self._store.rows("SELECT current_version FROM models WHERE name = ?", [model])
        return rows[0]["current_version"] if rows else None


def check(delta: Delta, bases: Bases, limits: Limits) -> int:
    """The bytes that `delta` would take as plain float32. Raises `DeltaError` with the reason to reject it."""
    if len(delta.blob) > limits.largest_delta:
        raise DeltaError(f"{len(delta.blob)} bytes, at most {limits.largest_delta} are taken (limits.largest_delta)")
    if len(delta.label_histogram) > limits.most_classes:
        raise DeltaError(f"histogram of {len(delta.label_histogram)} classes, at most {limits.most_classes} are taken")
    if delta.samples == 0:
        raise DeltaError("learned from no samples: it would weigh nothing")
    current = bases.current(delta.model)
    if current is None:
        raise DeltaError(f"no model called {delta.model!r} was released here")
    shapes = bases.shapes(delta.model, delta.base_version)
    if shapes is None:
        raise DeltaError(f"{delta.model} has no version {delta.base_version}: its newest is {current}")
    if current - delta.base_version > limits.largest_staleness:
        raise DeltaError(f"base {delta.base_version} is over {limits.largest_staleness} releases behind {current}")
    if shapes != bases.shapes(delta.model, current):
        raise DeltaError(f"version {current} has other weights than base {delta.base_version}: install it first")
    try:
        size = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
        arrays = decode_delta(delta.blob, limits=CodecLimits(elements=size, decoded_bytes=4 * size))
    except CodecError as error:
        raise DeltaError(f"does not decode: {error}") from error
    if not arrays:
        raise DeltaError("holds no weights")
    for name, array in arrays.items():
        if shapes.get(name) != array.shape:
            raise DeltaError(f"weight {name[:80]!r} has shape {array.shape}, base has {shapes.get(name)}")
        if not np.isfinite(array).all():
            raise DeltaError(f"weight {name[:80]!r} has values that are not finite")
    return 4 * size
