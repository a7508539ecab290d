"""Whether a memory limit holds, how good predictions are, and what less memory costs. Prints JSON.

    python benchmarks/limit.py [--triples 24] [--steps 8] [--seed 0] [--only limit|trade]

`limit`: random triples of a model of the zoo, a batch and a limit between the smallest that is feasible and what
training without a limit takes. Each is planned, then trained in a fresh process that imports, limits itself and takes
some steps (`_limited.py`); its peak resident memory is what the operating system says (VmHWM). Where a limit below
the feasible was asked for, the smallest that the error names must be feasible.

`trade`: for deep models, the step at 25 % of the activation memory of the unconstrained step (what lies between and
inside sessions; gradients of weights, those of a whole batch among them, not counted), beside the unconstrained one,
interleaved, in processor time of one thread; and whether gradients are bit for bit those of the same micro-batches
without any recomputation. All in float32.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._limited import noise
from sanderling.engine import MemoryLimitError, Trainer, TrainingPlan, compile
from sanderling.engine.exchange import arrange
from sanderling.engine.memory import LEAN_ENVIRONMENT

#: Models of the zoo, and image sizes where they take images.
MODELS: dict[str, tuple[int, ...]] = {
    "mlp": (), "autoencoder": (), "ds_cnn_1d": (), "ds_cnn_2d": (), "tcn": (), "lstm": (), "gru": (), "transformer": (),
    "vit": (), "mobilenet_v1": (48, 96), "mobilenet_v2": (48, 96, 128), "mobilenet_v3_small": (48, 96),
    "efficientnet_lite0": (48, 96), "shufflenet_v2": (48, 96), "squeezenet": (64, 96), "resnet18": (48, 96),
    "densenet121": (48, 64), "unet": (48, 64), "unet_resize": (48, 64), "convnext": (),
}  # fmt: skip
TRADE: dict[str, tuple[int, int]] = {  # model: image size, batch
    "densenet121": (128, 8), "resnet50": (128, 8), "resnet18": (128, 8), "mobilenet_v2": (128, 8),
}  # fmt: skip
SHARE = 0.25


def exported(name: str, size: int | None, folder: Path) -> Path:
    """The model as a file, exported once."""
    from tests.support.zoo import export, module, sample

    path = folder / f"{name}-{size}.onnx"
    if not path.exists():
        shape: dict[str, Any] = {"shape": (3, size, size)} if size else {}
        path.write_bytes(export(module(name, **shape), sample(name, **shape), "torchscript", dynamic=True))
    return path


def peak_of(path: Path, limit: int, steps: int) -> tuple[int, str]:
    """Peak resident bytes of a fresh process that trains, as the operating system says, and its error if any."""
    child = Path(__file__).parent / "_limited.py"
    done = subprocess.run(
        [sys.executable, str(child), str(path), str(limit), str(steps)],
        capture_output=True, text=True, check=False, env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip
    message = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
    return int(done.stdout or 0), message[0] if done.returncode else ""


def triple(name: str, size: int | None, folder: Path, rng: random.Random, steps: int) -> dict[str, Any]:
    """One random triple: planned, trained, compared."""
    from tests.support.zoo import ZOO

    model = exported(name, size, folder)
    wishes: dict[str, Any] = {
        "batch": rng.choice((1, 2, 4, 8, 16, 24)), "loss": ZOO[name].loss, "optimizer": rng.choice(("adam", "sgd")),
    }  # fmt: skip
    free = compile(model, **wishes).peak_bytes
    row: dict[str, Any] = {"model": name, "size": size, **wishes}
    try:
        compile(model, memory_limit=1 << 20, trial=False, **wishes)
    except MemoryLimitError as error:
        least = error.smallest
    limit = round(least + rng.random() * max(free - least, 4 << 20))
    began = time.perf_counter()
    try:
        plan = compile(model, memory_limit=limit, **wishes)
    except MemoryLimitError as error:  # the computed least was too little, which trials find out
        row["named"] = error.smallest
        limit = error.smallest
        try:
            plan = compile(model, memory_limit=limit, **wishes)
        except MemoryLimitError as again:
            return row | {"limit": limit, "error": f"the limit named is refused: {again}"}
    row |= {"limit": limit, "plan_seconds": round(time.perf_counter() - began, 1)}
    path = folder / "plan"
    plan.save(path)
    peak, error_text = peak_of(path, limit, steps)
    return row | {
        "micro_batch": plan.micro_batch, "segments": plan.segments, "state": plan.info.optimizer_state,
        "checkpoints": plan.info.checkpoints, "computed": plan.info.footprint.total - plan.info.footprint.correction,
        "predicted": plan.peak_bytes, "peak": peak, "error": error_text,
    }  # fmt: skip


def limits(count: int, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """Random triples and their summary."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        name = rng.choice(list(MODELS))
        size = rng.choice(MODELS[name]) if MODELS[name] else None
        rows.append(triple(name, size, folder, rng, steps))
        print(f"{index + 1}/{count} {json.dumps(rows[-1])}", file=sys.stderr, flush=True)
    done = [r for r in rows if "peak" in r and not r["error"]]
    errors = [abs(r["predicted"] - r["peak"]) / r["peak"] for r in done]
    computed = [abs(r["computed"] - r["peak"]) / r["peak"] for r in done]
    return {
        "triples": len(rows),
        "above_limit": sum(r["peak"] > r["limit"] for r in done),
        "failed": [r for r in rows if r.get("error")],
        "prediction_error": {"median": round(statistics.median(errors), 4), "largest": round(max(errors), 4)},
        "computed_error": {"median": round(statistics.median(computed), 4), "largest": round(max(computed), 4)},
        "plan_s": {
            "median": statistics.median(r["plan_seconds"] for r in done),
            "largest": max(r["plan_seconds"] for r in done),
        },
        "rows": rows,
    }  # fmt: skip


def activations(plan: TrainingPlan) -> int:
    """Bytes between and inside sessions, without gradients of weights between them."""
    return plan.info.arena + arrange(plan.info).crossing_bytes


def quarters(model: Path, free: TrainingPlan, wishes: dict[str, Any]) -> Iterator[TrainingPlan]:
    """For each micro-batch, the plan within a quarter of the free plan's activation memory, if there is one."""
    wanted = SHARE * activations(free)
    for micro_batch in sorted({-(-free.info.batch // parts) for parts in (1, 2, 4, 8)}):
        held = 0 if micro_batch == free.info.batch else free.info.footprint.weights  # gradients of the whole batch
        limit = round(free.peak_bytes + held - activations(free) + wanted)
        with contextlib.suppress(MemoryLimitError):
            plan = compile(model, memory_limit=limit, micro_batch=micro_batch, trial=False, **wishes)
            while activations(plan) > wanted:  # what cuts save of gradients of weights may not be spent either
                limit -= max(round(activations(plan) - wanted), 1 << 20)
                plan = compile(model, memory_limit=limit, micro_batch=micro_batch, trial=False, **wishes)
            yield plan


def trade(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """What a quarter of the activation memory costs in time."""
    from tests.support.zoo import ZOO

    size, batch = TRADE[name]
    model = exported(name, size, folder)
    wishes: dict[str, Any] = {"batch": batch, "loss": ZOO[name].loss, "optimizer": "sgd", "precision": "float32"}
    free = compile(model, **wishes)
    tight = min(quarters(model, free, wishes), key=lambda plan: plan.info.seconds)
    same = compile(model, micro_batch=tight.micro_batch, segments=1, **wishes)
    inputs, targets = noise(free)
    trainers = {"free": Trainer(free), "tight": Trainer(tight)}
    _, wanted = Trainer(same).gradients(inputs, targets)
    _, given = trainers["tight"].gradients(inputs, targets)
    times: dict[str, list[float]] = {key: [] for key in trainers}
    for _ in range(rounds):
        for key, trainer in trainers.items():
            began = time.process_time()
            trainer.step(inputs, targets)
            times[key].append(time.process_time() - began)
    ratio = statistics.median(b / a for a, b in zip(times["free"][1:], times["tight"][1:], strict=True))
    return {
        "model": name, "batch": batch, "image": size,
        "activation_bytes": {"free": activations(free), "tight": activations(tight)},
        "share": round(activations(tight) / activations(free), 3),
        "micro_batch": tight.micro_batch, "segments": tight.segments, "blocked": tight.info.block > 0,
        "step_ms": {key: round(statistics.median(t[1:]) * 1e3, 1) for key, t in times.items()},
        "time_ratio": round(ratio, 3),
        "bit_identical": all(np.array_equal(given[n], wanted[n]) for n in wanted),
    }  # fmt: skip


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--triples", type=int, default=24)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("limit", "trade"))
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "limit":
            results["trade"] = []
            for name in TRADE:
                results["trade"].append(trade(name, Path(folder), options.rounds))
                print(json.dumps(results["trade"][-1]), file=sys.stderr, flush=True)
        if options.only != "trade":
            results["limit"] = limits(options.triples, options.steps, options.seed, Path(folder))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
