"""Optimizers: how gradients become new weights, and in how many bytes they remember.

Strategy: a group of weights is one flat array, so one step is a handful of vector operations however many tensors
there are; arrays go through in pieces that stay in the cache, so temporaries are small. `updates.py` has the formulas,
which see float32 only; `state.py` keeps the running means, as float32 or in a byte per number.
"""

from __future__ import annotations

from .state import STATE_FORMATS, OptimizerState, Scratch, Slot, check_state, state_bytes
from .updates import OPTIMIZERS, Optimizer, check_optimizer, make_optimizer

__all__ = [
    "OPTIMIZERS", "STATE_FORMATS", "Optimizer", "OptimizerState", "Scratch", "Slot", "check_optimizer", "check_state",
    "make_optimizer", "state_bytes",
]  # fmt: skip
