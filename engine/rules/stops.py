"""Operators without a gradient, listed so that none is missing by oversight."""

from __future__ import annotations

from .table import stop

stop(
    "its result is not a real number (a truth value, an index, a shape)",
    "And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less",
    "LessOrEqual", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "Shape", "Size", "Xor",
)  # fmt: skip
stop("its derivative is zero wherever it exists", "Ceil", "Floor", "Round", "Sign")
stop("its result does not depend on the value of its inputs", "ConstantOfShape", "EyeLike", "Range")
