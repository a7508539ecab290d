"""Networks over sequences: recurrent, and transformers (Vaswani 2017; ViT, Dosovitskiy 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .blocks import encoder_block


class Recurrent(nn.Module):
    """A recurrent network over [N, T, C] and a linear layer on the last step's output.

    `learned_state`: the initial states are parameters instead of zeros.
    """

    def __init__(
        self, kind: str, inputs: int, hidden: int, classes: int, layers: int, bidirectional: bool, learned_state: bool
    ) -> None:
        super().__init__()
        make: Any = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.cell = make(inputs, hidden, layers, batch_first=True, bidirectional=bidirectional)
        ways = 2 if bidirectional else 1
        self.head = nn.Linear(ways * hidden, classes)
        states = (2 if kind == "lstm" else 1) if learned_state else 0
        self.states = nn.ParameterList(0.5 * torch.randn(layers * ways, 1, hidden) for _ in range(states))

    def forward(self, x: Tensor) -> Tensor:
        states = [s.expand(-1, x.shape[0], -1).contiguous() for s in self.states]
        state = None if not states else tuple(states) if len(states) == 2 else states[0]
        y, _ = self.cell(x, state)
        return self.head(y[:, -1])  # type: ignore[no-any-return]


def lstm(
    classes: int, shape: tuple[int, ...], hidden: int = 16, layers: int = 2, bidirectional: bool = False,
    learned_state: bool = False,
) -> nn.Module:  # fmt: skip
    """Long short-term memory."""
    return Recurrent("lstm", shape[1], hidden, classes, layers, bidirectional, learned_state)


def lstm_bidirectional(classes: int, shape: tuple[int, ...], hidden: int = 16, layers: int = 2) -> nn.Module:
    """Both directions."""
    return Recurrent("lstm", shape[1], hidden, classes, layers, True, False)


def lstm_state(classes: int, shape: tuple[int, ...], hidden: int = 16) -> nn.Module:
    """Learned initial states."""
    return Recurrent("lstm", shape[1], hidden, classes, 1, True, True)


def gru(
    classes: int, shape: tuple[int, ...], hidden: int = 16, layers: int = 2, bidirectional: bool = False,
    learned_state: bool = False,
) -> nn.Module:  # fmt: skip
    """Gated recurrent unit (linear before reset, as PyTorch defines it)."""
    return Recurrent("gru", shape[1], hidden, classes, layers, bidirectional, learned_state)


def gru_bidirectional(classes: int, shape: tuple[int, ...], hidden: int = 16, layers: int = 2) -> nn.Module:
    """Both directions."""
    return Recurrent("gru", shape[1], hidden, classes, layers, True, False)


def gru_state(classes: int, shape: tuple[int, ...], hidden: int = 16) -> nn.Module:
    """Learned initial states."""
    return Recurrent("gru", shape[1], hidden, classes, 1, True, True)


class Text(nn.Module):
    """Token numbers [N, T] -> embedding and position -> blocks -> mean -> logits; `tied` predicts tokens instead."""

    def __init__(self, vocabulary: int, length: int, classes: int, width: int, layers: int, tied: bool, **block: Any):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(encoder_block(width, 4, **block) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.tied = tied
        if not tied:
            self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embedding(tokens) + self.position))
        if self.tied:
            return nn.functional.linear(x, self.embedding.weight)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def transformer(
    classes: int, shape: tuple[int, ...], vocabulary: int = 50, width: int = 32, layers: int = 2, **block: Any
) -> nn.Module:
    """An encoder with PyTorch's attention and exact GELU."""
    return Text(vocabulary, shape[0], classes, width, layers, False, **block)


def language(classes: int, shape: tuple[int, ...], width: int = 32, layers: int = 1) -> nn.Module:
    """A causal language model: attention written out, GELU by tanh, the embedding shared with the head."""
    return Text(classes, shape[0], classes, width, layers, True, fused=False, causal=True, gelu="tanh")


class ViT(nn.Module):
    """Patches, a class token, learned positions, transformer blocks."""

    def __init__(self, shape: tuple[int, ...], classes: int, patch: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(shape[0], width, patch, patch)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        count = (shape[1] // patch) * (shape[2] // patch)
        self.position = nn.Parameter(0.1 * torch.randn(1, count + 1, width))
        self.blocks = nn.Sequential(*(encoder_block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


def vit(
    classes: int, shape: tuple[int, ...], patch: int = 8, width: int = 48, layers: int = 2, heads: int = 3
) -> nn.Module:
    """The paper's Ti/16 has patch 16, width 192, 12 layers, 3 heads."""
    return ViT(shape, classes, patch, width, layers, heads)
