"""Arithmetic, element by element, with broadcasting.

A broadcast input receives the sum over what it was repeated along (numpy and ONNX broadcasting): every binary rule
ends in `unbroadcast`.
"""

from __future__ import annotations

import math

from .table import Site, gradient, gradient_each, widens

#: Numbers of the element types in ONNX that a gradient can have.
FLOATS = {"float32": 1, "float16": 10, "float64": 11}


def _binary(s: Site, gradient_of_result: str, index: int) -> str:
    return s.unbroadcast(gradient_of_result, s.y_shape, index)


@gradient("Add", 0)
def _(s: Site) -> str:
    return _binary(s, s.g, 0)


@gradient("Add", 1)
def _(s: Site) -> str:
    return _binary(s, s.g, 1)


@gradient("Sub", 0)
def _(s: Site) -> str:
    return _binary(s, s.g, 0)


@gradient("Sub", 1)
def _(s: Site) -> str:
    return s.op("Neg", _binary(s, s.g, 1))


@gradient("Mul", 0)
def _(s: Site) -> str:
    return _binary(s, s.op("Mul", s.g, s.x(1)), 0)


@gradient("Mul", 1)
def _(s: Site) -> str:
    return _binary(s, s.op("Mul", s.g, s.x(0)), 1)


@gradient("Div", 0)
def _(s: Site) -> str:
    return _binary(s, s.op("Div", s.g, s.x(1)), 0)


@gradient("Div", 1)
def _(s: Site) -> str:
    return s.op("Neg", _binary(s, s.op("Div", s.op("Mul", s.g, s.y), s.x(1)), 1))


@gradient("Pow", 0)
def _(s: Site) -> str:
    exponent = s.x(1)
    if exponent in s.graph.constants and s.graph.constants[exponent].size == 1:
        power = float(s.graph.constants[exponent].reshape(-1)[0])
        slope = s.x(0) if power == 2 else s.op("Pow", s.x(0), s.scalar(power - 1))
        return _binary(s, s.op("Mul", s.op("Mul", s.g, slope), s.scalar(power)), 0)
    slope = s.op("Mul", s.op("Pow", s.x(0), s.op("Sub", exponent, s.scalar(1))), exponent)
    return _binary(s, s.op("Mul", s.g, slope), 0)


@gradient("Pow", 1)
def _(s: Site) -> str:
    # x^p log x, and 0 where x is 0 (its limit for positive p)
    positive = s.op("Greater", s.x(0), s.scalar(0))
    log = s.op("Log", s.op("Where", positive, s.x(0), s.scalar(1)))
    return _binary(s, s.op("Mul", s.g, s.op("Mul", s.y, log)), 1)


@gradient_each("Sum")
def _(s: Site, index: int) -> str:
    return _binary(s, s.g, index)


@gradient_each("Mean")
def _(s: Site, index: int) -> str:
    return _binary(s, s.op("Mul", s.g, s.scalar(1 / len(s.node.inputs))), index)


def _winner(s: Site, index: int) -> str:
    # of equal inputs each gets an equal share, so that the sum is the slope along the diagonal
    mask = s.op("Cast", s.op("Equal", s.x(index), s.y), to=1)
    count = mask
    for other in range(len(s.node.inputs)):
        if other != index:
            count = s.op("Add", count, s.op("Cast", s.op("Equal", s.x(other), s.y), to=1))
    return _binary(s, s.op("Mul", s.g, s.op("Div", mask, count)), index)


gradient_each("Max")(_winner)
gradient_each("Min")(_winner)


def _chosen(s: Site, condition: str) -> str:
    # a product with 0 or 1: the runtime is several times slower on Where
    return s.op("Mul", s.g, s.op("Cast", condition, to=FLOATS[s.graph.types[s.y].dtype]))


@gradient("Where", 1)
def _(s: Site) -> str:
    return _binary(s, _chosen(s, s.x(0)), 1)


@gradient("Where", 2)
def _(s: Site) -> str:
    return _binary(s, _chosen(s, s.op("Not", s.x(0))), 2)


@gradient("Neg", 0)
def _(s: Site) -> str:
    return s.op("Neg", s.g)


@gradient("Abs", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Sign", s.x()))


@gradient("Exp", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.y)


@gradient("Log", 0)
def _(s: Site) -> str:
    return s.op("Div", s.g, s.x())


@gradient("Sqrt", 0)
def _(s: Site) -> str:
    return s.op("Div", s.op("Mul", s.g, s.scalar(0.5)), s.y)


@gradient("Reciprocal", 0)
def _(s: Site) -> str:
    return s.op("Neg", s.op("Mul", s.g, s.op("Mul", s.y, s.y)))


@gradient("Erf", 0)
def _(s: Site) -> str:
    bell = s.op("Exp", s.op("Neg", s.op("Mul", s.x(), s.x())))
    return s.op("Mul", s.op("Mul", s.g, bell), s.scalar(2 / math.sqrt(math.pi)))


@gradient("Sin", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Cos", s.x()))


@gradient("Cos", 0)
def _(s: Site) -> str:
    return s.op("Neg", s.op("Mul", s.g, s.op("Sin", s.x())))


@gradient("Tan", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Add", s.op("Mul", s.y, s.y), s.scalar(1)))


def _one_and_square(s: Site, one: float, square: str) -> str:
    """one + square x^2."""
    return s.op(square, s.scalar(one), s.op("Mul", s.x(), s.x()))


@gradient("Asin", 0)
def _(s: Site) -> str:
    return s.op("Div", s.g, s.op("Sqrt", _one_and_square(s, 1, "Sub")))


@gradient("Acos", 0)
def _(s: Site) -> str:
    return s.op("Neg", s.op("Div", s.g, s.op("Sqrt", _one_and_square(s, 1, "Sub"))))


@gradient("Atan", 0)
def _(s: Site) -> str:
    return s.op("Div", s.g, _one_and_square(s, 1, "Add"))


@gradient("Sinh", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Cosh", s.x()))


@gradient("Cosh", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Sinh", s.x()))


@gradient("Asinh", 0)
def _(s: Site) -> str:
    return s.op("Div", s.g, s.op("Sqrt", _one_and_square(s, 1, "Add")))


@gradient("Acosh", 0)
def _(s: Site) -> str:
    return s.op("Div", s.g, s.op("Sqrt", _one_and_square(s, -1, "Add")))


@gradient("Atanh", 0)
def _(s: Site) -> str:
    return s.op("Div", s.g, _one_and_square(s, 1, "Sub"))


@gradient("Mod", 0)
def _(s: Site) -> str:
    return _binary(s, s.g, 0)


@gradient("Mod", 1)
def _(s: Site) -> str:
    # x = n y + remainder with a whole number n
    whole = s.op("Round", s.op("Div", s.op("Sub", s.x(0), s.y), s.x(1)))
    return s.op("Neg", _binary(s, s.op("Mul", s.g, whole), 1))


@gradient("Identity", 0)
def _(s: Site) -> str:
    return s.g


@gradient("Dropout", 0)
def _(s: Site) -> str:
    # an inference graph: dropout passes its input on unless training_mode is set
    if s.has(2) and s.value(2).any() and not (s.has(1) and not s.value(1).any()):
        s.refuse("training_mode is set; export the model for inference")
    return s.g


@gradient("Cast", 0)
def _(s: Site) -> str:
    source = s.graph.types[s.x()].dtype
    if widens(s.graph, s.node):
        return s.g
    if source not in FLOATS:
        s.refuse("it reads quantized integers as numbers; use DequantizeLinear")
    return s.g if source == s.graph.types[s.y].dtype else s.op("Cast", s.g, to=FLOATS[source])
