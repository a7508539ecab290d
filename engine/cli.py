"""`sanderling train` and `sanderling plan`.

Strategy: planning runs in a child process and hands over a plan file, so the process that trains never imports
`onnx`, limits itself before it starts, and reports the peak that the operating system measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EngineError
from .memory import LEAN_ENVIRONMENT, enforce_limit, format_size, parse_size, peak_resident_bytes

if TYPE_CHECKING:
    from .data import Dataset
    from .plan import TrainingPlan

Subparsers = Any  # argparse's own class for this is private
#: Resident bytes that the command line needs beside training: the progress bar and its library. Measured.
_COMMAND_RESERVE = 14 * 2**20


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _sizes(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, numbers = text.rpartition("=")
    try:
        sizes = tuple(int(number) for number in numbers.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an input's sizes: write them as in x=3,48,192")
    return name or "x", sizes


def _check_target(option: str, path: Path | None) -> None:
    """Raises EngineError if `path` could not be written in the end: before the work, not after it."""
    if path is None or str(path) == "-":
        return
    folder = path.absolute().parent
    if path.is_dir():
        raise EngineError(f"{option} {path}: is a directory; name a file")
    if not folder.is_dir():
        raise EngineError(f"{option} {path}: there is no directory {folder}; make it, or choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EngineError(f"{option} {path}: {folder} is not writable for this user; choose another place")


def register(subparsers: Subparsers) -> None:
    """Add the commands of this package."""
    train = subparsers.add_parser("train", help="fine-tune an ONNX model inside a memory limit")
    _planning(train)
    train.add_argument("--data", required=True, type=Path, help=".npz file: y, and x or one array per model input")
    train.add_argument("--out", required=True, type=Path, help="where to write the fine-tuned model")
    train.add_argument("--epochs", type=_count, default=5)
    train.add_argument("--learning-rate", type=float, default=1e-3)
    train.add_argument("--validation", type=float, default=0.0, metavar="FRACTION", help="share held out")
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(handler=_guarded(_train))
    plan = subparsers.add_parser("plan", help="show how training fits into a memory limit")
    _planning(plan)
    plan.add_argument(
        "--sizes", type=_sizes, action="append", default=[], metavar="INPUT=SIZES",
        help="of a sample, where the model leaves them free: x=3,48,192",
    )  # fmt: skip
    plan.add_argument("--save", type=Path, metavar="PATH", help="also write the plan as a file")
    plan.set_defaults(handler=_guarded(_plan))


def _planning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an ONNX inference model")
    parser.add_argument("--memory-limit", type=_size, metavar="SIZE", help="whole process, as in 128MiB")
    parser.add_argument("--batch", type=_count, default=16)
    parser.add_argument("--optimizer", default="adam", choices=("adam", "sgd"))
    parser.add_argument("--loss", default="cross_entropy", choices=("cross_entropy", "mse"))
    parser.add_argument("--output", metavar="NAME", help="which output of the model the loss reads (the first)")
    parser.add_argument("--trainable", default="all", help='"all", "last", "bias", or name patterns with commas')
    parser.add_argument("--threads", type=_count, default=1)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures as JSON ('-': print them)")


def _guarded(handler: Any) -> Any:
    def run(options: argparse.Namespace) -> int:
        try:
            status: int = handler(options)
            return status
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            text = f"{where}{error.strerror or error}; check path, permissions and free space"
        except (EngineError, MemoryError) as error:
            text = str(error) or "memory ran out; allow more with --memory-limit"
        print(f"sanderling {options.command}: {text}", file=sys.stderr)
        return 1

    return run


def plan_in_child(path: Path, **choices: Any) -> None:
    """Run `compile(**choices)` in a fresh process and save the plan at `path`. Raises EngineError (its message)."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(path)], input=json.dumps(choices), capture_output=True, text=True,
        check=False, env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip
    if done.returncode:
        text = done.stderr.strip()
        raise EngineError(text if done.returncode == 1 else f"planning failed: {text.splitlines()[-1:]}")


def _make_plan(
    options: argparse.Namespace, folder: str, reserve: int, sizes: dict[str, tuple[int, ...]]
) -> TrainingPlan:
    from .plan import load_plan

    special = ("all", "last", "bias")
    path = Path(folder, "plan")
    plan_in_child(
        path, model=str(options.model), loss=options.loss, batch=options.batch, memory_limit=options.memory_limit,
        optimizer=options.optimizer, threads=options.threads, reserve=reserve, sizes=sizes,
        output=options.output,
        trainable=options.trainable if options.trainable in special else options.trainable.split(","),
    )  # fmt: skip
    return load_plan(path)


def _plan(options: argparse.Namespace) -> int:
    _check_target("--save", options.save)
    _check_target("--json", options.json)
    with tempfile.TemporaryDirectory() as folder:
        plan = _make_plan(options, folder, 0, dict(options.sizes))
        if options.save is not None:
            plan.save(options.save)
    figures = {
        "model": plan.info.source, "batch": plan.info.batch, "micro_batch": plan.micro_batch,
        "segments": plan.segments, "recompute_ratio": plan.recompute_ratio, "peak_bytes": plan.peak_bytes,
        "measured": plan.info.measured, "baseline_bytes": plan.info.baseline_bytes,
        "memory_limit": plan.info.memory_limit,
    }  # fmt: skip
    _report(options, figures, plan.describe())
    return 0


def _report(options: argparse.Namespace, figures: dict[str, Any], text: str) -> None:
    if options.json is None or str(options.json) != "-":
        print(text)
    if options.json is not None:
        encoded = json.dumps(figures, indent=2) + "\n"
        if str(options.json) == "-":
            print(encoded, end="")
        else:
            options.json.write_text(encoded)


def _train(options: argparse.Namespace) -> int:
    _check_target("--out", options.out)
    _check_target("--json", options.json)
    if options.memory_limit is not None:
        # read by the libraries of matrix routines when numpy is first imported, which happens below
        os.environ.update(LEAN_ENVIRONMENT)
    from .data import load_dataset, sample_sizes

    reserve = _COMMAND_RESERVE + 3 * options.data.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        plan = _make_plan(options, folder, reserve, sample_sizes(options.data))

    data = load_dataset(options.data, [t.name for t in plan.info.inputs])
    training, held_out = data.split(options.validation, options.seed)
    del data
    figures = _run(options, plan, training, held_out)
    lines = [
        f"predicted peak  {format_size(figures['predicted_peak_bytes'])}",
        f"measured peak   {format_size(figures['measured_peak_bytes'])}"
        + (f" of {format_size(options.memory_limit)} allowed" if options.memory_limit else ""),
        f"loss            {figures['first_loss']:.4f} -> {figures['last_loss']:.4f}",
    ]
    if "validation_before" in figures:
        lines.append(f"held out        {figures['validation_before']:.1%} -> {figures['validation_after']:.1%} correct")
    _report(options, figures, "\n".join([*lines, f"written         {options.out}"]))
    return 0


def _run(options: argparse.Namespace, plan: TrainingPlan, training: Dataset, held_out: Dataset) -> dict[str, Any]:
    import numpy as np
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .inference import evaluate
    from .trainer import Trainer

    classify = options.loss == "cross_entropy" and len(held_out) > 0
    shown = TextColumn("{task.fields[loss]}")
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), shown)
    rng = np.random.default_rng(options.seed)
    means: list[float] = []
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        if options.memory_limit is not None:
            enforce_limit(options.memory_limit)
        trainer = Trainer(plan, learning_rate=options.learning_rate)
        figures: dict[str, Any] = {"predicted_peak_bytes": plan.peak_bytes, "memory_limit": options.memory_limit}
        if classify:
            figures["validation_before"] = evaluate(plan.model, held_out.inputs, held_out.targets, options.batch)
        batches = -(-len(training) // options.batch)
        task = progress.add_task("", total=batches * options.epochs, loss="")
        for _ in range(options.epochs):
            losses = []
            for part in training.batches(options.batch, rng):
                losses.append(trainer.step(part.inputs, part.targets))
                progress.update(task, advance=1, loss=f"loss {losses[-1]:.4f}")
            means.append(float(np.mean(losses)))
    trainer.export(options.out)
    if classify:
        figures["validation_after"] = evaluate(trainer.export_bytes(), held_out.inputs, held_out.targets, options.batch)
    return figures | {
        "first_loss": means[0], "last_loss": means[-1], "steps": trainer.steps, "samples": len(training),
        "segments": plan.segments, "micro_batch": plan.micro_batch, "measured_peak_bytes": peak_resident_bytes(),
    }  # fmt: skip


def _child_main(path: str) -> int:
    """The planning child: choices as JSON on standard input."""
    from .planner import compile

    try:
        compile(**json.load(sys.stdin)).save(path)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_child_main(sys.argv[1]))
