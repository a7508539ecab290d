"""Convolutional networks for small devices, image [N, 3, H, W] -> logits [N, classes].

Papers: MobileNetV1 (Howard 2017), MobileNetV2 (Sandler 2018), MobileNetV3 (Howard 2019), EfficientNet (Tan 2019) in
its Lite0 form (no squeeze-and-excitation, ReLU6), ShuffleNetV2 (Ma 2018), SqueezeNet 1.1 (Iandola 2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Activation, Pooled, Residual, Spelled, divisible, unit


def mobilenet_v1(classes: int, shape: tuple[int, ...], width: float = 1.0) -> nn.Module:
    """Thirteen depthwise separable blocks."""
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    channels = divisible(32 * width)
    layers: list[nn.Module] = [unit(shape[0], channels, stride=2)]
    for wide, stride in plan:
        wide = divisible(wide * width)
        layers += [unit(channels, channels, stride=stride, groups=channels), unit(channels, wide, 1)]
        channels = wide
    return nn.Sequential(*layers, Pooled(), nn.Linear(channels, classes))


def _inverted(
    narrow: int, wide: int, middle: int, stride: int, kernel: int = 3, activation: Activation = nn.ReLU6,
    excite: bool = False,
) -> nn.Module:  # fmt: skip
    """Expand, filter each channel, (weigh the channels,) project; residual where the shapes agree."""
    layers: list[nn.Module] = [unit(narrow, middle, 1, activation=activation)] if middle != narrow else []
    layers.append(unit(middle, middle, kernel, stride, middle, activation))
    if excite:
        layers.append(Excite(middle))
    layers.append(unit(middle, wide, 1, activation=None))
    return Residual(*layers) if stride == 1 and narrow == wide else nn.Sequential(*layers)


def mobilenet_v2(classes: int, shape: tuple[int, ...], width: float = 1.0) -> nn.Module:
    """Seventeen inverted residuals, (expansion, channels, repeats, stride) as in the paper's table 2."""
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    channels = divisible(32 * width)
    layers: list[nn.Module] = [unit(shape[0], channels, stride=2, activation=nn.ReLU6)]
    for expansion, wide, repeats, stride in plan:
        for repeat in range(repeats):
            out = divisible(wide * width)
            layers.append(_inverted(channels, out, channels * expansion, stride if repeat == 0 else 1))
            channels = out
    last = divisible(1280 * max(width, 1.0))
    layers.append(unit(channels, last, 1, activation=nn.ReLU6))
    return nn.Sequential(*layers, Pooled(), nn.Dropout(0.2), nn.Linear(last, classes))


def efficientnet_lite0(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """(expansion, channels, repeats, stride, kernel)."""
    plan = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
            (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]  # fmt: skip
    layers: list[nn.Module] = [unit(shape[0], 32, stride=2, activation=nn.ReLU6)]
    channels = 32
    for expansion, wide, repeats, stride, kernel in plan:
        for repeat in range(repeats):
            layers.append(_inverted(channels, wide, channels * expansion, stride if repeat == 0 else 1, kernel))
            channels = wide
    layers.append(unit(channels, 1280, 1, activation=nn.ReLU6))
    return nn.Sequential(*layers, Pooled("adaptive"), nn.Dropout(0.2), nn.Linear(1280, classes))


class Excite(nn.Module):
    """Squeeze-and-excitation with a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = divisible(channels / 4)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x)  # type: ignore[no-any-return]


#: kernel, expanded, out, excite, hard swish, stride: tables 1 and 2 of the paper.
_SMALL = [
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2),
    *[(5, 240, 40, 1, 1, 1)] * 2, (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2),
    *[(5, 576, 96, 1, 1, 1)] * 2,
]  # fmt: skip
_LARGE = [
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2),
    *[(5, 120, 40, 1, 0, 1)] * 2, (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), *[(3, 184, 80, 0, 1, 1)] * 2,
    (3, 480, 112, 1, 1, 1),
    (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), *[(5, 960, 160, 1, 1, 1)] * 2,
]  # fmt: skip


def _mobilenet_v3(
    classes: int, shape: tuple[int, ...], plan: Sequence[tuple[int, ...]], hidden: int, hard: Activation
) -> nn.Module:
    layers: list[nn.Module] = [unit(shape[0], 16, stride=2, activation=hard)]
    channels = 16
    for kernel, middle, wide, excite, swish, stride in plan:
        activation = hard if swish else nn.ReLU
        layers.append(_inverted(channels, wide, middle, stride, kernel, activation, bool(excite)))
        channels = wide
    last = 6 * channels
    layers += [unit(channels, last, 1, activation=hard), Pooled("adaptive")]
    return nn.Sequential(*layers, nn.Linear(last, hidden), hard(), nn.Dropout(0.2), nn.Linear(hidden, classes))


def mobilenet_v3_small(classes: int, shape: tuple[int, ...], spelled: bool = False) -> nn.Module:
    """`spelled`: HardSwish written out."""
    return _mobilenet_v3(classes, shape, _SMALL, 1024, Spelled if spelled else nn.Hardswish)


def mobilenet_v3_large(classes: int, shape: tuple[int, ...], spelled: bool = False) -> nn.Module:
    """`spelled`: HardSwish written out."""
    return _mobilenet_v3(classes, shape, _LARGE, 1280, Spelled if spelled else nn.Hardswish)


class Shuffled(nn.Module):
    """A unit of ShuffleNetV2: half of the channels pass by, or both halves are strided."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        half = wide // 2
        inputs = narrow if stride > 1 else half
        self.passing = stride == 1
        self.left = nn.Sequential(
            unit(narrow, narrow, 3, stride, narrow, None), unit(narrow, half, 1)
        ) if stride > 1 else nn.Sequential()  # fmt: skip
        self.right = nn.Sequential(unit(inputs, half, 1), unit(half, half, 3, stride, half, None), unit(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.passing else (x, x)
        joined = torch.cat([self.left(left), self.right(right)], 1)
        batch, channels, height, width = joined.shape
        split = joined.view(batch, 2, channels // 2, height, width)
        return split.transpose(1, 2).reshape(batch, channels, height, width)


def shufflenet_v2(
    classes: int, shape: tuple[int, ...], widths: tuple[int, ...] = (24, 116, 232, 464, 1024)
) -> nn.Module:
    """Stages of 4, 8 and 4 units."""
    layers: list[nn.Module] = [unit(shape[0], widths[0], stride=2), nn.MaxPool2d(3, 2, 1)]
    channels = widths[0]
    for wide, repeats in zip(widths[1:-1], (4, 8, 4), strict=True):
        for repeat in range(repeats):
            layers.append(Shuffled(channels, wide, 2 if repeat == 0 else 1))
            channels = wide
    return nn.Sequential(*layers, unit(channels, widths[-1], 1), Pooled(), nn.Linear(widths[-1], classes))


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 filters side by side."""

    def __init__(self, narrow: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(narrow, squeezed, 1)
        self.one = nn.Conv2d(squeezed, expanded, 1)
        self.three = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.one(x).relu(), self.three(x).relu()], 1)


def squeezenet(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """SqueezeNet 1.1, pooling with ceil."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(shape[0], 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool(),
        Fire(128, 32, 128), Fire(256, 32, 128), pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256),
        Fire(512, 64, 256), nn.Dropout(), nn.Conv2d(512, classes, 1), nn.ReLU(), Pooled("adaptive"),
    )  # fmt: skip
