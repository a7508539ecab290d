"""Deep convolutional networks, image [N, C, H, W] -> logits [N, classes], or a map of the image's size for U-Net.

Papers: ResNet (He 2015), DenseNet (Huang 2016), U-Net (Ronneberger 2015), ConvNeXt (Liu 2022), ESPCN (Shi 2016).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .blocks import Pooled, Residual, unit


class _Shortcut(nn.Module):
    """relu(inner(x) + shortcut(x))."""

    def __init__(self, inner: nn.Module, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.inner = inner
        same = stride == 1 and narrow == wide
        self.short = nn.Sequential() if same else unit(narrow, wide, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.short(x))


def _resnet(classes: int, shape: tuple[int, ...], repeats: tuple[int, ...], bottleneck: bool) -> nn.Module:
    layers: list[nn.Module] = [unit(shape[0], 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate(repeats):
        middle = 64 * 2**stage
        wide = 4 * middle if bottleneck else middle
        for repeat in range(count):
            stride = 2 if stage and repeat == 0 else 1
            inner = (
                [unit(channels, middle, 1), unit(middle, middle, 3, stride), unit(middle, wide, 1, activation=None)]
                if bottleneck
                else [unit(channels, wide, 3, stride), unit(wide, wide, activation=None)]
            )
            layers.append(_Shortcut(nn.Sequential(*inner), channels, wide, stride))
            channels = wide
    return nn.Sequential(*layers, Pooled("adaptive"), nn.Linear(channels, classes))


def resnet18(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Basic blocks."""
    return _resnet(classes, shape, (2, 2, 2, 2), False)


def resnet50(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Bottlenecks, stride in the 3x3 convolution."""
    return _resnet(classes, shape, (3, 4, 6, 3), True)


class _Dense(nn.Module):
    """x and `growth` further channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


def densenet121(
    classes: int, shape: tuple[int, ...], blocks: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32
) -> nn.Module:
    """`blocks`: layers per dense block; other numbers give other depths."""
    channels = 2 * growth
    layers: list[nn.Module] = [unit(shape[0], channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for block, count in enumerate(blocks):
        for _ in range(count):
            layers.append(_Dense(channels, growth))
            channels += growth
        if block < len(blocks) - 1:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False),
                       nn.AvgPool2d(2)]  # fmt: skip
            channels //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), Pooled("adaptive"), nn.Linear(channels, classes))


class UNet(nn.Module):
    """Contracting and expanding paths with skips; `up`: transpose, nearest or bilinear."""

    def __init__(self, inputs: int, classes: int, up: str, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]

        def double(narrow: int, wide: int) -> nn.Module:
            return nn.Sequential(unit(narrow, wide), unit(wide, wide))

        self.down = nn.ModuleList(double(n, w) for n, w in pairwise([inputs, *widths]))
        self.pool = nn.MaxPool2d(2)
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(w, n, 2, 2)
            if up == "transpose"
            else nn.Sequential(
                nn.Upsample(scale_factor=2, mode=up, align_corners=False if up == "bilinear" else None),
                nn.Conv2d(w, n, 3, padding=1),
            )
            for n, w in reversed(list(pairwise(widths)))
        )
        self.join = nn.ModuleList(double(w, n) for n, w in reversed(list(pairwise(widths))))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, down in enumerate(self.down):
            x = down(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()
        for rise, join in zip(self.rise, self.join, strict=True):
            x = join(torch.cat([skips.pop(), rise(x)], 1))
        return self.head(x)  # type: ignore[no-any-return]


def unet(classes: int, shape: tuple[int, ...], up: str = "transpose", width: int = 16, depth: int = 3) -> nn.Module:
    """A map [N, classes, H, W]; the paper has width 64 and depth 4."""
    return UNet(shape[0], classes, up, width, depth)


def unet_resize(classes: int, shape: tuple[int, ...], up: str = "bilinear", width: int = 16) -> nn.Module:
    """The same with a Resize and a convolution instead of a transposed convolution."""
    return UNet(shape[0], classes, up, width, 3)


class _Moved(nn.Module):
    """LayerNorm over the channels of [N, C, H, W], with the moves around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class _Next(nn.Module):
    """Depthwise 7x7, LayerNorm, two linear layers with GELU, a learned scale, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.inner = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.scale = nn.Parameter(0.5 + torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        moved = self.depthwise(x).permute(0, 2, 3, 1)
        return x + (self.scale * self.inner(moved)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def convnext(
    classes: int, shape: tuple[int, ...], widths: tuple[int, ...] = (24, 48, 96), repeats: tuple[int, ...] = (1, 1, 2)
) -> nn.Module:
    """A narrow ConvNeXt."""
    layers: list[nn.Module] = [nn.Conv2d(shape[0], widths[0], 4, 4), _Moved(widths[0])]
    for stage, (wide, count) in enumerate(zip(widths, repeats, strict=True)):
        if stage:
            layers += [_Moved(widths[stage - 1]), nn.Conv2d(widths[stage - 1], wide, 2, 2)]
        layers += [_Next(wide) for _ in range(count)]
    return nn.Sequential(*layers, Pooled(), nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], classes))


def espcn(classes: int, shape: tuple[int, ...], factor: int = 2) -> nn.Module:
    """Super-resolution: [N, C, H, W] -> [N, C, factor H, factor W] by moving channels into space."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 32, 5, padding=2, padding_mode="reflect"), nn.Tanh(),
        Residual(nn.Conv2d(32, 32, 3, padding=1), nn.PReLU(32)),
        nn.Conv2d(32, shape[0] * factor**2, 3, padding=1, padding_mode="replicate"), nn.PixelShuffle(factor),
    )  # fmt: skip
