"""Learning from a teacher's logits, and from labels beside.

Targets: {"labels": as for cross-entropy, "teacher": logits of the output's shape}, or the two as a tuple.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..errors import EngineError
from ..graph import Array
from .cross_entropy import CrossEntropy, check_labels, hard
from .table import LABELS, TEACHER, Loss, Options, OptionValue, Writer, before_activation, class_axis, number


class Distillation(Loss):
    """hard_weight cross-entropy + (1 - hard_weight) T^2 KL(teacher || model), both softened by the temperature T.

    `axis`: where the classes are, 0 for: found out.
    """

    defaults: ClassVar[Options] = {"temperature": 2.0, "hard_weight": 0.5, "axis": 0.0}

    def check_options(self, options: Options) -> None:
        """Temperature and weight are in their ranges."""
        if not (number(options, "temperature") > 0 and 0 <= number(options, "hard_weight") <= 1):
            raise EngineError("distillation needs a temperature above 0 and a hard_weight between 0 and 1")

    def write(self, w: Writer, output: str, options: Options) -> str:
        """Mean per sample over its positions."""
        temperature, hard_weight = number(options, "temperature"), number(options, "hard_weight")
        axis = class_axis(w, output, options, "distillation")
        logits = before_activation(w, output, "Softmax", axis)
        shape = w.shape(logits)
        positions = 1
        for length in shape[1:axis] + shape[axis + 1 :]:
            positions *= length
        inverse = w.scalar(1 / temperature)
        teacher = w.op("Mul", shape, w.input(TEACHER, shape), inverse)
        wanted = w.op("LogSoftmax", shape, teacher, axis=axis)
        given = w.op("LogSoftmax", shape, w.op("Mul", shape, logits, inverse), axis=axis)
        gap = w.op("Mul", shape, w.op("Exp", shape, wanted), w.op("Sub", shape, wanted, given))
        soft = w.per_sample(gap, positions)
        # Hinton's factor: gradients of the soft part shrink with the square of the temperature
        soft = w.op("Mul", shape[:1], soft, w.scalar(temperature**2 * (1 - hard_weight)))
        if hard_weight == 0:
            return soft
        labelled = w.per_sample(hard(w, logits, axis, CrossEntropy.defaults), positions)
        return w.op("Add", shape[:1], soft, w.op("Mul", shape[:1], labelled, w.scalar(hard_weight)))

    def prepare(self, targets: dict[str, Array], options: Mapping[str, OptionValue], classes: int) -> float:
        """Labels are classes."""
        if LABELS in targets:
            check_labels(targets[LABELS], None, classes)
        return super().prepare(targets, options, classes)
