"""Gradients of operators, one family per file; importing this package fills the table."""

from . import activation, conv, elementwise, linear, loss, normal, pool, quantize, recurrent, reduce, shape, stops
from .table import QUANTIZERS, RULES, STOPS, Entry, Site

__all__ = [
    "QUANTIZERS", "RULES", "STOPS", "Entry", "Site",
    "activation", "conv", "elementwise", "linear", "loss", "normal", "pool", "quantize", "recurrent", "reduce", "shape",
    "stops",
]  # fmt: skip
