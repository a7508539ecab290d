"""Reductions and global pooling: the gradient is spread back over what was reduced."""

from __future__ import annotations

from .table import Site, gradient


def _axes(s: Site) -> list[int]:
    rank = len(s.shape())
    if s.has(1):
        axes = [int(a) % rank for a in s.value(1).reshape(-1)]
        if axes:
            return axes
    return [] if s.attribute("noop_with_empty_axes", 0) else [*range(rank)]


def _kept(s: Site, tensor: str, axes: list[int]) -> str:
    """The tensor (shaped as the result) with the reduced dimensions kept as 1."""
    if s.attribute("keepdims", 1):
        return tensor
    return s.reshape(tensor, [1 if i in axes else n for i, n in enumerate(s.shape())])


def _spread(s: Site, tensor: str) -> str:
    return s.op("Expand", tensor, s.ints(*s.shape()))


def _count(s: Site, axes: list[int]) -> int:
    count = 1
    for axis in axes:
        count *= s.shape()[axis]
    return count


@gradient("ReduceSum", 0)
def _(s: Site) -> str:
    return _spread(s, _kept(s, s.g, _axes(s)))


@gradient("ReduceMean", 0)
def _(s: Site) -> str:
    axes = _axes(s)
    return _spread(s, s.op("Mul", _kept(s, s.g, axes), s.scalar(1 / _count(s, axes))))


@gradient("ReduceSumSquare", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.op("Mul", s.x(), s.scalar(2)), _kept(s, s.g, _axes(s)))


@gradient("ReduceL2", 0)
def _(s: Site) -> str:
    axes = _axes(s)
    return s.op("Mul", s.x(), _kept(s, s.op("Div", s.g, s.y), axes))


@gradient("ReduceL1", 0)
def _(s: Site) -> str:
    return s.op("Mul", s.op("Sign", s.x()), _kept(s, s.g, _axes(s)))


@gradient("ReduceLogSum", 0)
def _(s: Site) -> str:
    return _spread(s, _kept(s, s.op("Mul", s.g, s.op("Exp", s.op("Neg", s.y))), _axes(s)))


@gradient("ReduceLogSumExp", 0)
def _(s: Site) -> str:
    axes = _axes(s)
    return s.op("Mul", s.op("Exp", s.op("Sub", s.x(), _kept(s, s.y, axes))), _kept(s, s.g, axes))


@gradient("ReduceProd", 0)
def _(s: Site) -> str:
    # the product of the others: y / x, or, where one factor is zero, the product of the rest for that factor alone
    axes = _axes(s)
    zero = s.op("Equal", s.x(), s.scalar(0))
    filled = s.op("Where", zero, s.scalar(1), s.x())
    zeros = s.total(s.op("Cast", zero, to=1), axes)
    rest = s.op("Div", s.op("ReduceProd", filled, s.ints(*axes)), filled)
    counts = s.op("Sub", zeros, s.op("Cast", zero, to=1))  # how many of the others are zero
    alone = s.op("Cast", s.op("Equal", counts, s.scalar(0)), to=1)
    return s.op("Mul", _kept(s, s.g, axes), s.op("Mul", rest, alone))


@gradient("CumSum", 0)
def _(s: Site) -> str:
    exclusive, reverse = s.attribute("exclusive", 0), s.attribute("reverse", 0)
    return s.op("CumSum", s.g, s.x(1), exclusive=exclusive, reverse=1 - reverse)


@gradient("LpNormalization", 0)
def _(s: Site) -> str:
    axis, p = s.attribute("axis", -1), s.attribute("p", 2)
    along = s.total(s.op("Mul", s.g, s.y), [axis])
    slope = s.y if p == 2 else s.op("Sign", s.x())
    norm = s.op("ReduceL2" if p == 2 else "ReduceL1", s.x(), s.ints(axis))
    return s.op("Div", s.op("Sub", s.g, s.op("Mul", slope, along)), norm)


def _extreme(s: Site, axes: list[int], kept_y: str, kept_g: str) -> str:
    # of equal extremes each gets an equal share (as PyTorch's amax)
    mask = s.op("Cast", s.op("Equal", s.x(), kept_y), to=1)
    return s.op("Mul", mask, s.op("Div", kept_g, s.total(mask, axes)))


@gradient("ReduceMax", 0)
def _(s: Site) -> str:
    axes = _axes(s)
    return _extreme(s, axes, _kept(s, s.y, axes), _kept(s, s.g, axes))


@gradient("ReduceMin", 0)
def _(s: Site) -> str:
    axes = _axes(s)
    return _extreme(s, axes, _kept(s, s.y, axes), _kept(s, s.g, axes))


@gradient("GlobalAveragePool", 0)
def _(s: Site) -> str:
    axes = [*range(2, len(s.shape()))]
    return _spread(s, s.op("Mul", s.g, s.scalar(1 / _count(s, axes))))


@gradient("GlobalMaxPool", 0)
def _(s: Site) -> str:
    return _extreme(s, [*range(2, len(s.shape()))], s.y, s.g)
