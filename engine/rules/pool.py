"""Pooling over windows.

The maximum sends its gradient to the place it came from, by the runtime's own index of it. The average spreads it
evenly: a transposed convolution with a filter of ones, each channel a sample of its own.
"""

from __future__ import annotations

import numpy as np

from .table import Site, gradient
from .windows import Windows, windows


@gradient("MaxPool", 0)
def _(s: Site) -> str:
    kept = {k: v for k, v in s.node.attributes.items() if k != "storage_order"}
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
    flat = s.reshape(g, [batch * channels, 1, *w.positions])
    ones = s.builder.constant(np.ones((1, 1, *w.kernel), np.float32))
    return s.reshape(s.op("ConvTranspose", flat, ones, **w.transposed()), [batch, channels, *space])


def _declared_end(s: Site, axis: int, rank: int) -> int:
    if s.attribute("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return max(windows(s, tuple(s.attribute("kernel_shape"))).behind[axis], 0)
    return int(s.attribute("pads", [0] * 2 * rank)[rank + axis])
