"""Lowering: from the operators that the rules write to the operators that the runtime runs, in the order it runs them.

Strategy: we are the compiler. The runtime's own optimizer is off in training steps and it runs nodes in the order in
which they are written, so what a step computes, when, and in how much memory is decided here. A pass is a function
of a `Program` that says whether it changed it; the runner checks after each that the program is still whole. One pass
per file. All of them keep results equal up to the rounding of float32, and decide by the operator and its shapes
alone, never by what surrounds a node, wherever rounding depends on it: an operator that is recomputed gives the same
bits as the first time.
"""

from .program import Program
from .runner import lower

__all__ = ["Program", "lower"]
