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
