"""Gradients of operators, one family per file; importing this package fills the table."""

from . import activation, conv, elementwise, linear, normal, pool, reduce, shape, stops
from .table import RULES, STOPS, Entry, Site

__all__ = [
    "RULES", "STOPS", "Entry", "Site",
    "activation", "conv", "elementwise", "linear", "normal", "pool", "reduce", "shape", "stops",
]  # fmt: skip
