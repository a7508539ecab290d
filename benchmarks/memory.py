"""Memory of training, ours and the peers': whole processes, peaks as the operating system counts them. Prints JSON.

    python benchmarks/memory.py [--peers] [--only mobilenet resnet densenet] [--picture FOLDER]

- mobilenet: MobileNetV2 at 128x128, batch 8, the whole process under a hard limit of 110 MiB; PyTorch and, with
  `--peers`, onnxruntime-training 1.19.2 (in an environment of its own, see `speed.py`) on the same batch.
- resnet: ResNet-18 at 224x224, batch 8: what the peak lies above a process that has only imported what it needs, at a
  limit that allows a quarter of PyTorch's growth.
- densenet: DenseNet with growing depth (121 layers among them): one segment, as every framework does it, beside the
  least that cuts come to, both exact and with the whole batch at once; bytes for what is held while a step runs
  (between and inside sessions), measured above the rest of the same process.

Every figure is a fresh process on one thread that takes a few steps on noise. Where a limit is not met the entry says
so and gives the smallest one that is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MEBI = 2**20
STEPS = 6
#: What our child takes beside a trial run: a batch read from a file, and this module. The limit is a hard one.
RESERVE = 3 * MEBI
LIMIT = 110 * MEBI
#: A limit that DenseNet-121 barely meets.
TIGHT = 180 * MEBI
#: Layers of the four dense blocks; the ones of DenseNet-121 are 6, 12, 24, 16.
BLOCKS = [(n, 2 * n, 4 * n, round(8 * n / 3)) for n in (1, 2, 3, 4, 5, 6, 7, 8)]


def child(kind: str, folder: Path, limit: int) -> None:
    """One measured process: `import`, `import-pytorch` or `ours`; the others are those of `speed.py`."""
    from sanderling.engine import Trainer, enforce_limit, load_plan, peak_resident_bytes

    result: dict[str, Any] = {}
    if kind == "ours":
        if limit:
            enforce_limit(limit)
        trainer = Trainer(load_plan(folder / "plan"), learning_rate=1e-4)
        with np.load(folder / "batch.npz") as batch:
            x, y = batch["x"], batch["y"]
        times = []
        for _ in range(STEPS):
            start = time.perf_counter()
            loss = trainer.step(x, y)
            times.append(time.perf_counter() - start)
            result.setdefault("loss", loss)
        result["step"] = statistics.median(times[1:])
    elif kind == "import-pytorch":
        import torch

        assert torch
    print(json.dumps({"peak": peak_resident_bytes(), **result}))


def run(kind: str, folder: Path, limit: int = 0) -> dict[str, Any]:
    """Figures of a fresh process."""
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, str(folder), str(limit)],
        capture_output=True, text=True, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{kind}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def prepare(name: str, shape: tuple[int, ...], batch: int, folder: Path, optimizer: str, **options: Any) -> bytes:
    """Write what the processes read, as `speed.py` does; returns the model."""
    import torch

    from sanderling.engine import read_weights
    from tests.support import zoo

    torch.set_num_threads(1)
    net = zoo.module(name, shape, **options)
    x = zoo.sample(name, batch, shape)
    y = zoo.targets(name, (batch, zoo.ZOO[name].classes))
    place = folder / optimizer
    place.mkdir(exist_ok=True)
    torch.save(net, place / "net.pt")
    np.savez(place / "batch.npz", x=x, y=y)
    fixed = zoo.export(net, x, dynamic=False)
    (place / "model.onnx").write_bytes(fixed)
    case = {"loss": "cross_entropy", "weights": list(read_weights(fixed))}
    (place / "case.json").write_text(json.dumps(case))
    return zoo.export(net, x)


def planned(model: bytes, limit: int, folder: Path, **wishes: Any) -> dict[str, Any]:
    """Plan for a limit (or the smallest one that is met), train under it, and say what it took."""
    from sanderling.engine import MemoryLimitError, compile

    entry: dict[str, Any] = {"limit_mib": _mib(limit)}
    used = limit
    for attempt in range(8):
        try:
            plan = compile(model, memory_limit=used, reserve=RESERVE, **wishes)
            break
        except MemoryLimitError as error:
            entry.setdefault("smallest_mib", _mib(error.smallest))
            used = max(error.smallest, used + attempt * 4 * MEBI)
    else:
        return entry
    plan.save(folder / "plan")
    found = run("ours", folder, used)
    return entry | {
        "met": used == limit, "used_limit_mib": _mib(used), "peak_mib": _mib(found["peak"]),
        "predicted_mib": _mib(plan.peak_bytes), "step_ms": round(found["step"] * 1e3, 1), "loss": found["loss"],
        "micro_batch": plan.micro_batch, "segments": plan.segments, "optimizer_state": plan.info.optimizer_state,
        "stored_tensors": plan.info.checkpoints, "gradient_sums": plan.info.gradient_sums, "_peak": found["peak"],
    }  # fmt: skip


def peer(kind: str, python: str, optimizer: str, folder: Path) -> dict[str, Any]:
    """A peer on the same batch."""
    from benchmarks.speed import measure

    found: dict[str, Any] = measure(kind, python, optimizer, 1, 1.0, folder)
    if "error" in found:
        return {"cannot_run": found["error"]}
    return {
        "peak_mib": _mib(found["peak"]), "step_ms": round(found["step"] * 1e3, 1), "loss": found["loss"],
        "_peak": found["peak"],
    }  # fmt: skip


def mobilenet(options: argparse.Namespace) -> dict[str, Any]:
    """The whole process under 110 MiB."""
    result: dict[str, Any] = {}
    for optimizer in ("sgd", "adam"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = prepare("mobilenet_v2", (3, 128, 128), 8, folder, optimizer)
            entry = {"ours": planned(model, LIMIT, folder / optimizer, batch=8, optimizer=optimizer)}
            entry["pytorch"] = peer("pytorch", sys.executable, optimizer, folder)
            if options.peers:
                from benchmarks.speed import environment

                kind = "onnxruntime-training"
                entry[kind] = peer(kind, environment(kind), optimizer, folder)
            result[optimizer] = _same_loss(entry)
    return result


def resnet(options: argparse.Namespace) -> dict[str, Any]:
    """Growth over a process that has only imported, at most a quarter of PyTorch's."""
    result: dict[str, Any] = {}
    for optimizer in ("sgd", "adam"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = prepare("resnet18", (3, 224, 224), 8, folder, optimizer)
            theirs = peer("pytorch", sys.executable, optimizer, folder)
            growth = theirs["_peak"] - run("import-pytorch", folder)["peak"]
            base = run("import", folder)["peak"]
            ours = planned(model, base + growth // 4, folder / optimizer, batch=8, optimizer=optimizer)
            entry = {"ours": ours, "pytorch": theirs}
            theirs["growth_mib"] = _mib(growth)
            if "_peak" in ours:
                ours["growth_mib"] = _mib(ours["_peak"] - base)
                entry["growth_ratio"] = round((ours["_peak"] - base) / growth, 3)
                entry["step_ratio"] = round(ours["step_ms"] / theirs["step_ms"], 2)
            result[optimizer] = _same_loss(entry)
    return result


def densenet(options: argparse.Namespace) -> dict[str, Any]:
    """What is held while a step runs, by depth."""
    from sanderling.engine import MemoryLimitError, compile

    rows = []
    for blocks in BLOCKS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "sgd"
            model = prepare("densenet121", (3, 128, 128), 4, Path(name), "sgd", blocks=blocks)
            wishes: dict[str, Any] = {"batch": 4, "micro_batch": 4, "precision": "float32", "optimizer": "sgd"}
            row: dict[str, Any] = {"layers": 5 + 2 * sum(blocks)}
            for kind in ("one segment", "cut"):
                plan = _least(model, wishes) if kind == "cut" else compile(model, segments=1, trial=False, **wishes)
                plan.save(folder / "plan")
                found = run("ours", folder)
                fixed = plan.info.footprint
                rest = fixed.total - fixed.exchange - fixed.arena
                row[kind] = {
                    "held_mib": _mib(found["peak"] - rest), "peak_mib": _mib(found["peak"]),
                    "computed_held_mib": _mib(fixed.exchange + fixed.arena), "segments": plan.segments,
                    "step_ms": round(found["step"] * 1e3, 1), "loss": found["loss"],
                }  # fmt: skip
            _same_loss(row)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
            if options.picture is not None and blocks == BLOCKS[5]:
                _draw_plan(model, MemoryLimitError, compile, options.picture)
    if options.picture is not None:
        _draw_depth(rows, options.picture / "densenet-depth.png")
    return {"batch": 4, "depths": rows, "exponents": {k: _exponent(rows, k) for k in ("one segment", "cut")}}


def _least(model: bytes, wishes: dict[str, Any]) -> Any:
    """The plan that needs least by the model of cost, without a trial."""
    from sanderling.engine import MemoryLimitError, compile

    limit = 1
    for _ in range(6):
        try:
            return compile(model, memory_limit=limit, trial=False, **wishes)
        except MemoryLimitError as error:
            limit = max(error.smallest, limit + MEBI)
    raise SystemExit("no plan keeps to what the planner itself named")


def _exponent(rows: list[dict[str, Any]], kind: str) -> float:
    """p where what is held grows as layers^p, from the deepest and one of half the depth."""
    deep = rows[-1]
    half = min(rows, key=lambda r: abs(r["layers"] - deep["layers"] / 2))
    ratio = deep[kind]["held_mib"] / half[kind]["held_mib"]
    return round(float(np.log(ratio) / np.log(deep["layers"] / half["layers"])), 2)


def _draw_plan(model: bytes, refused: Any, compile: Any, folder: Path) -> None:
    """The picture of DenseNet-121 at a limit that is tight, batch 8."""
    from sanderling.engine.picture import draw, measure

    limit = TIGHT
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "densenet121.onnx")
        path.write_bytes(model)
        while True:
            try:
                plan = compile(path, batch=8, micro_batch=8, memory_limit=limit)
                break
            except refused as error:
                limit = max(limit + 5 * MEBI, error.smallest)
        draw(plan.info, measure(plan), folder / "densenet-plan.png")


def _draw_depth(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers = [r["layers"] for r in rows]
    with pyplot.rc_context({"font.size": 9.5, "axes.edgecolor": "#5f6670"}):
        figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=110)
        for kind, colour, label in (
            ("one segment", "#d55e00", "one segment: every layer keeps\nall that came before it"),
            ("cut", "#0072b2", "cut where little crosses"),
        ):
            values = [r[kind]["held_mib"] for r in rows]
            axes.plot(layers, values, "o-", color=colour, linewidth=2, markersize=4.5)
            axes.annotate(
                label, (layers[-1], values[-1]), xytext=(8, 0), textcoords="offset points", color=colour, va="center"
            )
        axes.axvline(121, color="#5f6670", linewidth=0.7, linestyle=":")
        axes.text(121, 0.03 * axes.get_ylim()[1], " DenseNet-121", color="#5f6670", va="bottom")
        axes.set_xlabel("layers")
        axes.set_ylabel("MiB held while a step runs")
        axes.set_ylim(0)
        axes.set_title("DenseNet, 128 × 128, batch 4, exact", loc="left", weight="bold", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(path)
        pyplot.close(figure)


def _same_loss(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry without what is not to be printed. Raises SystemExit where somebody did other work."""
    losses = {k: v["loss"] for k, v in entry.items() if isinstance(v, dict) and "loss" in v}
    if losses and max(losses.values()) - min(losses.values()) > 1e-4 * max(losses.values()):
        raise SystemExit(f"the first losses differ: {losses}")
    for value in entry.values():
        if isinstance(value, dict):
            value.pop("_peak", None)
    return entry


def _mib(count: int) -> float:
    return round(count / MEBI, 1)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--peers", action="store_true", help="onnxruntime-training as well")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--picture", type=Path, metavar="FOLDER", help="also draw the pictures of the documentation")
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]), int(options.child[2]))
        return
    print(json.dumps({name: PARTS[name](options) for name in options.only}, indent=2))


PARTS = {"mobilenet": mobilenet, "resnet": resnet, "densenet": densenet}

if __name__ == "__main__":
    main()
