"""What convolution and pooling share: windows that slide over the spatial axes, and how far they reach."""

from __future__ import annotations

from dataclasses import dataclass

from .table import Site


@dataclass(frozen=True, slots=True)
class Windows:
    """Sizes per spatial axis: kernel, stride, dilation, padding before, input and output length."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    length: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """How far one window spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def behind(self) -> tuple[int, ...]:
        """Padding after the input as the windows use it: negative where elements at the end are in no window."""
        return tuple(
            (p - 1) * s + r - b - n
            for p, s, r, b, n in zip(
                self.positions, self.stride, self.reach, self.before, self.length, strict=True
            )
        )  # fmt: skip

    def transposed(self) -> dict[str, list[int]]:
        """Attributes of the ConvTranspose that gives back exactly the input's length."""
        return {
            "strides": list(self.stride),
            "dilations": list(self.dilation),
            "kernel_shape": list(self.kernel),
            "pads": [*self.before, *(max(b, 0) for b in self.behind)],
            "output_padding": [max(-b, 0) for b in self.behind],
        }


def windows(s: Site, kernel: tuple[int, ...]) -> Windows:
    """The windows of a Conv or pooling node, auto_pad resolved with its static shapes."""
    length, positions = s.shape()[2:], s.y_shape[2:]
    rank = len(kernel)
    stride = tuple(s.attribute("strides", [1] * rank))
    dilation = tuple(s.attribute("dilations", [1] * rank))
    mode = s.attribute("auto_pad", "NOTSET")
    before = tuple(s.attribute("pads", [0] * 2 * rank)[:rank])
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        whole = [
            max((p - 1) * st + (k - 1) * d + 1 - n, 0)
            for p, st, k, d, n in zip(positions, stride, kernel, dilation, length, strict=True)
        ]
        before = tuple(w // 2 if mode == "SAME_UPPER" else w - w // 2 for w in whole)
    elif mode == "VALID":
        before = (0,) * rank
    return Windows(tuple(kernel), stride, dilation, before, tuple(length), tuple(positions))
