"""`sanderling train`: fine-tune a model on a file of samples, inside a memory limit.

Strategy: nothing is imported that training does not need (no generators of numpy, no library for terminals), rows of
data are read batch by batch, and the process limits itself before it trains. The order of samples follows from seed
and epoch alone, so training that resumes meets the batches that it would have met. Ctrl-C ends after the present step
with everything written that was asked for; a second one ends at once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_planning import add_wishes, check_target, count, guarded, make_plan, report
from .errors import EngineError, MemoryLimitError, NonFiniteError
from .members import MODEL
from .memory import LEAN_ENVIRONMENT, enforce_limit, format_size, peak_resident_bytes, trim

if TYPE_CHECKING:
    from .data import Samples
    from .graph import Array
    from .plan import TrainingPlan
    from .schedules import Schedule
    from .trainer import Trainer

#: Bytes that the command line needs beside training. Measured: 6 resident, and 3 that only the hard limit counts.
COMMAND_RESERVE = 10 * 2**20


def register(subparsers: Any) -> None:
    """Add the command."""
    train = subparsers.add_parser("train", help="fine-tune an ONNX model inside a memory limit")
    add_wishes(train)
    data = train.add_argument_group("data and results")
    data.add_argument("--data", required=True, type=Path, help=".npz file: y, and x or one array per model input")
    data.add_argument("--out", required=True, type=Path, help="where to write the fine-tuned model")
    data.add_argument("--validation", type=float, default=0.0, metavar="FRACTION", help="share held out")
    data.add_argument("--save", type=Path, metavar="PATH", help="also write the trainer, to go on from with --resume")
    data.add_argument("--save-every", type=count, metavar="N", help="after every N steps (and in the end)")
    data.add_argument("--resume", type=Path, metavar="PATH", help="go on from a saved trainer, with its plan")
    steps = train.add_argument_group("steps")
    steps.add_argument("--epochs", type=count, default=5, metavar="N", help="times that all samples are seen (5)")
    steps.add_argument("--learning-rate", type=float, default=1e-3, metavar="RATE", help="or its peak (0.001)")
    steps.add_argument(
        "--schedule", default="constant", choices=("constant", "linear", "cosine", "steps", "one-cycle"),
        help="of the learning rate over all steps",
    )  # fmt: skip
    steps.add_argument("--warmup", type=int, default=0, metavar="N", help="steps up to the rate (linear, cosine)")
    steps.add_argument("--drop-every", type=count, metavar="N", help="schedule steps: after every N steps ...")
    steps.add_argument("--drop-factor", type=float, default=0.1, metavar="F", help="... times F (0.1)")
    steps.add_argument("--weight-decay", type=float, default=0.0, metavar="W", help="decoupled (0)")
    steps.add_argument("--decay", default="all", choices=("all", "matrices"), help="which weights decay")
    steps.add_argument("--momentum", type=float, metavar="M", help="of sgd (0.9)")
    steps.add_argument("--clip-norm", type=float, metavar="C", help="longest gradient, all weights together")
    steps.add_argument("--clip-value", type=float, metavar="C", help="largest number of a gradient")
    steps.add_argument("--accumulate", type=count, default=1, metavar="N", help="batches per step (1)")
    steps.add_argument("--seed", type=int, default=0)
    train.set_defaults(handler=guarded(_train))


def _train(options: argparse.Namespace) -> int:
    for option in ("out", "json", "save"):
        check_target(f"--{option}", getattr(options, option))
    if options.save_every is not None and options.save is None:
        raise EngineError("--save-every needs --save PATH: where to write the trainer")
    if options.memory_limit is not None:
        # read by the libraries of matrix routines when numpy is first imported, which happens below
        os.environ.update(LEAN_ENVIRONMENT)
    from .data import open_samples, sample_bytes, sample_sizes

    with tempfile.TemporaryDirectory() as folder:
        if options.resume is None:
            reserve = COMMAND_RESERVE + sample_bytes(options.data, options.batch)
            hold = {"hold_gradients": True} if options.accumulate > 1 else {}
            plan = make_plan(
                options, folder, reserve=reserve, sizes=sample_sizes(options.data), data=str(options.data), **hold
            )
        else:
            plan = _plan_of(options.resume)
    names = [t.name.rpartition(".")[2] for t in plan.info.targets if not t.name.endswith("sample_weight")]
    samples = open_samples(options.data, [t.name for t in plan.info.inputs], names)
    return _Run(options, plan, samples).run()


def _plan_of(path: Path) -> TrainingPlan:
    from .checkpoint import open_checkpoint

    with open_checkpoint(path) as saved:
        return saved.plan


def _schedule(options: argparse.Namespace, steps: int) -> Schedule:
    from . import schedules

    rate = options.learning_rate
    if options.schedule == "linear":
        return schedules.Linear(rate, steps, options.warmup)
    if options.schedule == "cosine":
        return schedules.Cosine(rate, steps, options.warmup)
    if options.schedule == "one-cycle":
        return schedules.OneCycle(rate, steps)
    if options.schedule == "steps":
        return schedules.Steps(rate, options.drop_every or max(steps // 3, 1), options.drop_factor)
    return schedules.as_schedule(rate)


class _Run:
    """One training run."""

    def __init__(self, options: argparse.Namespace, plan: TrainingPlan, samples: Samples) -> None:
        from .data import split

        self.options, self.plan, self.samples = options, plan, samples
        self.rows, self.held_out = split(len(samples), options.validation, options.seed)
        batch = plan.info.batch
        # what mixes samples takes whole batches only
        self.batches = len(self.rows) // batch if plan.info.whole else -(-len(self.rows) // batch)
        if self.batches == 0:
            raise EngineError(
                f"{options.data}: {len(self.rows)} samples are fewer than a batch of {batch}, and this model takes "
                f"whole batches only ({plan.info.whole}); use a smaller --batch"
            )
        self.per_epoch = -(-self.batches // options.accumulate)
        self.losses: list[float] = []

    def run(self) -> int:
        """Train, write everything, report; returns the exit status."""
        from .interrupts import Interrupts
        from .progress import Progress
        from .trainer import Trainer  # its imports are to be resident before the limit is set

        options = self.options
        before = self._accuracy_before()
        with Progress(options.memory_limit) as progress, Interrupts() as interrupts:
            if options.memory_limit is not None:
                enforce_limit(options.memory_limit)
            trainer = Trainer.load(options.resume) if options.resume is not None else Trainer(**self._wishes())
            first_loss = self._held_out_loss(trainer)
            begun = trainer.steps
            started = time.monotonic()
            try:
                self._epochs(trainer, progress, interrupts)
            except (NonFiniteError, MemoryLimitError, MemoryError):
                if trainer.steps > begun:
                    trainer.export(options.out)
                    progress.line(f"stopped at step {trainer.steps + 1}; the weights of step {trainer.steps} are in "
                                  f"{options.out}")  # fmt: skip
                raise
            seconds = time.monotonic() - started
            trainer.export(options.out)
            if options.save is not None:
                trainer.save(options.save)
            last_loss = self._held_out_loss(trainer)
            steps = trainer.steps
            del trainer
            trim()
            after = self._held_out_accuracy(options.out)
        figures = {
            "predicted_peak_bytes": self.plan.peak_bytes, "measured_peak_bytes": peak_resident_bytes(),
            "memory_limit": options.memory_limit, "interrupted": interrupts.status != 0,
            "steps": steps, "resumed_from": begun, "seconds": seconds, "samples": len(self.rows),
            "segments": self.plan.segments, "micro_batch": self.plan.micro_batch,
            "first_loss": next(iter(self.losses), None), "last_loss": next(reversed(self.losses), None),
            "losses": self.losses, "held_out": len(self.held_out), "held_out_loss_before": first_loss,
            "held_out_loss_after": last_loss,
        }  # fmt: skip
        if after is not None:
            figures |= {"validation_before": before, "validation_after": after}
        report(options, figures, self._summary(figures, interrupts.status != 0))
        return interrupts.status

    def _wishes(self) -> dict[str, Any]:
        """Arguments of a new trainer."""
        o = self.options
        more = {} if o.momentum is None else {"momentum": o.momentum}
        return {
            "plan": self.plan, "learning_rate": _schedule(o, self.per_epoch * o.epochs), "clip_norm": o.clip_norm,
            "clip_value": o.clip_value, "decay": o.decay, "seed": o.seed, "weight_decay": o.weight_decay, **more,
        }  # fmt: skip

    def _order(self, epoch: int) -> Array:
        """The samples to train on, in the order of an epoch (from 0)."""
        from .data import shuffled

        return self.rows[shuffled(len(self.rows), (self.options.seed + 1) * 1_000_003 + epoch)]

    def _epochs(self, trainer: Trainer, progress: Any, interrupts: Any) -> None:
        o, size = self.options, self.plan.info.batch
        first_epoch, skipped = divmod(trainer.steps, self.per_epoch)
        for epoch in range(first_epoch, o.epochs):
            order, losses = self._order(epoch), []
            progress.epoch(epoch + 1, o.epochs, self.per_epoch)
            for index in range(skipped, self.per_epoch):
                if interrupts.status:
                    break
                rate, taken = trainer.learning_rate, 0
                parts = range(index * o.accumulate, min((index + 1) * o.accumulate, self.batches))
                for part in parts:
                    which = order[part * size : (part + 1) * size]
                    inputs, targets = self.samples.batch(which)
                    learn = trainer.step if o.accumulate == 1 else trainer.accumulate
                    losses.append(learn(inputs, targets or None))
                    del inputs, targets  # before the next batch is read
                    taken += len(which)
                if o.accumulate > 1:
                    trainer.apply()
                progress.step(index + 1, losses[-1], rate, taken)
                if o.save_every is not None and trainer.steps % o.save_every == 0:
                    trainer.save(o.save)
            skipped = 0
            if losses:
                self.losses.append(sum(losses) / len(losses))
                progress.line(f"epoch {epoch + 1} of {o.epochs}   loss {self.losses[-1]:.4f}")
            if interrupts.status:
                return

    def _held_out_loss(self, trainer: Trainer) -> float | None:
        """The mean loss of what was held out."""
        size, held = self.plan.info.batch, self.held_out
        whole = self.plan.info.whole
        parts = [held[at : at + size] for at in range(0, len(held) - (size - 1 if whole else 0), size)]
        if not parts:
            return None
        total = 0.0
        for which in parts:
            inputs, targets = self.samples.batch(which)
            total += len(which) * trainer.loss(inputs, targets or None)
        return total / sum(map(len, parts))

    def _held_out_accuracy(self, path: Path) -> float | None:
        """The share of what was held out that a model gets right, where it tells classes apart."""
        from .accuracy import Question, measure

        o, info = self.options, self.plan.info
        if info.loss != "cross_entropy" or len(self.held_out) == 0:
            return None
        names = [t.name for t in info.inputs]
        return measure(Question(str(path), str(o.data), names, o.validation, o.seed, info.micro_batch, info.output))

    def _accuracy_before(self) -> float | None:
        """The same of the model that training starts from."""
        if self.options.resume is not None:
            return None  # the file has weights that were trained already
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            for piece in self.plan.members.pieces(MODEL):
                file.write(piece)
            file.flush()
            return self._held_out_accuracy(Path(file.name))

    def _summary(self, figures: dict[str, Any], interrupted: bool) -> str:
        limit = self.options.memory_limit
        allowed = f" of {format_size(limit)} allowed" if limit else ""
        pairs = [("predicted peak", format_size(figures["predicted_peak_bytes"]))]
        pairs.append(("measured peak", format_size(figures["measured_peak_bytes"]) + allowed))
        if figures["losses"]:
            first = f"{figures['first_loss']:.4f} -> " if len(figures["losses"]) > 1 else ""
            pairs.append(("loss", f"{first}{figures['last_loss']:.4f}"))
        if figures["held_out_loss_after"] is not None:
            before, after = figures["held_out_loss_before"], figures["held_out_loss_after"]
            pairs.append(("held out", f"loss {before:.4f} -> {after:.4f}"))
        if "validation_after" in figures:
            before = figures["validation_before"]
            first = "" if before is None else f"{before:.1%} -> "
            pairs.append(("", f"{first}{figures['validation_after']:.1%} correct"))
        pairs.append(("steps", f"{figures['steps']}" + (", interrupted" if interrupted else "")))
        pairs.append(("written", str(self.options.out)))
        if self.options.save is not None:
            pairs.append(("", f"{self.options.save} (go on with --resume)"))
        return "\n".join(f"{name:<16}{value}" for name, value in pairs)
