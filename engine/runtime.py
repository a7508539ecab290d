"""Sessions of the stock runtime with our memory options: the one place that imports onnxruntime.

Strategy: no arena (freed memory goes back), memory pattern on (one planned block per run), one thread unless asked,
no spinning threads. Exceptions of the runtime are translated here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from .errors import EngineError, ExecutionError, MemoryLimitError, ModelError
from .graph import Array

#: Phrases by which the runtime says that memory ran out.
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "bad allocation", "std::length_error")


def options(threads: int = 1, optimize: bool = True) -> Any:
    """Session options. `optimize=False` keeps the graph as written (for checks)."""
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.enable_cpu_mem_arena = False
    chosen.enable_mem_pattern = True
    chosen.log_severity_level = 4  # what matters arrives as an exception
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return chosen


def translate(error: Exception, what: str, ours: bool = True) -> EngineError:
    """The error of this package that a runtime error stands for."""
    text = str(error)
    if isinstance(error, MemoryError) or any(phrase in text for phrase in _NO_MEMORY):
        return MemoryLimitError(f"memory ran out while {what}; allow more memory, or plan for a smaller limit")
    return (ExecutionError if ours else ModelError)(f"onnxruntime failed while {what}: {text}")


def session(model: bytes | str, threads: int = 1, optimize: bool = True, ours: bool = True) -> Any:
    """A session on the processor. `ours` says whose model it is when it does not load."""
    try:
        return ort.InferenceSession(model, options(threads, optimize), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exception classes share no base
        raise translate(error, "loading a model", ours) from error


def run_once(model: bytes, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
    """Load, run and forget."""
    try:
        return [np.asarray(value) for value in session(model).run(list(outputs), dict(feeds))]
    except EngineError:
        raise
    except Exception as error:
        raise translate(error, "evaluating a graph") from error
