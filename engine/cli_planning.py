"""What `sanderling train` and `sanderling plan` share: the wishes that make a plan, and making it in a child.

Strategy: planning needs `onnx` and more memory than training, so it runs in a child process that hands over a plan
file. The process that trains never imports `onnx`. This module, started with `-m`, is the child.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EngineError, MemoryLimitError
from .memory import LEAN_ENVIRONMENT, parse_size
from .plancache import default_folder

if TYPE_CHECKING:
    from .plan import TrainingPlan

LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "l1", "huber", "distillation", "output")
#: Number formats of optimizer state and sums of gradients.
FORMATS = ("float32", "dynamic8", "fixed8", "e4m3", "e5m2")
#: What `--trainable` may be besides patterns.
_SPECIAL = re.compile(r"all|auto|bias|last(-\d+)?")
#: Exit statuses of the child besides 0: an error to show, and one of memory.
_FAILED, _NO_MEMORY = 1, 3


def size(text: str) -> int:
    """An argument in bytes."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """An argument that counts something."""
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


def _loss_option(text: str) -> tuple[str, float | list[float]]:
    name, _, value = text.partition("=")
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if not name or not numbers:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an option of a loss: write label_smoothing=0.1 or class_weights=1,2,5"
        )
    return name, numbers if "," in value else numbers[0]


def add_wishes(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how to train, for `make_plan`."""
    parser.add_argument("model", type=Path, help="an ONNX inference model")
    how = parser.add_argument_group("memory")
    how.add_argument("--memory-limit", type=size, metavar="SIZE", help="whole process, as in 128MiB")
    how.add_argument("--batch", type=count, default=16, metavar="N", help="samples per step (16)")
    how.add_argument("--micro-batch", type=count, metavar="N", help="samples at a time (what fits the limit)")
    how.add_argument("--segments", type=count, metavar="N", help="parts of the forward pass (what fits the limit)")
    how.add_argument(
        "--precision", default="auto", choices=("auto", "float32", "int8"),
        help="of optimizer state and stored tensors: auto is exact wherever the limit allows",
    )  # fmt: skip
    how.add_argument(
        "--optimizer-state", default="auto", choices=("auto", *FORMATS),
        help="of its running means (as --precision says)",
    )  # fmt: skip
    how.add_argument(
        "--gradient-sums",
        default="auto",
        choices=("auto", *FORMATS),
        help="in what gradients of micro-batches are added up (auto: as --precision says)",
    )
    how.add_argument("--hold-gradients", action="store_true", help="keep all gradients until the last is known")
    what = parser.add_argument_group("what is learned")
    what.add_argument("--optimizer", default="adam", choices=("adam", "sgd"))
    what.add_argument("--loss", default="cross_entropy", choices=LOSSES)
    what.add_argument(
        "--loss-option", type=_loss_option, action="append", default=[], metavar="NAME=VALUE",
        help="as in label_smoothing=0.1 or class_weights=1,2,5",
    )  # fmt: skip
    what.add_argument("--output", metavar="NAME", help="which output of the model the loss reads (the first)")
    what.add_argument(
        "--trainable", default="all", metavar="WHAT", help='"all", "auto", "last", "last-3", "bias", or name,patterns'
    )
    what.add_argument("--adapters", type=count, metavar="RANK", help="train low-rank adapters beside the weights")
    what.add_argument("--adapter-alpha", type=float, default=8.0, metavar="A", help="they count A / RANK times (8)")
    what.add_argument("--adapter-target", metavar="PATTERNS", help="which weights have one (all that shrink)")
    parser.add_argument("--threads", type=count, default=1, metavar="N")
    parser.add_argument(
        "--cache", type=Path, default=default_folder(), metavar="DIR", help="where plans are kept (%(default)s)"
    )
    parser.add_argument("--no-cache", action="store_const", dest="cache", const=None, help="plan anew, keep nothing")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures as JSON ('-': print them)")


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The argument for models that leave sizes free."""
    parser.add_argument(
        "--sizes", type=_sizes, action="append", default=[], metavar="INPUT=SIZES",
        help="of a sample, where the model leaves them free: x=3,48,192",
    )  # fmt: skip


def _wishes(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `compile` that the command line has."""
    adapters: dict[str, Any] | None = None
    if options.adapters is not None:
        adapters = {"rank": options.adapters, "alpha": options.adapter_alpha}
        if options.adapter_target is not None:
            adapters["target"] = options.adapter_target.split(",")
    return {
        "loss": options.loss, "loss_options": dict(options.loss_option), "output": options.output,
        "batch": options.batch, "micro_batch": options.micro_batch, "segments": options.segments,
        "memory_limit": options.memory_limit, "precision": options.precision,
        "optimizer": options.optimizer, "optimizer_state": options.optimizer_state,
        "hold_gradients": options.hold_gradients, "gradient_sums": options.gradient_sums,
        "threads": options.threads, "adapters": adapters,
        "trainable": options.trainable if _SPECIAL.fullmatch(options.trainable) else options.trainable.split(","),
        "cache": None if options.cache is None else str(options.cache),
    }  # fmt: skip


def make_plan(options: argparse.Namespace, folder: str, **more: Any) -> TrainingPlan:
    """The plan for what the command line asks, made in a child. Raises EngineError."""
    from .plan import load_plan

    path = Path(folder, "plan")
    _plan_in_child(path, {**_wishes(options), **more}, str(options.model))
    return load_plan(path)


def _plan_in_child(path: Path, wishes: dict[str, Any], model: str) -> None:
    """Run `compile` in a fresh process and save the plan at `path`. Raises EngineError (its message)."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(path), model], input=json.dumps(wishes), capture_output=True, text=True,
        check=False, env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip
    text = done.stderr.strip()
    if done.returncode == _NO_MEMORY:
        raise MemoryLimitError(text)
    if done.returncode:
        raise EngineError(text if done.returncode == _FAILED else f"planning failed: {text.splitlines()[-1:]}")


def check_target(option: str, path: Path | None) -> None:
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


def guarded(handler: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A handler whose expected errors become one line and exit status 1."""

    def run(options: argparse.Namespace) -> int:
        try:
            return handler(options)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            text = f"{where}{error.strerror or error}; check path, permissions and free space"
        except (EngineError, MemoryError) as error:
            text = str(error) or "memory ran out; allow more with --memory-limit"
        print(f"sanderling {options.command}: {text}", file=sys.stderr)
        return 1

    return run


def report(options: argparse.Namespace, figures: dict[str, Any], text: str) -> None:
    """Text for people, JSON where it was asked for."""
    if options.json is None or str(options.json) != "-":
        print(text)
    if options.json is not None:
        encoded = json.dumps(figures, indent=2) + "\n"
        if str(options.json) == "-":
            print(encoded, end="")
        else:
            options.json.write_text(encoded)


def _child_main(path: str, model: str) -> int:
    """The planning child: wishes as JSON on standard input."""
    from .data import some_samples
    from .planner import compile

    wishes = json.load(sys.stdin)
    data = wishes.pop("data", None)
    try:
        if data is not None and wishes["trainable"] == "auto":  # judged on what it will be trained on
            wishes["samples"] = some_samples(data, wishes["batch"])
        compile(model, **wishes).save(path)
    except EngineError as error:
        print(error, file=sys.stderr)
        return _NO_MEMORY if isinstance(error, MemoryLimitError) else _FAILED
    return 0


if __name__ == "__main__":
    raise SystemExit(_child_main(sys.argv[1], sys.argv[2]))
