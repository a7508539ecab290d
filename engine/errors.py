"""What can go wrong in `engine`, whose fault it is, and the remedy.

::

    EngineError
    ├── ModelError                    the model: not ONNX, dynamic where it must be static, nothing to train
    │   └── UnsupportedOperatorError  an operator without a gradient rule: replace it, or freeze what lies before it
    ├── DataError                     the caller's arrays: wrong name, shape, type, a label out of range
    ├── PlanError                     a plan or trainer file: damaged, or of another version: make it again
    ├── MemoryLimitError              the operator's limit: too small (`smallest` says what would do), or reached
    ├── NonFiniteError                the training diverged: lower the learning rate; the last good weights are kept
    └── ExecutionError                the runtime refused a graph that we wrote: a bug of ours, please report it

Whatever is raised, the weights are as they were before the call, unless the class says otherwise.
"""

from __future__ import annotations


class EngineError(Exception):
    """Everything that this package raises on purpose."""


class ModelError(EngineError):
    """The model cannot be read, planned or trained as it is."""


class UnsupportedOperatorError(ModelError):
    """An operator has no gradient rule (or not for these attributes).

    Attributes: `operator` (its type), `node` (its name in the model), `model` (where the model came from).
    """

    def __init__(self, operator: str, node: str, model: str, reason: str) -> None:
        super().__init__(f"{model}: operator {operator} (node {node!r}) cannot be trained through: {reason}")
        self.operator = operator
        self.node = node
        self.model = model


class DataError(EngineError):
    """Inputs, targets or weights do not fit the model. Nothing was changed."""


class PlanError(EngineError):
    """A plan or trainer file is damaged, or was written by another version. Nothing was loaded."""


class MemoryLimitError(EngineError):
    """A memory limit cannot be met, or was reached while running.

    Attribute `smallest`: the smallest limit in bytes that would do, or 0 where that is not known.
    """

    def __init__(self, message: str, smallest: int = 0) -> None:
        super().__init__(message)
        self.smallest = smallest


class NonFiniteError(EngineError):
    """The loss or a gradient is NaN or infinite: no such value ever enters the weights.

    With several segments, tensors of later segments may already have taken this step's (finite) update when the
    gradient of an earlier segment turns out not to be finite; a loss that is not finite changes nothing.
    """


class ExecutionError(EngineError):
    """The runtime refused a graph that this package wrote. A bug of ours: please report it with the model."""
