"""Cross-entropy of one class per position. Targets: integer labels, the output's shape without the classes' axis.

Strategy: a one-hot tensor of the labels, weighted and smoothed, times the logarithms of the probabilities. A label
that is to be ignored becomes a number beyond the classes, whose one-hot row is all zeros. The mean is over the labels
that count (each by the weight of its class), as PyTorch computes it; their weight is added up on the host over the
whole batch, so micro-batches of any size add up to the same mean.

Source of label smoothing: Szegedy et al., "Rethinking the Inception Architecture" (2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..errors import DataError, EngineError, ModelError
from ..graph import Array
from .table import LABELS, Loss, Options, OptionValue, Writer, before_activation, class_axis, number, several


class CrossEntropy(Loss):
    """Minus the logarithm of the probability of the right class, its mean over all labels that count.

    `label_smoothing`: share of the target that is spread over all classes; `class_weights`: one per class;
    `ignore_index`: the label that does not count; `axis`: where the classes are, 0 for: found out.
    """

    defaults: ClassVar[Options] = {"label_smoothing": 0.0, "class_weights": (), "ignore_index": -100.0, "axis": 0.0}

    def check_options(self, options: Options) -> None:
        """Smoothing and weights are in their ranges."""
        if not 0 <= number(options, "label_smoothing") <= 1:
            raise EngineError("cross_entropy: label_smoothing must lie between 0 and 1")
        weights = several(options, "class_weights")
        if not all(0 <= c < math.inf for c in weights) or (weights and not any(weights)):
            raise EngineError("cross_entropy: class_weights must be finite, at least 0, and not all 0")
        for name in ("ignore_index", "axis"):
            if number(options, name) != int(number(options, name)):
                raise EngineError(f"cross_entropy: {name} must be a whole number")

    def write(self, w: Writer, output: str, options: Options) -> str:
        """Sum per sample over its labels: divided by their weight outside."""
        axis = class_axis(w, output, options, "cross_entropy")
        logits = before_activation(w, output, "Softmax", axis)
        return w.per_sample(hard(w, logits, axis, options))

    def prepare(self, targets: dict[str, Array], options: Mapping[str, OptionValue], classes: int) -> float:
        """The weight of all labels that count. A label that is ignored becomes the number of classes."""
        labels = targets[LABELS]
        ignored = labels == int(number(options, "ignore_index"))
        check_labels(labels, ignored, classes)
        weights = several(options, "class_weights")
        if ignored.any():
            targets[LABELS] = labels = np.where(ignored, np.int64(classes), labels.astype(np.int64))
        if not weights:
            total = float(labels.size - np.count_nonzero(ignored))
        else:
            total = float(np.array([*weights, 0.0])[labels].sum())
        if labels.size and not total:
            raise DataError("no label counts: all are ignored, or of classes of weight 0; leave this batch out")
        return total


def check_labels(labels: Array, ignored: Array | None, classes: int) -> None:
    """Raises DataError for a label that is no class and not ignored."""
    kept = labels if ignored is None or not ignored.any() else labels[~ignored]
    if kept.size:
        low, high = int(kept.min()), int(kept.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"labels run from {low} to {high}, but the model has {classes} classes: "
                f"labels must be 0 to {classes - 1}"
            )


def hard(w: Writer, logits: str, axis: int, options: Mapping[str, OptionValue]) -> str:
    """The cross-entropy of each class at each position (zero but for the labelled one, without smoothing)."""
    shape = w.shape(logits)
    classes = shape[axis]
    labels = w.input(LABELS, shape[:axis] + shape[axis + 1 :], "int64")
    smoothing = number(options, "label_smoothing")
    weights = np.array(several(options, "class_weights"), np.float32)
    ends = w.constant(np.array([0, 1 - smoothing], np.float32))
    wanted = w.op("OneHot", shape, labels, w.ints(classes), ends, axis=axis)
    if weights.size:
        if weights.size != classes:
            raise ModelError(f"{w.graph.source}: {weights.size} class_weights are given for {classes} classes")
        weights = weights.reshape([-1 if i == axis else 1 for i in range(axis, len(shape))])
        wanted = w.op("Mul", shape, wanted, w.constant(weights))
    if smoothing:
        # the spread part is there where a label counts: where one class of the one-hot row is on
        marks = w.constant(np.array([0, 1], np.float32))
        counts = w.op("OneHot", shape, labels, w.ints(classes), marks, axis=axis)
        kept = (*shape[:axis], 1, *shape[axis + 1 :])
        counts = w.op("ReduceSum", kept, counts, w.ints(axis), keepdims=1)
        share = (weights if weights.size else np.ones(1, np.float32)) * np.float32(smoothing / classes)
        spread = w.op("Mul", shape if weights.size else kept, counts, w.constant(share.astype(np.float32)))
        wanted = w.op("Add", shape, wanted, spread)
    log_probabilities = w.op("LogSoftmax", shape, logits, axis=axis)
    return w.op("Neg", shape, w.op("Mul", shape, log_probabilities, wanted))
