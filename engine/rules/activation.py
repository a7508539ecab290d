"""Activation functions.

At a kink the slope is the one of the flat side (as in PyTorch): 0 for Relu at 0.
"""

from __future__ import annotations

import math

from .table import Site, gradient


def _where(s: Site, condition: str, then: str | None = None, otherwise: str | None = None) -> str:
    zero = s.scalar(0)
    return s.op("Where", condition, then or zero, otherwise or zero)


@gradient("Relu", 0)
def _(s: Site) -> str:
    # a product with 0 or 1: the runtime is several times slower on Where, and twice on Sign
    return s.op("Mul", s.g, s.op("Cast", s.op("Greater", s.y, s.scalar(0)), to=1))


@gradient("LeakyRelu", 0)
def _(s: Site) -> str:
    slope = s.scalar(s.attribute("alpha", 0.01))
    return _where(s, s.op("Greater", s.x(), s.scalar(0)), s.g, s.op("Mul", s.g, slope))


@gradient("PRelu", 0)
def _(s: Site) -> str:
    return _where(s, s.op("Greater", s.x(), s.scalar(0)), s.g, s.op("Mul", s.g, s.x(1)))


@gradient("PRelu", 1)
def _(s: Site) -> str:
    negative = s.op("Min", s.x(), s.scalar(0))
    return s.unbroadcast(s.op("Mul", s.g, negative), s.y_shape, 1)


@gradient("Elu", 0)
def _(s: Site) -> str:
    # for negative x the slope is alpha exp(x) = y + alpha
    alpha = s.scalar(s.attribute("alpha", 1.0))
    return _where(s, s.op("Greater", s.x(), s.scalar(0)), s.g, s.op("Mul", s.g, s.op("Add", s.y, alpha)))


@gradient("Softplus", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Sigmoid", s.x()))


@gradient("Clip", 0)
def _(s: Site) -> str:
    gradient_of_x = s.g
    if s.has(1):
        gradient_of_x = _where(s, s.op("Greater", s.x(), s.x(1)), gradient_of_x)
    if s.has(2):
        gradient_of_x = _where(s, s.op("Less", s.x(), s.x(2)), gradient_of_x)
    return gradient_of_x


@gradient("Sigmoid", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Mul", s.y, s.op("Sub", s.scalar(1), s.y)))


@gradient("Tanh", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Sub", s.scalar(1), s.op("Mul", s.y, s.y)))


@gradient("HardSigmoid", 0)
def _(s: Site) -> str:
    alpha = s.attribute("alpha", 0.2)
    inside = s.op("And", s.op("Greater", s.y, s.scalar(0)), s.op("Less", s.y, s.scalar(1)))
    return _where(s, inside, s.op("Mul", s.g, s.scalar(alpha)))


@gradient("HardSwish", 0)
def _(s: Site) -> str:
    # y = x clip(x/6 + 1/2, 0, 1): slope x/3 + 1/2 between -3 and 3, 0 below, 1 above
    middle = s.op("Add", s.op("Mul", s.x(), s.scalar(1 / 3)), s.scalar(0.5))
    slope = s.op("Where", s.op("Greater", s.x(), s.scalar(-3)), middle, s.scalar(0))
    slope = s.op("Where", s.op("Less", s.x(), s.scalar(3)), slope, s.scalar(1))
    return s.op("Mul", s.g, slope)


@gradient("Gelu", 0)
def _(s: Site) -> str:
    x = s.x()
    if s.attribute("approximate", "none") == "tanh":
        k = math.sqrt(2 / math.pi)
        square = s.op("Mul", x, x)
        inner = s.op("Mul", x, s.op("Add", s.scalar(k), s.op("Mul", square, s.scalar(k * 0.044715))))
        t = s.op("Tanh", inner)
        rise = s.op("Add", s.scalar(k), s.op("Mul", square, s.scalar(3 * k * 0.044715)))
        bell = s.op("Mul", s.op("Mul", x, rise), s.op("Sub", s.scalar(1), s.op("Mul", t, t)))
        slope = s.op("Mul", s.op("Add", s.op("Add", t, s.scalar(1)), bell), s.scalar(0.5))
        return s.op("Mul", s.g, slope)
    half = s.op("Mul", s.op("Add", s.op("Erf", s.op("Mul", x, s.scalar(math.sqrt(0.5)))), s.scalar(1)), s.scalar(0.5))
    density = s.op("Exp", s.op("Mul", s.op("Mul", x, x), s.scalar(-0.5)))
    bell = s.op("Mul", s.op("Mul", x, density), s.scalar(1 / math.sqrt(2 * math.pi)))
    return s.op("Mul", s.g, s.op("Add", half, bell))


@gradient("Softmax", 0)
def _(s: Site) -> str:
    axis = s.attribute("axis", -1)
    weighted = s.op("Mul", s.g, s.y)
    return s.op("Sub", weighted, s.op("Mul", s.y, s.total(weighted, [axis])))


@gradient("LogSoftmax", 0)
def _(s: Site) -> str:
    axis = s.attribute("axis", -1)
    return s.op("Sub", s.g, s.op("Mul", s.op("Exp", s.y), s.total(s.g, [axis])))
