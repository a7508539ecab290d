"""How the device is: one report for the server (`messages.Telemetry`), and a longer one for people on the device."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from sanderling.codec.messages import Accuracy, Telemetry

from .children import memory_of
from .choice import Choice
from .config import Settings
from .gate import Evaluation, Score
from .store import Store


def report(settings: Settings, boot: int, choice: Choice, store: Store, *, worker: int, trainer: int) -> Telemetry:
    """The figures of this moment. `worker` and `trainer` are process ids, 0 when they do not run."""
    ledger, serving = choice.ledger, choice.serving()
    counts, totals = store.counts(), choice.outbox.totals()
    right, labelled = store.prequential()
    found = _evaluation(choice)
    processes = {"supervisor": os.getpid(), "worker": worker, "trainer": trainer}
    return Telemetry(
        time=time.time(),
        boot=boot,
        model=settings.model.name,
        version=serving.version,
        serving=serving.which,
        samples_seen=counts.seen,
        samples_stored=counts.stored + counts.held_out,
        prequential=Accuracy(value=right / labelled, count=labelled) if labelled else None,
        held_out_fleet=_accuracy(found.held_out_fleet) if found else None,
        held_out_personal=_accuracy(found.held_out_personal) if found else None,
        resident={name: memory_of(pid) for name, pid in processes.items() if pid},
        training_runs=ledger.number("training_runs"),
        training_peak=ledger.number("training_peak"),
        memory_limit=settings.learn.memory_limit_bytes,
        deltas_sent=totals.deltas,
        delta_bytes=totals.delta_bytes,
        float32_bytes=totals.float32_bytes,
        outbox=totals.pending,
    )


def _evaluation(choice: Choice) -> Evaluation | None:
    """What the last training run measured, if it was on the present base."""
    text = choice.ledger.text("evaluation")
    if not text or choice.current is None or choice.ledger.text("trained_base") != choice.current.digest:
        return None
    return msgspec.json.decode(text, type=Evaluation)


def _accuracy(score: Score) -> Accuracy | None:
    return Accuracy(value=score.accuracy, count=score.count) if score.count else None


def with_details(telemetry: Telemetry, details: dict[str, Any]) -> bytes:
    """Telemetry and what only matters on the device, as one JSON object."""
    return msgspec.json.encode({**msgspec.to_builtins(telemetry), **details})
