"""Pooling over windows.

The maximum sends its gradient to the place it came from: over images by an operator of our own (`passes/maxima.py`),
else by the runtime's own index of it. The average spreads it evenly: a transposed convolution with a filter of ones,
each channel a sample of its own, or what is faster where windows lie side by side or one step apart.
"""

from __future__ import annotations

import math

import numpy as np

from ..graph import MAX_POOL_GRADIENT, OURS
from .table import Site, gradient
from .windows import Windows, windows


def _apart(s: Site) -> int:
    """The edge of square windows that neither overlap nor leave gaps, and that lie beside each other; else 0."""
    kernel = list(s.attribute("kernel_shape"))
    size = kernel[0]
    fits = (
        kernel == [size, size] == list(s.attribute("strides", [1, 1]))
        and list(s.attribute("dilations", [1, 1])) == [1, 1]
        and not any(s.attribute("pads", [0]))
        and s.attribute("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and all(n >= size * p for n, p in zip(s.shape()[2:], s.y_shape[2:], strict=True))
    )
    return size if fits and 1 < size <= 4 else 0


@gradient("MaxPool", 0)
def _(s: Site) -> str:
    kept = {k: v for k, v in s.node.attributes.items() if k != "storage_order"}
    if len(s.shape()) == 4 and s.graph.types[s.y].dtype == "float32":
        w = windows(s, tuple(s.attribute("kernel_shape")))
        return s.builder.multi(
            MAX_POOL_GRADIENT, (s.x(), s.y, s.g), 1, domain=OURS,
            **{**kept, "before": list(w.before), "behind": list(w.behind), "shape": list(s.shape())},
        )[0]  # fmt: skip
    indices = s.builder.multi("MaxPool", (s.x(),), 2, **kept)[1]
    size = int(np.prod(s.shape()))
    zeros = s.op("Expand", s.scalar(0), s.ints(size))
    flat = s.op("ScatterElements", zeros, s.reshape(indices, [-1]), s.reshape(s.g, [-1]), axis=0, reduction="add")
    return s.reshape(flat, s.shape())


@gradient("AveragePool", 0)
def _(s: Site) -> str:
    w = windows(s, tuple(s.attribute("kernel_shape")))
    padded = s.attribute("count_include_pad", 0)
    shares = np.ones(w.positions, np.float32)
    for axis, (k, st, d, b, n, p) in enumerate(
        zip(w.kernel, w.stride, w.dilation, w.before, w.length, w.positions, strict=True)
    ):
        places = np.arange(p)[:, None] * st + np.arange(k)[None] * d - b
        # declared padding counts when it is to be included; what ceil_mode adds beyond it never does
        end = n + _declared_end(s, axis, len(w.kernel)) if padded else n
        count = ((places >= (-b if padded else 0)) & (places < end)).sum(1)
        shares = shares / count.reshape([-1 if i == axis else 1 for i in range(len(w.kernel))])
    share = s.builder.constant(shares[None, None].astype(np.float32))
    return _spread(s, w, s.op("Mul", s.g, share))


@gradient("LpPool", 0)
def _(s: Site) -> str:
    # y = (sum |x|^p)^(1/p): slope sign(x) (|x| / y)^(p - 1), and 0 where a whole window is 0
    p = s.attribute("p", 2)
    w = windows(s, tuple(s.attribute("kernel_shape")))
    y = s.op("Max", s.y, s.scalar(1e-30))
    g = _spread(s, w, s.g if p == 1 else s.op("Div", s.g, y if p == 2 else s.op("Pow", y, s.scalar(p - 1))))
    if p == 2:
        return s.op("Mul", g, s.x())
    size = s.op("Sign", s.x())
    if p != 1:
        size = s.op("Mul", size, s.op("Pow", s.op("Abs", s.x()), s.scalar(p - 1)))
    return s.op("Mul", g, size)


def _spread(s: Site, w: Windows, g: str) -> str:
    """Give every element the sum over the windows that it is in."""
    batch, channels, *space = s.shape()
    if len(space) == 2 and (size := _apart(s)):
        return _repeated(s, size, g)
    before = [r - 1 - b for r, b in zip(w.reach, w.before, strict=True)]
    behind = [r - 1 - b for r, b in zip(w.reach, w.behind, strict=True)]
    if max(*w.stride, *w.dilation) == 1 and all(
        0 <= p < r for p, r in zip((*before, *behind), w.reach * 2, strict=True)
    ):
        # windows one step apart: their sum is a mean over windows as well, times what it divides by
        scaled = s.op("Mul", g, s.scalar(math.prod(w.kernel)))
        return s.op("AveragePool", scaled, kernel_shape=list(w.kernel), pads=[*before, *behind], count_include_pad=1)
    flat = s.reshape(g, [batch * channels, 1, *w.positions])
    ones = s.builder.constant(np.ones((1, 1, *w.kernel), np.float32))
    return s.reshape(s.op("ConvTranspose", flat, ones, **w.transposed()), [batch, channels, *space])


def _repeated(s: Site, size: int, g: str) -> str:
    """Windows side by side: every place is in one window, those behind the last in none."""
    scales = s.builder.constant(np.array([1, 1, size, size], np.float32))
    result = s.op(
        "Resize", g, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    rest = [n - size * p for n, p in zip(s.shape()[2:], s.y_shape[2:], strict=True)]
    return s.op("Pad", result, s.ints(0, 0, 0, 0, 0, 0, *rest), s.scalar(0)) if any(rest) else result


def _declared_end(s: Site, axis: int, rank: int) -> int:
    if s.attribute("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return max(windows(s, tuple(s.attribute("kernel_shape"))).behind[axis], 0)
    return int(s.attribute("pads", [0] * 2 * rank)[rank + axis])
