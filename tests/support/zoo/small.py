"""Small networks: for vectors and sensor windows, and collections of rarer layers.

Papers: DS-CNN (Zhang 2017, "Hello Edge"), the anomaly autoencoder of MLPerf Tiny (Banbury 2021), TCN (Bai 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from .blocks import Pooled, Residual, unit


def mlp(classes: int, shape: tuple[int, ...], hidden: tuple[int, ...] = (64, 32)) -> nn.Module:
    """Linear layers with ReLU."""
    layers: list[nn.Module] = []
    width = shape[0]
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, classes))


def autoencoder(classes: int, shape: tuple[int, ...], hidden: int = 128, code: int = 8) -> nn.Module:
    """Four layers down, a narrow one, four up; batch normalization after each but the last."""
    widths = [shape[0], *[hidden] * 4, code, *[hidden] * 4]
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.BatchNorm1d(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, shape[0]))


def ds_cnn_1d(classes: int, shape: tuple[int, ...], widths: tuple[int, ...] = (32, 48, 64, 64)) -> nn.Module:
    """Depthwise separable convolutions over time, sensor window [N, C, T]."""
    layers: list[nn.Module] = [nn.Conv1d(shape[0], widths[0], 5, 2, 2), nn.BatchNorm1d(widths[0]), nn.ReLU()]
    for block, (n, w) in enumerate(pairwise(widths)):
        layers += [nn.Conv1d(n, n, 5, 2 if block == 0 else 1, 2, groups=n), nn.BatchNorm1d(n), nn.ReLU()]
        layers += [nn.Conv1d(n, w, 1), nn.BatchNorm1d(w), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def ds_cnn_2d(classes: int, shape: tuple[int, ...], width: int = 64) -> nn.Module:
    """Keyword spotting: spectrogram [N, 1, 49, 10], a 10x4 convolution and four depthwise separable blocks."""
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, (10, 4), (2, 2), (5, 1)), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)
    ]  # fmt: skip
    for _ in range(4):
        layers += [unit(width, width, 3, 1, width), unit(width, width, 1)]
    return nn.Sequential(*layers, Pooled("adaptive"), nn.Linear(width, classes))


class _Cut(nn.Module):
    """Drops elements at the end, so that padding on both sides acts as padding before."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.count]


def tcn(classes: int, shape: tuple[int, ...], width: int = 16) -> nn.Module:
    """Causal dilated convolutions with weight normalization folded away, LeakyReLU."""

    def block(dilation: int) -> nn.Module:
        pad = 2 * dilation
        return Residual(nn.Conv1d(width, width, 3, padding=pad, dilation=dilation), _Cut(pad), nn.LeakyReLU(0.1))

    return nn.Sequential(
        nn.Conv1d(shape[0], width, 1), *(block(2**i) for i in range(3)), Pooled(), nn.Linear(width, classes)
    )


#: Activations of the collection, in order.
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.PReLU(8), nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.SiLU,
    nn.Mish, nn.LeakyReLU, nn.Softsign, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Tanhshrink, nn.GLU,
)  # fmt: skip


def activations(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """A 1-D convolution before each activation that PyTorch has and exporters write in different ways."""
    layers: list[nn.Module] = [nn.Conv1d(shape[0], 8, 3, padding=1)]
    for make in ACTIVATIONS:
        layers += [make(), nn.Conv1d(8, 8, 3, padding=1)]
    layers[-2] = nn.GLU(1)
    layers[-1] = nn.Conv1d(4, 8, 3, padding=1)
    return nn.Sequential(*layers, Pooled(), nn.Linear(8, classes))


def norms(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Group, instance, layer, local-response-free normalizations and pooling variants over [N, C, H, W]."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 12, 3, padding=1), nn.GroupNorm(3, 12), nn.PReLU(),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular"),
        nn.InstanceNorm2d(12, affine=True), nn.ELU(), nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(12, 12), nn.Softplus(), nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(12, 8, 1), nn.InstanceNorm2d(8), nn.Hardswish(), nn.Flatten(1), nn.LazyLinear(16),
        nn.LayerNorm(16), nn.Hardsigmoid(), nn.Linear(16, classes),
    )  # fmt: skip


class Assorted(nn.Module):
    """Reductions, powers, gathers, pads, masks and broadcasting between linear layers."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, 24)
        self.second = nn.Linear(24, 24)
        self.scale = nn.Parameter(torch.rand(24) + 0.5)
        self.gate = nn.Parameter(torch.rand(1) + 0.5)
        self.head = nn.Linear(24 + 4 * 6, classes)
        self.register_buffer("order", torch.randperm(24))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.normalize(self.first(x), dim=1) * self.scale
        x = x[:, self.order]  # type: ignore[index]  # a buffer
        x = torch.where(x > 0, x.clamp(min=1e-3).sqrt().clamp(max=2.0), x.abs() ** 1.5).nan_to_num(0.0)
        x = torch.exp(-(self.second(x) ** 2)) * self.gate + torch.log1p(x * x)
        table = x.reshape(-1, 4, 6)
        wide = nn.functional.pad(table, (1, 1, 0, 0), value=0.25)[:, :, 1:-1] * table.amax(2, keepdim=True)
        wide = wide - table.logsumexp(1, keepdim=True) + table.cumsum(2) + table.std(2, keepdim=True).expand(-1, -1, 6)
        picked = torch.einsum("nij,nkj->nik", wide, table) @ table
        return self.head(torch.cat([x, picked.flatten(1)], 1))  # type: ignore[no-any-return]


def assorted(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """See `Assorted`."""
    return Assorted(shape[0], classes)
