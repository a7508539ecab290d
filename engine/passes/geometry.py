"""The sizes of one convolution, whichever of its three products a node computes.

A convolution y = x * w has three: y itself (`Conv`), dx = dy * w turned (`ConvTranspose`) and dw (`FILTER_GRADIENT`).
All three are described by the same sizes, those of the convolution that y, or would y, come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..graph import FILTER_GRADIENT, OURS, Node, TensorType


@dataclass(frozen=True, slots=True)
class Geometry:
    """Batch, channels of x and y, groups; per spatial axis: length of x and y, kernel, stride, dilation, padding.

    `behind` is negative where the last elements of x are in no window.
    """

    batch: int
    inputs: int
    outputs: int
    group: int
    length: tuple[int, ...]
    positions: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def reach(self) -> tuple[int, ...]:
        """How far one window spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def depthwise(self) -> bool:
        """Whether every channel has a filter of its own."""
        return self.group == self.inputs == self.outputs and self.group > 1

    @property
    def pointwise(self) -> bool:
        """Whether it is a product of matrices: one tap, every place once."""
        return (
            max(self.kernel) == 1 and max(self.stride) == 1 and not any(self.before) and self.length == self.positions
        )

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of x."""
        return (self.batch, self.inputs, *self.length)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """The shape of y."""
        return (self.batch, self.outputs, *self.positions)

    @property
    def w_shape(self) -> tuple[int, ...]:
        """The shape of w."""
        return (self.outputs, self.inputs // self.group, *self.kernel)


def geometry(node: Node, types: Mapping[str, TensorType]) -> Geometry | None:
    """The sizes of a convolution node; None for any other node, or where they are not all known in float32."""
    kinds = [types.get(n) for n in (*node.inputs[:2], node.outputs[0])]
    if any(k is None or k.dtype != "float32" for k in kinds):
        return None
    first, second, result = (k.shape for k in kinds if k is not None)
    if node.op == "Conv" and not node.domain:
        x, w, y = first, second, result
    elif node.op == "ConvTranspose" and not node.domain:
        y, w, x = first, second, result
    elif node.op == FILTER_GRADIENT and node.domain == OURS:
        x, y, w = first, second, result
    else:
        return None
    rank = len(x) - 2
    if rank < 1:
        return None
    get = node.attributes.get
    stride, dilation = tuple(get("strides", [1] * rank)), tuple(get("dilations", [1] * rank))
    kernel = w[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    whole = [(p - 1) * s + r - n for p, s, r, n in zip(y[2:], stride, reach, x[2:], strict=True)]
    mode = get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        before = tuple(get("pads", [0] * 2 * rank)[:rank])
    elif mode == "VALID" or node.op != "Conv":
        before = (0,) * rank
        if node.op != "Conv":
            return None
    else:
        before = tuple(max(w, 0) // 2 if mode == "SAME_UPPER" else max(w, 0) - max(w, 0) // 2 for w in whole)
    behind = tuple(w - b for w, b in zip(whole, before, strict=True))
    return Geometry(
        x[0], x[1], y[1], int(get("group", 1)), x[2:], y[2:], kernel, stride, dilation, before, behind
    )  # fmt: skip
