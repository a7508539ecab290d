"""Convolution of any rank, grouped, strided, dilated.

Strategy. dX is the transposed convolution. dW is a convolution as well, with batch and channels swapped: the input
[C/g, g N, ...] slides under the filter dY [O, N, ...] in g groups, dilation and stride exchanged. A kernel of one
element is a matrix product per sample.
"""

from __future__ import annotations

from .table import Site, gradient
from .windows import Windows, windows


def _windows(s: Site) -> Windows:
    return windows(s, s.shape(1)[2:])


@gradient("Conv", 0)
def _(s: Site) -> str:
    return s.op("ConvTranspose", s.g, s.x(1), group=s.attribute("group", 1), **_windows(s).transposed())


@gradient("Conv", 1)
def _(s: Site) -> str:
    w = _windows(s)
    groups = s.attribute("group", 1)
    pointwise = all(k == 1 for k in w.kernel) and all(st == 1 for st in w.stride) and not any(w.before)
    if groups == 1 and pointwise and w.positions == w.length:
        return _pointwise(s)
    batch, channels, *space = s.shape()
    outputs = s.y_shape[1]
    x = s.x(0)
    rank = len(space)
    rest = [*range(3, 3 + rank)]
    if groups == 1:
        swapped = s.op("Transpose", x, perm=[1, 0, *range(2, 2 + rank)])
    else:
        split = s.reshape(x, [batch, groups, channels // groups, *space])
        swapped = s.reshape(
            s.op("Transpose", split, perm=[2, 1, 0, *rest]), [channels // groups, groups * batch, *space]
        )
    filters = s.op("Transpose", s.g, perm=[1, 0, *range(2, 2 + rank)])
    product = s.op(
        "Conv", swapped, filters,
        group=groups, strides=list(w.dilation), dilations=list(w.stride), kernel_shape=list(w.positions),
        pads=[*w.before, *(max(b, 0) for b in w.behind)],
    )  # fmt: skip
    if any(b < 0 for b in w.behind):  # the last elements are in no window, but would be read as one more tap
        product = s.op("Slice", product, s.ints(*[0] * rank), s.ints(*w.kernel), s.ints(*range(2, 2 + rank)))
    if channels // groups == 1:
        return s.reshape(product, s.shape(1))
    return s.op("Transpose", product, perm=[1, 0, *range(2, 2 + rank)]) if outputs else product


def _pointwise(s: Site) -> str:
    batch, channels, *_ = s.shape()
    outputs = s.y_shape[1]
    g = s.reshape(s.g, [batch, outputs, -1])
    x = s.op("Transpose", s.reshape(s.x(0), [batch, channels, -1]), perm=[0, 2, 1])
    return s.reshape(s.total(s.op("MatMul", g, x), [0], keepdims=0), s.shape(1))


@gradient("Conv", 2)
def _(s: Site) -> str:
    return s.total(s.g, [0, *range(2, len(s.y_shape))], keepdims=0)


@gradient("ConvTranspose", 0)
def _(s: Site) -> str:
    w = _transposed_windows(s)
    return s.op(
        "Conv", s.g, s.x(1), group=s.attribute("group", 1), strides=list(w.stride), dilations=list(w.dilation),
        kernel_shape=list(w.kernel), pads=[*w.before, *w.behind],
    )  # fmt: skip


def _transposed_windows(s: Site) -> Windows:
    """The windows of the convolution that this one transposes: over the output, giving the input."""
    kernel = s.shape(1)[2:]
    rank = len(kernel)
    if s.attribute("auto_pad", "NOTSET") != "NOTSET" or s.attribute("output_shape"):
        s.refuse("auto_pad or output_shape; export it with explicit pads")
    w = Windows(
        tuple(kernel), tuple(s.attribute("strides", [1] * rank)), tuple(s.attribute("dilations", [1] * rank)),
        tuple(s.attribute("pads", [0] * 2 * rank)[:rank]), tuple(s.y_shape[2:]), tuple(s.shape()[2:]),
    )  # fmt: skip
    if any(s.attribute("output_padding", [0])):
        s.refuse("output_padding; choose a stride that divides the size")
    return w


@gradient("ConvTranspose", 1)
def _(s: Site) -> str:
    w = _transposed_windows(s)
    if s.attribute("group", 1) != 1:
        s.refuse("group above 1")
    rank = len(w.kernel)
    order = [1, 0, *range(2, 2 + rank)]
    product = s.op(
        "Conv", s.op("Transpose", s.g, perm=order), s.op("Transpose", s.x(0), perm=order),
        strides=list(w.dilation), dilations=list(w.stride), kernel_shape=list(w.positions), pads=[*w.before, *w.behind],
    )  # fmt: skip
    return s.op("Transpose", product, perm=order)


@gradient("ConvTranspose", 2)
def _(s: Site) -> str:
    return s.total(s.g, [0, *range(2, len(s.y_shape))], keepdims=0)
