"""Operators without a gradient, and operators that are refused, listed so that none is missing by oversight."""

from __future__ import annotations

from .table import refused, stop

stop(
    "its result is not a real number (a truth value, an index, a shape)",
    "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Equal", "Greater",
    "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or",
    "Shape", "Size", "Xor",
)  # fmt: skip
stop("its derivative is zero wherever it exists", "Ceil", "Floor", "Round", "Sign")
stop("its result does not depend on the value of its inputs", "BlackmanWindow", "ConstantOfShape",
     "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix", "Range")  # fmt: skip

refused(
    "it samples at positions that depend on values",
    "AffineGrid", "DeformConv", "GridSample", "MaxRoiPool", "MaxUnpool", "RoiAlign",
)  # fmt: skip
refused("it transforms signals; do that before the model", "DFT", "STFT")
refused("it keeps a state between calls", "CausalConvWithState", "LinearAttention", "TensorScatter")
refused(
    "it is rare, and has no gradient rule yet",
    "CenterCropPad", "Col2Im", "CumProd", "Det", "GlobalLpPool", "Hardmax", "SwiGLU", "Unique",
)  # fmt: skip
refused(
    "its numbers are integers; quantize the model with QuantizeLinear and DequantizeLinear",
    "BitCast", "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
)  # fmt: skip
refused(
    "it builds sequences or optional values that shapes and constants do not decide",
    "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct",
    "SequenceInsert", "SplitToSequence",
)  # fmt: skip
refused(
    "it draws random numbers; export the model for inference",
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)  # fmt: skip
refused("control flow is not differentiated, but for an If that shapes decide", "If", "Loop", "Scan", "SequenceMap")
refused("it is the old form of an operator that reading converts", "Scatter", "Upsample")
