"""How good a model is on stored samples: accuracy and mean cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .gate import Score
from .limits import LIMITS
from .runtime import Runtime, scores
from .store import Store
from .tensors import stack, unpack


def evaluate(runtime: Runtime, store: Store, identifiers: Sequence[int]) -> Score:
    """The score over these samples, read a batch at a time; raises `ServingError` when they do not fit the model."""
    right, loss, count = 0, 0.0, 0
    for begin in range(0, len(identifiers), LIMITS.evaluation_batch):
        samples = store.fetch(identifiers[begin : begin + LIMITS.evaluation_batch])
        if not samples:
            continue
        labels = np.array([label for _, label in samples])
        logits = scores(runtime.run(stack([unpack(data) for data, _ in samples]))).astype(np.float64)
        right += int((logits.argmax(axis=1) == labels).sum())
        shifted = logits - logits.max(axis=1, keepdims=True)
        logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        loss -= float(logarithms[np.arange(len(labels)), labels].sum())
        count += len(labels)
    return Score(right / count if count else 0.0, loss / count if count else 0.0, count)
