"""Step time and peak memory of our training against PyTorch's, same machine, same run. Prints JSON.

    python benchmarks/engine.py [--steps N]

Every measurement is a fresh process with one thread: it imports, builds, warms up, takes N steps on noise, and
reports the median step and the peak resident memory of the whole process (VmHWM). PyTorch runs eagerly, with the same
model, batch and optimizer (Adam). `predicted` is what the plan said beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sanderling.engine import MemoryLimitError, Trainer, load_plan, peak_resident_bytes
from sanderling.engine.graph import Array, Builder, TensorType
from sanderling.engine.memory import LEAN_ENVIRONMENT

#: (stride, channels) of the depthwise separable blocks of the MobileNet-like model.
_MOBILE = [(1, 32), (2, 64), (1, 64), (2, 128), (1, 128), (2, 256), (1, 256)]


def mobile_cnn(size: int = 96, classes: int = 10) -> bytes:
    """MobileNet-like: stem 3x3 stride 2 to 16 channels, seven depthwise separable blocks, global pooling, linear."""
    from sanderling.engine import onnxio  # imports onnx, which the measured processes must not

    rng = np.random.default_rng(0)
    b = Builder("h")
    values: dict[str, Array] = {}

    def weight(*shape: int) -> str:
        name = f"w{len(values)}"
        fan = int(np.prod(shape[1:])) or 1
        values[name] = (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)
        return name

    def conv(x: str, narrow: int, wide: int, kernel: int, stride: int, group: int = 1) -> str:
        pads = [kernel // 2] * 4
        arguments = (x, weight(wide, narrow // group, kernel, kernel), weight(wide))
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads, "group": group}
        return b.op("Relu", b.op("Conv", *arguments, **sizes))  # type: ignore[arg-type]

    x, channels = conv("x", 3, 16, 3, 2), 16
    for stride, wide in _MOBILE:
        x = conv(x, channels, channels, 3, stride, channels)
        x, channels = conv(x, channels, wide, 1, 1), wide
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    b.op("Gemm", x, weight(classes, channels), weight(classes), transB=1, name="logits")
    kinds = {"x": TensorType("float32", (1, 3, size, size))}, {"logits": TensorType("float32", (1, classes))}
    return onnxio.to_bytes(b.nodes, *kinds, values, onnxio.OPSET, free_batch=True)


def wrist_cnn() -> bytes:
    """The demo's model."""
    from sanderling.engine import models

    return models.depthwise_cnn_1d()


def torch_model(name: str) -> Any:
    """The same layers in PyTorch."""
    from torch import nn

    if name == "wrist":
        layers: list[Any] = [nn.Conv1d(6, 32, 5, 2, 2), nn.ReLU()]
        for narrow, wide, stride in ((32, 48, 2), (48, 64, 1), (64, 64, 1)):
            layers += [nn.Conv1d(narrow, narrow, 5, stride, 2, groups=narrow), nn.Conv1d(narrow, wide, 1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 7))
    layers, channels = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU()], 16
    for stride, wide in _MOBILE:
        layers += [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, wide, 1), nn.ReLU()]
        channels = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


CASES: dict[str, tuple[Callable[[], bytes], tuple[int, ...], int, int]] = {
    "wrist": (wrist_cnn, (6, 100), 7, 16),
    "mobile": (mobile_cnn, (3, 96, 96), 10, 8),
}


def timed(step: Callable[[], Any], steps: int) -> dict[str, float]:
    """Median step in milliseconds and peak memory in MiB."""
    for _ in range(5):
        step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {"step_ms": round(statistics.median(times) * 1e3, 3), "peak_mib": round(peak_resident_bytes() / 2**20, 1)}


def child(kind: str, name: str, path: str, steps: int) -> dict[str, float]:
    """One measurement in this process."""
    _, shape, classes, batch = CASES[name]
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((batch, *shape), np.float32), rng.integers(0, classes, batch)
    if kind == "ours":
        trainer = Trainer(load_plan(path))
        return timed(lambda: trainer.step(x, y), steps)
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    net = torch_model(name)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        optimizer.step()

    return timed(step, steps)


def measure(kind: str, name: str, path: str, steps: int) -> Any:
    """One measurement in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, name, path, "--steps", str(steps)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **LEAN_ENVIRONMENT},
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--child", nargs=3)
    options = parser.parse_args()
    if options.child:
        kind, name, path = options.child
        print(json.dumps(child(kind, name, path, options.steps)))
        return
    from sanderling.engine import compile

    results: dict[str, Any] = {"machine": platform.machine(), "python": platform.python_version(), "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, _, _, batch) in CASES.items():
            path = str(Path(folder, name))
            free = compile(make(), batch=batch, trial=True)
            free.save(path)
            case: dict[str, Any] = {"batch": batch, "predicted_mib": round(free.peak_bytes / 2**20, 1)}
            case["ours"] = measure("ours", name, path, options.steps)
            case["pytorch"] = measure("pytorch", name, "", options.steps)
            limit = (free.peak_bytes + free.info.baseline_bytes) // 2
            try:
                tight = compile(make(), batch=batch, memory_limit=limit)
            except MemoryLimitError as error:
                case["tight"] = str(error)
            else:
                tight.save(path)
                case["tight"] = {
                    "limit_mib": round(limit / 2**20, 1), "predicted_mib": round(tight.peak_bytes / 2**20, 1),
                    "micro_batch": tight.micro_batch, "segments": tight.segments,
                    **measure("ours", name, path, options.steps),
                }  # fmt: skip
            results["cases"][name] = case
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
