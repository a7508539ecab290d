"""Normalization: layer and instance normalization, and batch normalization by statistics frozen or of the batch.

Sources: Ba, Kiros, Hinton, "Layer Normalization" (2016); Ulyanov, Vedaldi, Lempitsky, "Instance Normalization" (2016);
group normalization (Wu, He 2018) is read as instance normalization over groups; Ioffe, Szegedy, "Batch Normalization"
(2015), whose statistics are constants in an inference graph, so the operator is a scale and a shift per channel; in
training mode (`batchnorm.py`) they depend on the input.
"""

from __future__ import annotations

import math

import numpy as np

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


def _normalized(s: Site, tensor: str, axes: list[int], rank: int, length: int) -> tuple[str, str]:
    """(x - mean) / deviation over the last axes, and 1 / deviation, by one operator."""
    ones = s.builder.constant(np.ones(length, s.graph.types[s.x()].dtype))
    if len(axes) > 1:
        ones = s.reshape(ones, s.shape()[axes[0] :])
    epsilon = s.attribute("epsilon", 1e-5)
    normalized = s.op("LayerNormalization", tensor, ones, outputs=3, axis=axes[0] - rank, epsilon=epsilon)
    return normalized, f"{normalized}.2"


def _spread_back(s: Site, scaled: str, normalized: str, inverse: str, axes: list[int]) -> str:
    """The gradient before normalization over axes, from that behind it: without what mean and deviation take up."""
    mean = s.op("ReduceMean", scaled, s.ints(*axes))
    along = s.op("Mul", normalized, s.op("ReduceMean", s.op("Mul", scaled, normalized), s.ints(*axes)))
    return s.op("Mul", s.op("Sub", s.op("Sub", scaled, mean), along), inverse)


def _layer(s: Site) -> tuple[str, str, list[int]]:
    rank = len(s.shape())
    axes = [*range(s.attribute("axis", -1) % rank, rank)]
    return (*_normalized(s, s.x(), axes, rank, math.prod(s.shape()[axes[0] :])), axes)


@gradient("LayerNormalization", 0)
def _(s: Site) -> str:
    normalized, inverse, axes = _layer(s)
    return _spread_back(s, s.op("Mul", s.g, s.x(1)), normalized, inverse, axes)


@gradient("LayerNormalization", 1)
def _(s: Site) -> str:
    return s.unbroadcast(s.op("Mul", s.g, _layer(s)[0]), s.y_shape, 1)


@gradient("LayerNormalization", 2)
def _(s: Site) -> str:
    return s.unbroadcast(s.g, s.y_shape, 2)


def _instance(s: Site) -> tuple[str, str, str]:
    """The gradient, (x - mean) / deviation and 1 / deviation as [N, C, elements]."""
    batch, channels, *space = s.shape()
    flat = [batch, channels, math.prod(space)]
    normalized, inverse = _normalized(s, s.reshape(s.x(), flat), [2], 3, flat[2])
    return s.reshape(s.g, flat), normalized, inverse


@gradient("InstanceNormalization", 0)
def _(s: Site) -> str:
    g, normalized, inverse = _instance(s)
    # the scale is the same over what is averaged, so it joins the deviation
    inverse = s.op("Mul", inverse, s.reshape(s.x(1), [-1, 1]))
    return s.reshape(_spread_back(s, g, normalized, inverse, [2]), s.shape())


@gradient("InstanceNormalization", 1)
def _(s: Site) -> str:
    g, normalized, _ = _instance(s)
    return s.total(s.op("Mul", g, normalized), [0, 2], keepdims=0)


@gradient("InstanceNormalization", 2)
def _(s: Site) -> str:
    return s.total(s.g, [0, *range(2, len(s.shape()))], keepdims=0)
