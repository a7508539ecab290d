"""`compile`: from an inference model to a training plan under a memory limit. Needs `onnx`.

Strategy: `Drafts` knows all ways to train one model, `choose` finds the fastest one that fits; here the caller's
wishes become their arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from . import onnxio
from .adapters import as_wish
from .drafts import Drafts, Level
from .errors import EngineError
from .optimizers import check_optimizer, check_state
from .plan import TrainingPlan
from .plancache import PlanCache, key
from .search import Search
from .sparse import choose_sparse

#: The fast layout before the small ones.
_LAYOUTS = ("blocked", "lean", "plain")
#: Precision -> levels, tried in this order: exact before coded.
_LEVELS = {
    "auto": [
        Level(*held, layout)
        for held in (
            ("float32", "float32", "float32"),
            ("dynamic8", "float32", "float32"),
            ("dynamic8", "int8", "float32"),
            ("dynamic8", "int8", "dynamic8"),
        )
        for layout in _LAYOUTS
    ],
    "float32": [Level(layout=layout) for layout in _LAYOUTS],
    "int8": [Level("dynamic8", "int8", sums, layout) for sums in ("float32", "dynamic8") for layout in _LAYOUTS],
}


def compile(
    model: str | Path | bytes,
    *,
    loss: str = "cross_entropy",
    batch: int = 8,
    memory_limit: int | None = None,
    optimizer: str = "adam",
    optimizer_state: str = "auto",
    hold_gradients: bool = False,
    gradient_sums: str = "auto",
    trainable: str | Sequence[str] = "all",
    adapters: Mapping[str, Any] | None = None,
    precision: str = "auto",
    output: str | None = None,
    loss_options: Mapping[str, float | Sequence[float]] | None = None,
    micro_batch: int | None = None,
    segments: int | None = None,
    threads: int = 1,
    reserve: int = 0,
    trial: bool | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
    samples: tuple[Any, Any] | None = None,
    cache: str | Path | None = None,
) -> TrainingPlan:
    """Plan the training of an ONNX inference model.

    `model`: path or bytes; the first dimension of every input is the batch (inputs with their samples at axis 1, as
    recurrent models have, are given samples first as well), the others are fixed, or fixed here by `sizes`, {input
    name: sizes of a sample without the batch}; the exported model keeps them free, and its own order. A model exported
    in training mode trains on whole batches only, and is exported in inference form.
    `loss`: "cross_entropy", "binary_cross_entropy", "mse", "l1", "huber", "distillation" or "output" (the model
    computes its loss itself); `loss_options` and the targets that each takes: docs/reference/losses.md.
    `memory_limit`: most resident bytes of the process that trains, everything included; None for no limit.
    `precision`: "auto" (exact wherever the limit allows, else optimizer state in a byte per number, then stored tensors
    as well, then sums of gradients), "float32" (always exact), or "int8" (the first two in a byte per number, and the
    third where the limit wants it).
    `optimizer_state`: "auto" (as `precision` says), "float32", or a byte per running mean of large tensors:
    "dynamic8" (nearly as exact), "fixed8", "e4m3", "e5m2".
    `hold_gradients`: keep all gradients of a step until the last is known, 4 bytes per trained weight: makes clipping
    by norm one pass instead of two, lets `Trainer.accumulate` work under a limit, and keeps all weights after a
    gradient that is not finite.
    `gradient_sums`: in what gradients are added up over micro-batches and calls: "auto" (as `precision` says),
    "float32", or a byte per number of large tensors, rounded anew with every addition: "dynamic8", "fixed8", "e4m3",
    "e5m2".
    `trainable`: "all"; "auto" (all where that fits, else those that contribute most per byte, judged on `samples`, a
    pair of inputs and targets as for `Trainer.step`, or on noise); "last", "last-3" (the last three layers); "bias"; or
    a list of name patterns.
    `adapters`: train low-rank adapters instead of the weights they stand beside (`trainable` names what is trained as
    well): {"rank": 4, "alpha": 8.0, "target": patterns of weights (by default all that have more numbers than their
    adapter), "seed": 0}; exported models have them merged.
    `output`: which output the loss reads (the first). `micro_batch`, `segments`: fix what is otherwise chosen.
    `reserve`: bytes that the training process needs besides (its data). `trial`: measure the plan in a fresh process;
    by default exactly when there is a limit. `cache`: a folder that keeps plans (`plancache`); one that was made for
    the same model and arguments before comes from there.

    The planning itself uses more memory than training: run it in another process where that counts.
    Raises ModelError, UnsupportedOperatorError, MemoryLimitError (`smallest` is a limit that would do), EngineError.
    """
    if cache is not None:
        wishes = {k: v for k, v in locals().items() if k not in ("model", "cache")}
        return _cached(model, PlanCache(cache), wishes)
    if precision not in _LEVELS:
        raise EngineError(f"precision={precision!r}: choose one of {', '.join(_LEVELS)}")
    if batch < 1 or threads < 1 or (micro_batch is not None and not 1 <= micro_batch <= batch):
        raise EngineError("batch and threads must be at least 1, and micro_batch between 1 and batch")
    check_optimizer(optimizer)
    levels = _LEVELS[precision]
    if optimizer_state != "auto":
        check_state(optimizer_state)
        levels = list(dict.fromkeys(replace(level, state=optimizer_state) for level in levels))
    if gradient_sums != "auto":
        check_state(gradient_sums)
        levels = list(dict.fromkeys(replace(level, sums=gradient_sums) for level in levels))
    auto = trainable == "auto"
    drafts = Drafts(
        model, loss, loss_options or {}, batch, optimizer, "all" if auto else trainable, output, threads, sizes or {},
        reserve, hold_gradients, None if adapters is None else as_wish(adapters),
    )  # fmt: skip
    micro_batches = drafts.micro_batches(micro_batch)
    measure = memory_limit is not None if trial is None else trial
    search = Search(levels, micro_batches, segments, memory_limit, measure)
    return choose_sparse(drafts, search, samples) if auto else search.choose(drafts)


def _cached(model: str | Path | bytes, cache: PlanCache, wishes: dict[str, Any]) -> TrainingPlan:
    data, name = onnxio.read_model(model)
    known = key(data, wishes)
    found = cache.find(known)
    if found is not None:  # the same bytes may have another name by now
        found.info = msgspec.structs.replace(found.info, source=name)
        return found
    plan = compile(model, **wishes)
    cache.keep(known, plan)
    return plan
