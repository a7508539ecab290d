"""Activation functions.

At a kink the slope is the one of the flat side (as in PyTorch): 0 for Relu at 0. Rules are written in the fewest passes
over the tensor: for the runtime an elementwise operator costs what reading and writing its tensors costs.
"""

from __future__ import annotations

import math

import numpy as np

from .elementwise import FLOATS
from .table import Site, gradient

#: A power of two that takes every normal number of float32 past 1.
_STEEP = 2.0**126


def step(s: Site, tensor: str) -> str:
    """1 where a tensor is above 0, else 0: one pass where the runtime has it (float32), else two.

    The runtime is several times slower on Where than on a product with such a mask.
    """
    if s.graph.types[s.y].dtype == "float32":
        return s.op("HardSigmoid", tensor, alpha=_STEEP, beta=0.0)
    return mask(s, s.op("Greater", tensor, s.scalar(0)))


def _next(value: np.float32, way: int) -> np.float32:
    """The next number upwards or downwards that is no subnormal (a processor may take those for 0)."""
    tiny = np.finfo(np.float32).tiny
    return np.float32(way * tiny) if value == 0 else np.nextafter(value, np.float32(way * np.inf))


def mask(s: Site, condition: str) -> str:
    """A truth value as 1 or 0 in the element type of the node."""
    return s.op("Cast", condition, to=FLOATS[s.graph.types[s.y].dtype])


def _slope_below(s: Site, below: str) -> str:
    """The gradient where x > 0, and times `below` elsewhere."""
    above = step(s, s.x())
    return s.op("Mul", s.g, s.op("Add", above, s.op("Mul", s.op("Sub", s.scalar(1), above), below)))


@gradient("Relu", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, step(s, s.y))


@gradient("LeakyRelu", 0)
def _(s: Site) -> str:
    slope = s.attribute("alpha", 0.01)
    if s.graph.types[s.y].dtype == "float32" and 0 <= slope < 1:
        # from the slope below to 1 in one step: max(slope, min(1, steep x + slope)), slope at 0
        risen = s.op("HardSigmoid", s.x(), alpha=_STEEP, beta=float(slope))
        return s.op("Mul", s.g, s.op("Clip", risen, s.scalar(slope)))
    return _slope_below(s, s.scalar(slope))


@gradient("PRelu", 0)
def _(s: Site) -> str:
    return _slope_below(s, s.x(1))


@gradient("PRelu", 1)
def _(s: Site) -> str:
    negative = s.op("Clip", s.x(), "", s.scalar(0))
    return s.unbroadcast(s.op("Mul", s.g, negative), s.y_shape, 1)


@gradient("Elu", 0)
def _(s: Site) -> str:
    # for negative x the slope is alpha exp(x) = y + alpha; for positive x, min(y, 0) leaves alpha to be put right
    alpha = s.attribute("alpha", 1.0)
    below = s.op("Add", s.op("Clip", s.y, "", s.scalar(0)), s.scalar(alpha))
    if alpha == 1.0:
        return s.op("Mul", s.g, below)
    return _slope_below(s, below)


@gradient("Celu", 0)
def _(s: Site) -> str:
    # for negative x the slope is exp(x / alpha) = y / alpha + 1
    slope = s.op("Add", s.op("Mul", s.y, s.scalar(1 / s.attribute("alpha", 1.0))), s.scalar(1))
    return _slope_below(s, slope)


@gradient("Selu", 0)
def _(s: Site) -> str:
    # for negative x the slope is gamma alpha exp(x) = y + gamma alpha
    alpha, gamma = s.attribute("alpha", 1.6732632423543772), s.attribute("gamma", 1.0507009873554805)
    slope = s.op(
        "Where", s.op("Greater", s.x(), s.scalar(0)), s.scalar(gamma), s.op("Add", s.y, s.scalar(gamma * alpha))
    )
    return s.op("Mul", s.g, slope)


@gradient("ThresholdedRelu", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, mask(s, s.op("Greater", s.x(), s.scalar(s.attribute("alpha", 1.0)))))


@gradient("Shrink", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, mask(s, s.op("Greater", s.op("Abs", s.x()), s.scalar(s.attribute("lambd", 0.5)))))


@gradient("Softsign", 0)
def _(s: Site) -> str:
    share = s.op("Sub", s.scalar(1), s.op("Abs", s.y))
    return s.op("Mul", s.g, s.op("Mul", share, share))


@gradient("Mish", 0)
def _(s: Site) -> str:
    # y = x t with t = tanh(log(1 + exp x)): slope t + x (1 - t^2) sigmoid(x)
    t = s.op("Tanh", s.op("Softplus", s.x()))
    bend = s.op("Mul", s.op("Sub", s.scalar(1), s.op("Mul", t, t)), s.op("Sigmoid", s.x()))
    return s.op("Mul", s.g, s.op("Add", t, s.op("Mul", s.x(), bend)))


@gradient("Softplus", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Sigmoid", s.x()))


@gradient("Clip", 0)
def _(s: Site) -> str:
    bounds = [s.graph.constants.get(s.x(i)) if s.has(i) else None for i in (1, 2)]
    if s.graph.types[s.y].dtype == "float32" and all(b is not None for b in bounds):
        # strictly inside is what the next narrower clip leaves as it is; asked of the result, so that x can be freed
        low, high = (np.float32(b.reshape(-1)[0]) for b in bounds if b is not None)
        above, below = (_next(end, way) for end, way in ((low, 1), (high, -1)))
        if above <= below:
            clipped = s.op("Clip", s.y, s.scalar(float(above)), s.scalar(float(below)))
            return s.op("Mul", s.g, mask(s, s.op("Equal", clipped, s.y)))
    inside = [s.op("Greater", s.x(), s.x(1))] if s.has(1) else []
    inside += [s.op("Less", s.x(), s.x(2))] if s.has(2) else []
    if not inside:
        return s.g
    return s.op("Mul", s.g, mask(s, inside[0] if len(inside) == 1 else s.op("And", *inside)))


@gradient("Clip", 1)
def _(s: Site) -> str:
    low = mask(s, s.op("Less", s.x(), s.x(1)))
    return s.reshape(s.total(s.op("Mul", s.g, low), [*range(len(s.y_shape))], keepdims=0), s.shape(1))


@gradient("Clip", 2)
def _(s: Site) -> str:
    high = mask(s, s.op("Greater", s.x(), s.x(2)))
    return s.reshape(s.total(s.op("Mul", s.g, high), [*range(len(s.y_shape))], keepdims=0), s.shape(2))


@gradient("Sigmoid", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Mul", s.y, s.op("Sub", s.scalar(1), s.y)))


@gradient("Tanh", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.g, s.op("Sub", s.scalar(1), s.op("Mul", s.y, s.y)))


@gradient("HardSigmoid", 0)
def _(s: Site) -> str:
    # y (1 - y) is above 0 exactly where neither end was reached
    inside = step(s, s.op("Mul", s.y, s.op("Sub", s.scalar(1), s.y)))
    return s.op("Mul", s.op("Mul", s.g, s.scalar(s.attribute("alpha", 0.2))), inside)


@gradient("HardSwish", 0)
def _(s: Site) -> str:
    # y = x h with h = clip(x/6 + 1/2, 0, 1): slope x/3 + 1/2 = 2 h - 1/2 between -3 and 3, 0 below, 1 above; so what
    # is taken off 2 h is 0, 1/2 or 1, which a steep line through what clipping changes gives in one pass
    h = s.op("HardSigmoid", s.x(), alpha=1 / 6, beta=0.5)
    three = np.nextafter(np.float32(3), np.float32(0))
    over = s.op("Sub", s.x(), s.op("Clip", s.x(), s.scalar(-float(three)), s.scalar(float(three))))
    excess = s.op("HardSigmoid", over, alpha=_STEEP, beta=0.5)
    return s.op("Mul", s.g, s.op("Sub", s.op("Add", h, h), excess))


@gradient("Gelu", 0)
def _(s: Site) -> str:
    x = s.x()
    if s.attribute("approximate", "none") == "tanh":
        # y = x p with p = sigmoid(2 u), u = k (x + c x^3): slope p (1 + (1 - p) 2 x u'), and 2 x u' = 6 u - 4 k x
        k, c = math.sqrt(2 / math.pi), 0.044715
        line = s.op("Add", s.op("Mul", s.op("Mul", x, x), s.scalar(2 * k * c)), s.scalar(2 * k))
        twice = s.op("Mul", x, line)
        p = s.op("Sigmoid", twice)
        rise = s.op("Sub", s.op("Mul", twice, s.scalar(3)), s.op("Mul", x, s.scalar(4 * k)))
        bell = s.op("Mul", s.op("Sub", s.scalar(1), p), rise)
        return s.op("Mul", s.g, s.op("Mul", p, s.op("Add", bell, s.scalar(1))))
    # the normal distribution (erf is between -1 and 1, so that the hard sigmoid is a line) and x times its density
    z = s.op("Mul", x, s.scalar(math.sqrt(0.5)))
    erf = s.op("Erf", z)
    if s.graph.types[x].dtype == "float32":
        distribution = s.op("HardSigmoid", erf, alpha=0.5, beta=0.5)
    else:
        distribution = s.op("Mul", s.op("Add", erf, s.scalar(1)), s.scalar(0.5))
    density = s.op("Exp", s.op("Mul", s.op("Neg", z), z))
    bell = s.op("Mul", s.op("Mul", z, s.scalar(1 / math.sqrt(math.pi))), density)
    return s.op("Mul", s.g, s.op("Add", distribution, bell))


@gradient("Softmax", 0)
def _(s: Site) -> str:
    axis = s.attribute("axis", -1)
    weighted = s.op("Mul", s.g, s.y)
    return s.op("Sub", weighted, s.op("Mul", s.y, s.total(weighted, [axis])))


@gradient("LogSoftmax", 0)
def _(s: Site) -> str:
    axis = s.attribute("axis", -1)
    return s.op("Sub", s.g, s.op("Mul", s.op("Exp", s.y), s.total(s.g, [axis])))
