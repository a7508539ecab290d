"""Learns: automatic differentiation over ONNX graphs, memory planning, training on the stock onnxruntime.

Names are imported when they are first used (PEP 562), so that importing this package, or a light module of it, costs
neither numpy nor a runtime. `compile`, `read_weights`, `export_model` and `models` need `onnx`; training does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checker import gradcheck
    from .data import Dataset, load_dataset
    from .errors import (
        DataError,
        EngineError,
        ExecutionError,
        MemoryLimitError,
        ModelError,
        NonFiniteError,
        PlanError,
        UnsupportedOperatorError,
    )
    from .inference import evaluate, predict
    from .memory import enforce_limit, parse_size, peak_resident_bytes, resident_bytes
    from .plan import TrainingPlan, load_plan
    from .planner import compile
    from .trainer import Trainer
    from .weights import export_model, read_weights

_HOME = {
    "DataError": "errors", "EngineError": "errors", "ExecutionError": "errors", "MemoryLimitError": "errors",
    "ModelError": "errors", "NonFiniteError": "errors", "PlanError": "errors", "UnsupportedOperatorError": "errors",
    "Dataset": "data", "load_dataset": "data",
    "gradcheck": "checker",
    "evaluate": "inference", "predict": "inference",
    "enforce_limit": "memory", "parse_size": "memory", "peak_resident_bytes": "memory", "resident_bytes": "memory",
    "TrainingPlan": "plan", "load_plan": "plan",
    "compile": "planner",
    "Trainer": "trainer",
    "export_model": "weights", "read_weights": "weights",
}  # fmt: skip

__all__ = [
    "DataError", "Dataset", "EngineError", "ExecutionError", "MemoryLimitError", "ModelError", "NonFiniteError",
    "PlanError", "Trainer", "TrainingPlan", "UnsupportedOperatorError", "compile", "enforce_limit", "evaluate",
    "export_model", "gradcheck", "load_dataset", "load_plan", "parse_size", "peak_resident_bytes", "predict",
    "read_weights", "resident_bytes",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
