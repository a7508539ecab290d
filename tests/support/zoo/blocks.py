"""What several architectures are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def unit(
    narrow: int, wide: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation: Activation | None = nn.ReLU
) -> nn.Sequential:
    """Convolution without bias, batch normalization, activation (None: linear)."""
    layers = [
        nn.Conv2d(narrow, wide, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(wide),
        *([activation()] if activation else []),
    ]
    return nn.Sequential(*layers)


def divisible(value: float, by: int = 8) -> int:
    """The nearest multiple, never 10 % below the value (MobileNet's rounding of widths)."""
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


class Spelled(nn.Module):
    """HardSwish as x * relu6(x + 3) / 6, the spelling of models older than the operator."""

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.relu6(x + 3) / 6


class Pooled(nn.Module):
    """Mean over all axes after the channels: [N, C, ...] -> [N, C]."""

    def __init__(self, spelling: str = "mean") -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "mean":
            return x.mean([*range(2, x.ndim)])
        return nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)


class Attention(nn.Module):
    """Multi-head self-attention over [N, T, C] (Vaswani 2017); `fused` writes PyTorch's own operator."""

    def __init__(self, width: int, heads: int, fused: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.fused, self.causal = heads, fused, causal
        self.packed = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        packed = self.packed(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = packed[0], packed[1], packed[2]
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            if self.causal:
                scores = scores.masked_fill(torch.ones(length, length).tril() == 0, float("-inf"))
            mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


def encoder_block(width: int, heads: int, expansion: int = 4, gelu: str = "none", **attention: Any) -> nn.Sequential:
    """A pre-norm transformer block."""
    return nn.Sequential(
        Residual(nn.LayerNorm(width), Attention(width, heads, **attention)),
        Residual(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width),
            nn.GELU(approximate=gelu),
            nn.Linear(expansion * width, width),
        ),
    )
