"""Normalization: layer normalization, and batch normalization by frozen statistics or by those of the batch.

Sources: Ba, Kiros, Hinton, "Layer Normalization" (2016); Ioffe, Szegedy, "Batch Normalization" (2015), whose
statistics are constants in an inference graph, so the operator is a scale and a shift per channel; in training mode
(`batchnorm.py`) they depend on the input.
"""

from __future__ import annotations

import math

from ..graph import DETACHED
from .table import Site, gradient


def _channels(s: Site, tensor: str) -> str:
    return s.reshape(tensor, [1, -1] + [1] * (len(s.shape()) - 2))


def _inverse_deviation(s: Site) -> str:
    epsilon = s.scalar(s.attribute("epsilon", 1e-5))
    return s.op("Reciprocal", s.op("Sqrt", s.op("Add", s.x(4), epsilon)))


def _centred(s: Site) -> str:
    return s.op("Sub", s.x(), _channels(s, s.x(3)))


def _of_scale(s: Site) -> str:
    others = [0, *range(2, len(s.shape()))]
    return s.op("Mul", s.total(s.op("Mul", s.g, _centred(s)), others, keepdims=0), _inverse_deviation(s))


def _of_bias(s: Site) -> str:
    return s.total(s.g, [0, *range(2, len(s.shape()))], keepdims=0)


@gradient("BatchNormalization", 0)
def _(s: Site) -> str:
    slope = s.op("Mul", s.x(1), _inverse_deviation(s))
    if not s.x(3).startswith(DETACHED):
        return s.op("Mul", s.g, _channels(s, slope))
    # the statistics depend on x as well: what is left is orthogonal to a constant and to x, channel by channel
    share = s.op("Mul", slope, s.scalar(-s.shape()[1] / math.prod(s.shape())))  # over the count of values
    along = s.op("Mul", s.op("Mul", share, _of_scale(s)), _inverse_deviation(s))
    shift = s.op("Mul", share, _of_bias(s))
    scaled = s.op("Add", s.op("Mul", s.g, _channels(s, slope)), _channels(s, shift))
    return s.op("Add", scaled, s.op("Mul", _centred(s), _channels(s, along)))


gradient("BatchNormalization", 1)(_of_scale)
gradient("BatchNormalization", 2)(_of_bias)


def _normalized(s: Site) -> tuple[str, str, list[int]]:
    """(x - mean) / deviation, 1 / deviation, and the axes normalized over."""
    rank = len(s.shape())
    axes = [*range(s.attribute("axis", -1) % rank, rank)]
    centred = s.op("Sub", s.x(), s.op("ReduceMean", s.x(), s.ints(*axes)))
    variance = s.op("ReduceMean", s.op("Mul", centred, centred), s.ints(*axes))
    inverse = s.op("Reciprocal", s.op("Sqrt", s.op("Add", variance, s.scalar(s.attribute("epsilon", 1e-5)))))
    return s.op("Mul", centred, inverse), inverse, axes


@gradient("LayerNormalization", 0)
def _(s: Site) -> str:
    normalized, inverse, axes = _normalized(s)
    scaled = s.op("Mul", s.g, s.x(1))
    mean = s.op("ReduceMean", scaled, s.ints(*axes))
    along = s.op("Mul", normalized, s.op("ReduceMean", s.op("Mul", scaled, normalized), s.ints(*axes)))
    return s.op("Mul", s.op("Sub", s.op("Sub", scaled, mean), along), inverse)


@gradient("LayerNormalization", 1)
def _(s: Site) -> str:
    return s.unbroadcast(s.op("Mul", s.g, _normalized(s)[0]), s.y_shape, 1)


@gradient("LayerNormalization", 2)
def _(s: Site) -> str:
    return s.unbroadcast(s.g, s.y_shape, 2)
