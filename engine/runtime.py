"""Sessions of the stock runtime with our memory options: the one place that imports onnxruntime.

Strategy. Inference sessions give freed memory back: no arena, memory pattern on, one thread unless asked, no spinning.
Sessions of training steps run exactly what we wrote: the runtime's own optimizer is off, and nodes run in the order
of the file (the lowest index among those that are ready). All of them share one arena of a size planned beforehand,
in which every tensor is allocated when it is written and freed after its last use: so memory is the lifetimes that
`lifetimes.py` computes, and a step touches no page for the first time. Exceptions are translated here, nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from .errors import DataError, EngineError, ExecutionError, MemoryLimitError, ModelError
from .graph import Array

#: What the shared arena grows by when a plan's size for it was too small, in bytes.
_GROWTH = 2**20
#: How the runtime says that an index (a token number) is beyond a table.
_OUT_OF_RANGE = "out of data bounds"
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


def open_arena(size: int) -> None:
    """Make a new arena of `size` bytes for the sessions of steps made from now on.

    Its pages become resident when they are first used. The arena before it is freed with the last session made in it.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    settings = {
        "max_mem": 0,
        "arena_extend_strategy": 0,  # regions of the sizes given here, instead of one for every request
        "initial_chunk_size_bytes": max(size, 1),
        "initial_growth_chunk_size_bytes": _GROWTH,
        "max_power_of_two_extend_bytes": _GROWTH,
        "max_dead_bytes_per_chunk": 1,  # no tensor takes more than it asked for
    }
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(settings))


def step_session(model: bytes, threads: int = 1) -> Any:
    """A session of a training step, in the arena opened last."""
    chosen = options(threads)
    chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    chosen.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    chosen.enable_cpu_mem_arena = True
    chosen.enable_mem_pattern = False
    chosen.enable_mem_reuse = False  # it keeps a dead tensor until another of its size comes along
    chosen.add_session_config_entry("session.use_env_allocators", "1")
    # at any level of optimization it copies DequantizeLinear nodes with several readers to the end of the order
    chosen.add_session_config_entry("session.disable_quant_qdq", "1")
    chosen.add_session_config_entry("session.use_device_allocator_for_initializers", "1")  # not in the arena
    try:
        return ort.InferenceSession(model, chosen, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exception classes share no base
        raise translate(error, "loading a step of the plan") from error


def translate(error: Exception, what: str, ours: bool = True) -> EngineError:
    """The error of this package that a runtime error stands for."""
    text = str(error)
    if isinstance(error, MemoryError) or any(phrase in text for phrase in _NO_MEMORY):
        return MemoryLimitError(f"memory ran out while {what}; allow more memory, or plan for a smaller limit")
    if ours and _OUT_OF_RANGE in text:
        return DataError(f"an index in the inputs is out of range while {what}: {text.rpartition(': ')[2]}")
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
