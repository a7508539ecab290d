"""What deltas and models take, and how fast: prints JSON.

    python benchmarks/codec.py [--rounds 4] [--output FILE]

Deltas are real: a depthwise-separable 1-D network of the demo's shape is trained on the demo's lab people, then
fine-tuned on each of its five device people for some rounds (Adam, and SGD with momentum). Each round's change of
the weights is encoded with error feedback, as an agent does. Compared on the very same quantized levels: order-0
entropy, one plain Huffman code for each tensor, zlib, lzma. `accuracy` is that of the network on the person's unseen
windows: as trained, and as the receiver of the deltas has it. Training uses PyTorch, one thread; figures of speed
are medians.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import statistics
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sanderling.codec import decode_delta, decode_integers, encode_delta, encode_integers
from sanderling.codec.coding.huffman import code_lengths
from sanderling.codec.quantize import DEFAULT_QUALITY, quantize
from sanderling.demo.data import DEVICE_PEOPLE, LAB_PEOPLE, Windows, person

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Tensors = dict[str, F32]

QUALITIES = (0.9, 0.95, 0.99)


class Network(torch.nn.Module):
    """A stem of 6 channels, four depthwise-separable blocks, a head of 7 classes: about 11 k weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(24, 32, 9), (32, 48, 7), (48, 64, 5), (64, 64, 5)]
        self.stem = torch.nn.Conv1d(6, 24, 5, stride=2, padding=2)
        self.blocks = torch.nn.ModuleList()
        for narrow, wide, kernel in widths:
            block = torch.nn.ModuleDict(
                {
                    "depthwise": torch.nn.Conv1d(narrow, narrow, kernel, padding=kernel // 2, groups=narrow),
                    "pointwise": torch.nn.Conv1d(narrow, wide, 1),
                }
            )
            self.blocks.append(block)
        self.head = torch.nn.Linear(64, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for index, block in enumerate(self.blocks):
            assert isinstance(block, torch.nn.ModuleDict)
            x = torch.relu(block["pointwise"](torch.relu(block["depthwise"](x))))
            if index in (0, 1):
                x = torch.nn.functional.max_pool1d(x, 2)
        out: torch.Tensor = self.head(x.mean(dim=2))
        return out


def weights(network: Network) -> Tensors:
    """A copy of all weights by name."""
    return {name: value.detach().numpy().copy() for name, value in network.named_parameters()}


def load(network: Network, tensors: Tensors) -> None:
    """The inverse of `weights`."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(torch.from_numpy(tensors[name]))


def train(network: Network, data: Windows, epochs: int, make: Callable[[Any], torch.optim.Optimizer]) -> None:
    """Train on windows in batches of 16."""
    optimizer = make(network.parameters())
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(16):  # type: ignore[no-untyped-call]  # PyTorch's own
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def accuracy(network: Network, data: Windows) -> float:
    """Share of windows that are recognized."""
    with torch.no_grad():
        return float((network(torch.from_numpy(data.x)).argmax(1) == torch.from_numpy(data.y)).float().mean())


def entropy_bytes(levels: list[I64]) -> int:
    """Order-0 entropy, each tensor by itself, tables not counted."""
    bits = 0.0
    for values in levels:
        counts = np.unique(values, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return math.ceil(bits / 8)


def plain_huffman_bytes(levels: list[I64]) -> int:
    """One Huffman code for each tensor, at least a bit a value, and one byte for each entry of its table."""
    bits = 0
    for values in levels:
        counts = np.unique(values, return_counts=True)[1]
        bits += int((counts * np.maximum(code_lengths(counts), 1)).sum()) + 8 * len(counts)
    return math.ceil(bits / 8)


def seconds(call: Callable[[], object]) -> float:
    """Median of five calls."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fine_tune(
    base: Tensors, make: Callable[[Any], torch.optim.Optimizer], rounds: int, quality: float
) -> dict[str, Any]:
    """All devices, all rounds: bytes, and how good the receiver's copy is."""
    sizes = {"sanderling": 0, "entropy": 0, "plain_huffman": 0, "zlib": 0, "lzma": 0, "float32": 0}
    local: list[float] = []
    remote: list[float] = []
    zeros: list[float] = []
    merged = {name: np.zeros_like(value) for name, value in base.items()}
    for number in DEVICE_PEOPLE:
        torch.manual_seed(number)
        data = person(number)
        network = Network()
        load(network, base)
        before, received = base, {name: value.copy() for name, value in base.items()}
        residual: Tensors | None = None
        for _ in range(rounds):
            train(network, data.seen, 3, make)
            now = weights(network)
            delta = {name: now[name] - before[name] for name in now}
            total = delta if residual is None else {name: delta[name] + residual[name] for name in delta}
            blob, residual = encode_delta(delta, residual, quality)
            for name, value in decode_delta(blob).items():
                received[name] += value
                merged[name] += value / len(DEVICE_PEOPLE)
            before = now
            levels = [quantize(value, quality)[0].reshape(-1) for value in total.values()]
            plain = b"".join(value.astype(np.int8).tobytes() for value in levels)
            sizes["sanderling"] += len(blob)
            sizes["float32"] += 4 * sum(value.size for value in delta.values())
            sizes["entropy"] += entropy_bytes(levels)
            sizes["plain_huffman"] += plain_huffman_bytes(levels)
            sizes["zlib"] += len(zlib.compress(plain, 9))
            sizes["lzma"] += len(lzma.compress(plain, preset=9))
            zeros.append(float((np.concatenate(levels) == 0).mean()))
        local.append(accuracy(network, data.unseen))
        load(network, received)
        remote.append(accuracy(network, data.unseen))
    load(network, {name: base[name] + merged[name] for name in base})
    return {
        "bytes": {name: size // (rounds * len(DEVICE_PEOPLE)) for name, size in sizes.items()},
        "float32_over_sanderling": round(sizes["float32"] / sizes["sanderling"], 2),
        "zeros": round(statistics.mean(zeros), 3),
        "accuracy": {
            "trained": round(statistics.mean(local), 4),
            "received": round(statistics.mean(remote), 4),
            "average_of_devices": round(
                statistics.mean(accuracy(network, person(number).unseen) for number in DEVICE_PEOPLE), 4
            ),
        },
    }


def speed() -> dict[str, Any]:
    """Millions of weights a second on synthetic integers of three kinds, and on a small delta."""
    generator = np.random.default_rng(1)
    sparse = (generator.laplace(0, 0.25, (1024, 1024))).round().astype(np.int8)
    kinds = {
        "laplace, 1 M, 14 % nonzero": sparse,
        "laplace, 1 M, dense": generator.laplace(0, 1.5, (1024, 1024)).round().astype(np.int8),
        "normal int8, 1 M": generator.normal(0, 30, (1024, 1024)).clip(-128, 127).astype(np.int8),
    }
    result: dict[str, Any] = {}
    for name, values in kinds.items():
        arrays: dict[str, npt.ArrayLike] = {"w": values}
        blob = encode_integers(arrays)
        encoding, decoding = seconds(partial(encode_integers, arrays)), seconds(partial(decode_integers, blob))
        result[name] = {
            "bytes": len(blob),
            "entropy_bytes": entropy_bytes([values.reshape(-1).astype(np.int64)]),
            "encode_mweights_s": round(values.size / 1e6 / encoding, 2),
            "decode_mweights_s": round(values.size / 1e6 / decoding, 2),
        }
    small = {
        name: 1e-3 * generator.standard_normal(value.shape).astype(np.float32)
        for name, value in weights(Network()).items()
    }
    blob = encode_delta(small)[0]
    result["delta of 11 k weights"] = {
        "encode_ms": round(1e3 * seconds(lambda: encode_delta(small)), 1),
        "decode_ms": round(1e3 * seconds(lambda: decode_delta(blob)), 1),
    }
    return result


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help="rounds of fine-tuning of each device")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lab = [person(number).seen for number in LAB_PEOPLE]
    network = Network()
    everything = Windows(np.concatenate([w.x for w in lab]), np.concatenate([w.y for w in lab]))
    train(network, everything, 12, lambda p: torch.optim.Adam(p, 2e-3))
    base = weights(network)
    makers: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "adam": lambda p: torch.optim.Adam(p, 1e-3),
        "sgd": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9),
    }
    report = {
        "weights": sum(value.size for value in base.values()),
        "tensors": len(base),
        "default_quality": DEFAULT_QUALITY,
        "deltas": {
            name: {str(q): fine_tune(base, make, options.rounds, q) for q in QUALITIES} for name, make in makers.items()
        },
        "speed": speed(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
