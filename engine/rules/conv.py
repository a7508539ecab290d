"""Convolution of any rank, grouped, strided, dilated.

Strategy. dX is the transposed convolution. dW is a convolution as well, with batch and channels swapped: the input
[C/g, g N, ...] slides under the filter dY [O, N, ...] in g groups, dilation and stride exchanged. A kernel of one
element is a matrix product. Depthwise convolutions have depthwise gradients, which the runtime is fast on in its
blocked layout (`blocked.py`).
"""

from __future__ import annotations

import math

import numpy as np

from .table import Site, gradient
from .windows import Windows, windows

#: The longest axis whose stride is undone by a matrix product; beyond, the transposed convolution is faster.
_MATRIX = 128


def _windows(s: Site) -> Windows:
    return windows(s, s.shape(1)[2:])


def _depthwise(s: Site) -> bool:
    return s.attribute("group", 1) == s.shape()[1] == s.y_shape[1] and s.shape()[1] > 1


@gradient("Conv", 0)
def _(s: Site) -> str:
    w = _windows(s)
    before = [r - 1 - b for r, b in zip(w.reach, w.before, strict=True)]
    behind = [r - 1 - max(b, 0) for r, b in zip(w.reach, w.behind, strict=True)]
    strided = any(st > 1 for st in w.stride)
    if not _depthwise(s) or min(*before, *behind) < 0 or len(w.kernel) > 2 or (strided and max(w.positions) > _MATRIX):
        return s.op("ConvTranspose", s.g, s.x(1), group=s.attribute("group", 1), **w.transposed())
    # stride is undone by zeros between the elements, then the filter slides backwards over the gradient
    rank = len(w.kernel)
    axes = [*range(2, 2 + rank)]
    g = s.g
    if strided:
        g = _spread_out(s, g, w)
    flipped = s.op(
        "Slice", s.x(1), s.ints(*[-1] * rank), s.ints(*[-(2**31)] * rank), s.ints(*axes), s.ints(*[-1] * rank)
    )
    behind = [e + max(-b, 0) for e, b in zip(behind, w.behind, strict=True)]
    return s.op(
        "Conv", g, flipped, group=s.attribute("group", 1), kernel_shape=list(w.kernel), strides=[1] * rank,
        dilations=list(w.dilation), pads=[*before, *behind],
    )  # fmt: skip


def _spread_out(s: Site, g: str, w: Windows) -> str:
    """stride - 1 zeros between neighbours: length (positions - 1) stride + 1 per axis.

    Written as products with matrices of zeros and ones, which the runtime is far faster on than on padding.
    """
    rank = len(w.kernel)
    for axis, (count, stride) in enumerate(zip(w.positions, w.stride, strict=True)):
        if stride == 1:
            continue
        places = np.zeros((count, (count - 1) * stride + 1), np.float32)
        places[np.arange(count), np.arange(count) * stride] = 1
        if axis == rank - 1:
            g = s.op("MatMul", g, s.builder.constant(places))
        else:
            g = s.op("MatMul", s.builder.constant(np.ascontiguousarray(places.T)), g)
    return g


@gradient("Conv", 1)
def _(s: Site) -> str:
    w = _windows(s)
    groups = s.attribute("group", 1)
    pointwise = all(k == 1 for k in w.kernel) and all(st == 1 for st in w.stride) and not any(w.before)
    if groups == 1 and pointwise and w.positions == w.length:
        return _pointwise(s)
    batch, channels, *space = s.shape()
    outputs = s.y_shape[1]
    rank = len(space)
    order = [1, 0, *range(2, 2 + rank)]
    if _depthwise(s):
        # every channel of every sample is a group of its own; then the sum over the samples
        groups = batch * channels
        swapped = s.reshape(s.x(0), [1, groups, *space])
        filters = s.reshape(s.g, [groups, 1, *w.positions])
    elif groups == 1:
        swapped, filters = s.op("Transpose", s.x(0), perm=order), s.op("Transpose", s.g, perm=order)
    else:
        split = s.reshape(s.x(0), [batch, groups, channels // groups, *space])
        split = s.op("Transpose", split, perm=[2, 1, 0, *range(3, 3 + rank)])
        swapped = s.reshape(split, [channels // groups, groups * batch, *space])
        filters = s.op("Transpose", s.g, perm=order)
    product = s.op(
        "Conv", swapped, filters,
        group=groups, strides=list(w.dilation), dilations=list(w.stride), kernel_shape=list(w.positions),
        pads=[*w.before, *(max(b, 0) for b in w.behind)],
    )  # fmt: skip
    if any(b < 0 for b in w.behind):  # the last elements are in no window, but would be read as one more tap
        product = s.op("Slice", product, s.ints(*[0] * rank), s.ints(*w.kernel), s.ints(*range(2, 2 + rank)))
    if _depthwise(s):
        product = s.total(s.reshape(product, [batch, channels * math.prod(w.kernel)]), [0], keepdims=0)
        return s.reshape(product, s.shape(1))
    return (
        s.op("Transpose", product, perm=order)
        if channels != s.attribute("group", 1)
        else s.reshape(product, [outputs, 1, *w.kernel])
    )


def _pointwise(s: Site) -> str:
    batch, channels, *space = s.shape()
    outputs, places = s.y_shape[1], math.prod(space)
    if batch > 1 and outputs * channels >= (outputs + channels) * places:
        # many weights, few places: one product over all samples beats a product per sample and their sum
        order = [1, 0, *range(2, 2 + len(space))]
        g = s.reshape(s.op("Transpose", s.g, perm=order), [outputs, -1])
        x = s.reshape(s.op("Transpose", s.x(0), perm=order), [channels, -1])
        return s.reshape(s.op("Gemm", g, x, transB=1), s.shape(1))
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
        "Conv", _trimmed(s, w), s.x(1), group=s.attribute("group", 1), strides=list(w.stride),
        dilations=list(w.dilation), kernel_shape=list(w.kernel), pads=_pads(w),
    )  # fmt: skip


def _transposed_windows(s: Site) -> Windows:
    """The windows of the convolution that this one transposes: over the output, giving the input."""
    kernel = s.shape(1)[2:]
    rank = len(kernel)
    if s.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or s.attribute("output_shape"):
        s.refuse("auto_pad or output_shape; export it with explicit pads")
    return Windows(
        tuple(kernel), tuple(s.attribute("strides", [1] * rank)), tuple(s.attribute("dilations", [1] * rank)),
        tuple(s.attribute("pads", [0] * 2 * rank)[:rank]), tuple(s.y_shape[2:]), tuple(s.shape()[2:]),
    )  # fmt: skip


def _pads(w: Windows) -> list[int]:
    return [*w.before, *(max(b, 0) for b in w.behind)]


def _trimmed(s: Site, w: Windows) -> str:
    """The gradient without what output_padding appended that no window reaches: only the bias got there."""
    if not any(b < 0 for b in w.behind):
        return s.g
    ends = [n + min(b, 0) for n, b in zip(w.length, w.behind, strict=True)]
    return s.op("Slice", s.g, s.ints(*[0] * len(ends)), s.ints(*ends), s.ints(*range(2, 2 + len(ends))))


@gradient("ConvTranspose", 1)
def _(s: Site) -> str:
    # as dW of a convolution, with input and gradient in exchanged roles
    w = _transposed_windows(s)
    groups = s.attribute("group", 1)
    batch, inputs = s.shape()[:2]
    outputs = s.y_shape[1] // groups
    g = _trimmed(s, w)
    space = [n + min(b, 0) for n, b in zip(w.length, w.behind, strict=True)]
    order = [1, 0, *range(2, 2 + len(space))]
    if groups == 1:
        swapped = s.op("Transpose", g, perm=order)
    else:
        split = s.reshape(g, [batch, groups, outputs, *space])
        split = s.op("Transpose", split, perm=[2, 1, 0, *range(3, 3 + len(space))])
        swapped = s.reshape(split, [outputs, groups * batch, *space])
    product = s.op(
        "Conv", swapped, s.op("Transpose", s.x(0), perm=order), group=groups,
        strides=list(w.dilation), dilations=list(w.stride), kernel_shape=list(w.positions), pads=_pads(w),
    )  # fmt: skip
    return s.reshape(s.op("Transpose", product, perm=order), [inputs, outputs, *w.kernel])


@gradient("ConvTranspose", 2)
def _(s: Site) -> str:
    return s.total(s.g, [0, *range(2, len(s.y_shape))], keepdims=0)
