"""Gradients of operators, one family per file; importing this package fills the table."""

from . import (
    activation,
    conv,
    elementwise,
    index,
    linear,
    loss,
    normal,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    shape,
    stops,
)  # fmt: skip
from .table import QUANTIZERS, REFUSED, RULES, STOPS, Entry, Site, integer_remedy

__all__ = [
    "QUANTIZERS", "REFUSED",
    "RULES",
    "STOPS",
    "Entry",
    "Site",
    "activation",
    "conv",
    "elementwise",
    "index",
    "integer_remedy",
    "linear",
    "loss",
    "normal",
    "pool",
    "quantize",
    "recurrent",
    "reduce",
    "resize",
    "shape",
    "stops",
]  # fmt: skip
