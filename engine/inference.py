"""Predictions with the same memory options as training: a thin helper, not a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .graph import Array
from .runtime import session, translate


class Predictor:
    """A loaded inference model."""

    def __init__(self, model: str | Path | bytes, threads: int = 1) -> None:
        """Raises ModelError for what the runtime does not load."""
        self._session = session(model if isinstance(model, bytes) else str(model), threads, ours=False)
        self.input_names = [i.name for i in self._session.get_inputs()]
        self.output_names = [o.name for o in self._session.get_outputs()]
        first = self._session.get_inputs()[0].shape
        self._fixed = first[0] if first and isinstance(first[0], int) else None

    def __call__(self, inputs: Array | Mapping[str, Array], batch: int = 64) -> dict[str, Array]:
        """All outputs for inputs [N, ...], `batch` samples at a time. Raises DataError."""
        feeds = dict(inputs) if isinstance(inputs, Mapping) else {self.input_names[0]: inputs}
        if set(feeds) != set(self.input_names):
            raise DataError(f"inputs given: {', '.join(feeds)}; the model has {', '.join(self.input_names)}")
        counts = {len(a) for a in feeds.values()}
        if len(counts) != 1 or counts == {0}:
            raise DataError(f"the inputs have {sorted(counts)} samples; all need the same number, at least one")
        (samples,) = counts
        size = self._fixed or batch
        parts: list[list[Any]] = []
        for start in range(0, samples, size):
            part = {n: np.ascontiguousarray(a[start : start + size]) for n, a in feeds.items()}
            missing = size - len(part[self.input_names[0]]) if self._fixed else 0
            if missing:
                part = {n: np.concatenate([a, np.repeat(a[:1], missing, 0)]) for n, a in part.items()}
            try:
                outputs = self._session.run(None, part)
            except Exception as error:  # the runtime's exception classes share no base
                failed = translate(error, "predicting", ours=False)
                raise DataError(f"the inputs do not fit the model: {failed}") from error
            parts.append([o[: size - missing] for o in outputs] if missing else outputs)
        return {n: np.concatenate([p[i] for p in parts]) for i, n in enumerate(self.output_names)}


def predict(
    model: str | Path | bytes, inputs: Array | Mapping[str, Array], batch: int = 64
) -> Array | dict[str, Array]:
    """The outputs for inputs [N, ...]: the array when the model has one output, else {output name: array}.

    Raises ModelError, DataError.
    """
    outputs = Predictor(model)(inputs, batch)
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def evaluate(model: str | Path | bytes, inputs: Array | Mapping[str, Array], labels: Array, batch: int = 64) -> float:
    """Share of samples whose largest value in the first output is at their label, 0 to 1. Raises as `predict`."""
    predictor = Predictor(model)
    logits = predictor(inputs, batch)[predictor.output_names[0]]
    if logits.ndim != 2 or len(logits) != len(labels):
        raise DataError(f"labels [N] are compared with logits [N, C]; got {len(labels)} and {list(logits.shape)}")
    return float(np.mean(np.argmax(logits, axis=1) == np.asarray(labels)))
