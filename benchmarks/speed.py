"""Time and memory of a training step, ours and the peers', same machine, same run. Prints JSON.

    python benchmarks/speed.py [--peers] [--folded] [--threads N] [--rounds N] [--seconds S] [--only NAME ...]

Nine models of `tests/support/zoo`, with the same weights and the same batch everywhere: ours from a plan file, as on
a device; PyTorch eagerly, in evaluation mode, that is with the frozen statistics of batch normalization that the
exported model has, and with `--folded` once more with them folded into the convolutions as the exporter does; with
`--peers` also onnxruntime-training 1.19.2 and onnxsim's training, each in an environment of its own that is made under
the cache directory. Every measurement is a fresh process; rounds alternate between the kinds, and medians over the
rounds are reported, so that a machine that slows down slows everybody. Every kind reports the loss of its first step:
ours has to be PyTorch's, and a peer whose loss differs does other work (`other_work`) and gets no ratio.

`step_ms` is the median step, `cpu_ms` the processor time per step of the best round (what to compare on a machine that
does other work as well); `first_s` goes from the start of the process to the end of the first step, imports
and loading included; `peak_mib` is the most resident memory of the whole process. `planning_s` is paid once per
model, before any of it. `ratio` is ours over theirs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import _packages  # noqa: E402

CHILD = ROOT / "benchmarks" / "_measured.py"
#: What each peer's environment holds, with the PyTorch and the runtime that we use ourselves (`{torch}`, ...).
#: onnxruntime-training imports PyTorch, and reads models up to what onnx 1.17 writes.
PEERS = {
    "onnxruntime-training": ["onnxruntime-training==1.19.2", "torch=={torch}", "onnx==1.17.0", "setuptools"],
    "onnxsim": ["onnxsim==0.8.1", "onnxruntime=={onnxruntime}"],
}

#: `sgd` has momentum 0.9, `sgd-plain` none, as in onnxruntime-training.
OPTIMIZERS = ("sgd", "sgd-plain", "adam")


@dataclass(frozen=True)
class Case:
    """A model of the zoo at a size, and its batch."""

    name: str
    shape: tuple[int, ...]
    batch: int = 8
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "mlp": Case("mlp", (784,), 8, {"hidden": (256, 128)}),
    "ds-cnn": Case("ds_cnn_2d", (1, 49, 10)),
    "mobilenet-v2": Case("mobilenet_v2", (3, 128, 128)),
    "efficientnet-lite0": Case("efficientnet_lite0", (3, 128, 128)),
    "resnet-18": Case("resnet18", (3, 128, 128)),
    "densenet-121": Case("densenet121", (3, 64, 64)),
    "unet": Case("unet", (3, 64, 64), 4),
    "gru": Case("gru", (50, 6), 8, {"hidden": 64}),
    "vit": Case("vit", (3, 64, 64), 8, {"width": 96, "layers": 4}),
}


def prepare(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    """Write what the children read; returns figures of the planning."""
    import torch

    from sanderling.engine import compile, read_weights
    from tests.support import zoo

    torch.set_num_threads(threads)
    net = zoo.module(case.name, case.shape, **case.options)
    x = zoo.sample(case.name, case.batch, case.shape)
    with torch.no_grad():
        y = zoo.targets(case.name, tuple(net(torch.from_numpy(x)).shape))
    torch.save(net, folder / "net.pt")
    np.savez(folder / "batch.npz", x=x, y=y)
    loss = zoo.ZOO[case.name].loss
    static = zoo.export(net, x, dynamic=False)
    (folder / "model.onnx").write_bytes(static)
    (folder / "case.json").write_text(json.dumps({"loss": loss, "weights": list(read_weights(static))}))
    model = zoo.export(net, x)
    planning: dict[str, float] = {}
    for optimizer in OPTIMIZERS:
        start = time.perf_counter()
        plan = compile(model, loss=loss, batch=case.batch, optimizer=optimizer.removesuffix("-plain"), threads=threads)
        planning[optimizer] = time.perf_counter() - start
        (folder / optimizer).mkdir()
        plan.save(folder / optimizer / "plan")
        for name in ("net.pt", "batch.npz", "model.onnx", "case.json"):
            (folder / optimizer / name).symlink_to(folder / name)
    return {"batch": case.batch, "shape": case.shape, "planning_s": round(min(planning.values()), 2)}


def environment(peer: str) -> str:
    """The Python of a peer's own environment, made on first use."""
    ours = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime")}
    return _packages.environment(peer, [package.format(**ours) for package in PEERS[peer]])


def measure(kind: str, python: str, optimizer: str, threads: int, seconds: float, folder: Path) -> Any:
    """One fresh process; None with the reason on stderr if it cannot run the model."""
    count = str(threads)
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or kind not in PEERS}
    variables = {"OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": count}
    done = subprocess.run(
        [python, str(CHILD), kind, optimizer, count, str(seconds), str(folder / optimizer)],
        capture_output=True, text=True, check=False,
        env={**clean, **variables, "SANDERLING_STARTED": str(time.monotonic())},
    )  # fmt: skip
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds of one kind."""
    failed = [r["error"] for r in rounds if "error" in r]
    if failed:
        return {"cannot_run": failed[0]}
    return {
        "step_ms": round(statistics.median(r["step"] for r in rounds) * 1e3, 3),
        "cpu_ms": round(min(r["cpu"] for r in rounds) * 1e3, 3),
        "first_s": round(statistics.median(r["first"] for r in rounds), 3),
        "peak_mib": round(statistics.median(r["peak"] for r in rounds) / 2**20, 1),
    }


def compare(case: Case, folder: Path, pythons: dict[str, str], optimizer: str, options: Any) -> dict[str, Any]:
    """All kinds on one case with one optimizer."""
    rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in pythons}
    for _ in range(options.rounds):
        for kind, python in pythons.items():
            if not (rounds[kind] and "error" in rounds[kind][-1]):
                rounds[kind].append(measure(kind, python, optimizer, options.threads, options.seconds, folder))
    result: dict[str, Any] = {kind: summary(r) for kind, r in rounds.items()}
    reference = rounds["pytorch"][0]["loss"]
    for kind, measured in list(result.items()):
        if "step_ms" not in measured:
            continue
        loss = rounds[kind][0]["loss"]
        if not math.isclose(loss, reference, rel_tol=1e-3):
            if kind == "ours":
                raise SystemExit(f"{case.name}: the first loss of {kind} is {loss}, PyTorch's is {reference}")
            result[kind] = {"other_work": f"its first loss is {loss}, PyTorch's is {reference}", **measured}
            continue
        if kind != "ours" and "step_ms" in result["ours"]:
            measured["ratio"] = round(result["ours"]["step_ms"] / measured["step_ms"], 3)
            measured["first_ratio"] = round(result["ours"]["first_s"] / measured["first_s"], 3)
    return result


def _geometric(values: list[float]) -> float | None:
    return round(math.exp(statistics.fmean(map(math.log, values))), 3) if values else None


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", action="store_true", help="onnxruntime-training and onnxsim as well")
    parser.add_argument("--folded", action="store_true", help="PyTorch with batch normalization folded as well")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of steps in each process")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, help="all with --peers, else sgd and adam")
    parser.add_argument("--only", nargs="+", choices=list(CASES))
    options = parser.parse_args()
    pythons = {"ours": sys.executable, "pytorch": sys.executable}
    if options.folded:
        pythons["pytorch-folded"] = sys.executable
    if options.peers:
        pythons |= {peer: environment(peer) for peer in PEERS}
    results: dict[str, Any] = {
        "machine": platform.machine(), "python": platform.python_version(), "threads": options.threads, "cases": {},
    }  # fmt: skip
    collected: dict[str, dict[str, list[float]]] = {}
    for label, case in CASES.items():
        if options.only and label not in options.only:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                entry = prepare(case, folder, options.threads)
            except Exception as error:
                results["cases"][label] = {"error": str(error)}
                continue
            for optimizer in options.optimizers or (OPTIMIZERS if options.peers else ("sgd", "adam")):
                entry[optimizer] = compare(case, folder, pythons, optimizer, options)
                print(f"{label:<20} {optimizer:<9} {json.dumps(entry[optimizer])}", file=sys.stderr)
                for kind, measured in entry[optimizer].items():
                    for key in ("ratio", "first_ratio"):
                        if key in measured:
                            collected.setdefault(f"{optimizer} {kind}", {}).setdefault(key, []).append(measured[key])
            results["cases"][label] = entry
    results["geometric_means"] = {
        name: {key: _geometric(values) for key, values in ratios.items()} | {"largest": max(ratios["ratio"])}
        for name, ratios in collected.items()
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
