"""Convolution of any rank, grouped, strided, dilated.

Strategy. dX is the transposed convolution. dW is an operator of our own, which no runtime has: `FILTER_GRADIENT` of the
domain `OURS` reads input and gradient and gives the sum over all positions of their products, tap by tap. The passes
write both for the runtime, in the layout and by the method that suit their shapes (`passes/`). A transposed
convolution is the dX of a convolution, so its gradients are that convolution and its dW.
"""

from __future__ import annotations

from ..graph import FILTER_GRADIENT, OURS
from .table import Site, gradient
from .windows import Windows, windows


def _windows(s: Site) -> Windows:
    return windows(s, s.shape(1)[2:])


def _filter_gradient(s: Site, x: str, g: str, w: Windows) -> str:
    """dW of the convolution that slides `w` over x and whose result has the gradient g."""
    return s.builder.multi(
        FILTER_GRADIENT, (x, g), 1, domain=OURS, kernel_shape=list(w.kernel), strides=list(w.stride),
        dilations=list(w.dilation), pads=[*w.before, *w.behind], group=s.attribute("group", 1),
        shape=list(s.shape(1)),
    )[0]  # fmt: skip


@gradient("Conv", 0)
def _(s: Site) -> str:
    return s.op("ConvTranspose", s.g, s.x(1), group=s.attribute("group", 1), **_windows(s).transposed())


@gradient("Conv", 1)
def _(s: Site) -> str:
    return _filter_gradient(s, s.x(0), s.g, _windows(s))


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
    # of the convolution that this one transposes: input and gradient in exchanged roles
    return _filter_gradient(s, s.g, s.x(0), _transposed_windows(s))


@gradient("ConvTranspose", 2)
def _(s: Site) -> str:
    return s.total(s.g, [0, *range(2, len(s.y_shape))], keepdims=0)
