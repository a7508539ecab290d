"""Losses: one per file, as entries of a table.

Strategy: a loss writes ONNX nodes that give one value per sample; `loss.py` weighs these with the run-time input
`SAMPLE_WEIGHT` and adds them up. The weights are what makes the sum a mean: 1/N for N samples, or 1 over the weight of
all labels that count, which is known on the host before the first micro-batch runs. So a loss has a second half that
looks at the targets of a whole batch: it checks them, and says what to divide by. Needs no `onnx`.
"""

from __future__ import annotations

from ..errors import EngineError
from .absolute import Absolute, Huber
from .binary import BinaryCrossEntropy
from .cross_entropy import CrossEntropy
from .distillation import Distillation
from .output import Output
from .squared import Squared
from .table import LABELS, LOSS, SAMPLE_WEIGHT, TARGETS, TEACHER, Loss, Options, OptionValue, Writer

#: Name -> loss.
LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "binary_cross_entropy": BinaryCrossEntropy(),
    "mse": Squared(),
    "l1": Absolute(),
    "huber": Huber(),
    "distillation": Distillation(),
    "output": Output(),
}

__all__ = [
    "LABELS", "LOSS", "LOSSES", "SAMPLE_WEIGHT", "TARGETS", "TEACHER", "Loss", "OptionValue", "Options", "Writer",
    "find_loss",
]  # fmt: skip


def find_loss(name: str) -> Loss:
    """A loss by name. Raises EngineError."""
    if name not in LOSSES:
        raise EngineError(f"there is no loss {name!r}; choose one of {', '.join(LOSSES)}")
    return LOSSES[name]
