"""How exact gradients are: every model of the zoo by both exporters against PyTorch, and random graphs. Prints JSON.

    python benchmarks/exact.py [--models NAME ...] [--exporters NAME ...] [--graphs N] [--foreign MODEL.onnx ...]

Models: for each exporter (TorchScript opset 17, dynamo opset 18), batch free or fixed, parameters as they are or folded
by the exporter: the worst relative error over all weights, max |ours - PyTorch's| / max |PyTorch's| per weight, in
float32; beside it both against PyTorch in float64, and on how many batches (see `tests/support/zoo/exact.py`; where a
first batch sits on a kink, another is tried). Graphs: N random graphs against PyTorch in float64. Foreign: models from
elsewhere, by slopes of their own loss along each weight's gradient (`tests/support/slopes.py`).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)

from sanderling.engine import EngineError, Trainer, compile  # noqa: E402  # after the path is set
from tests.support.slopes import slope_errors  # noqa: E402


def models(names: list[str], exporters: list[str]) -> dict[str, Any]:
    """The full product for these models and exporters."""
    import torch

    from tests.support.zoo import ZOO, module
    from tests.support.zoo.exact import BOUND, compare

    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in names or list(ZOO):
        net = module(name)
        runs, failures = [], {}
        for exporter, dynamic, keep in product(exporters, (True, False), (True, False)):
            label = f"{exporter}, batch {'free' if dynamic else 'fixed'}, {'kept' if keep else 'folded'}"
            try:
                runs.append((label, compare(name, exporter, dynamic, keep, net=net)))
            except (EngineError, AssertionError) as error:
                failures[label] = str(error)
        worst = max(runs, key=lambda run: run[1].error, default=None)
        results[name] = {
            "exports": len(runs) + len(failures), "hold": sum(run.holds for _, run in runs),
            "within_bound": sum(run.error <= BOUND for _, run in runs), "failures": failures,
            "parameters": len(list(net.parameters())),
        }  # fmt: skip
        if worst is not None:
            results[name] |= {
                "worst_error": worst[1].error, "worst_weight": worst[1].worst, "worst_export": worst[0],
                "ours_to_float64": max(run.ours64 for _, run in runs),
                "pytorch_to_float64": max(run.torch64 for _, run in runs),
                "batches_tried": max(run.batches for _, run in runs),
            }  # fmt: skip
        print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    return results


def random_graphs(count: int) -> dict[str, Any]:
    """This many random graphs: how many agree with PyTorch, and the worst."""
    from hypothesis import HealthCheck, Phase, given, settings

    from tests.support.graphs import Drawing, disagreement, graphs

    errors: list[tuple[float, float, list[str]]] = []

    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate], derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(graphs())
    def collect(graph: Drawing) -> None:
        errors.append((*disagreement(graph), [n.op for n in graph.builder.nodes]))

    collect()
    worst = max(errors, key=lambda e: e[0])
    return {
        "graphs": len(errors), "agree": sum(ours <= max(1e-4, 5 * own) for ours, own, _ in errors),
        "operators": sum(len(ops) for *_, ops in errors), "kinds": len({op for *_, ops in errors for op in ops}),
        "worst_error": worst[0], "pytorch_float32_there": worst[1], "worst_graph": worst[2],
        "median_error": float(np.median([ours for ours, *_ in errors])),
    }  # fmt: skip


def foreign(path: str) -> dict[str, Any]:
    """A model from elsewhere: noise in, noise or labels out."""
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    try:
        plan = compile(path, loss="mse", batch=2)
    except EngineError as error:
        return {"refused": str(error)}
    batch = plan.info.batch
    inputs = {
        i.name: rng.integers(0, 255, (batch, *i.shape[1:])).astype(i.dtype) if i.dtype.startswith(("int", "uint"))
        else rng.standard_normal((batch, *i.shape[1:])).astype(i.dtype)
        for i in plan.info.inputs
    }  # fmt: skip
    (target,) = (t for t in plan.info.targets if not t.name.endswith("sample_weight"))
    found = slope_errors(Trainer(plan), inputs, rng.standard_normal((batch, *target.shape[1:])).astype(np.float32))
    return {
        "weights": found.weights, "blurred_or_flat": found.flat, "median_error": found.median,
        "worst_error": found.worst, "worst_weight": found.where, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def main() -> None:
    """Measure what is asked for; the models by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--exporters", nargs="+", default=["torchscript", "dynamo"])
    parser.add_argument("--graphs", type=int, default=0)
    parser.add_argument("--foreign", nargs="*", default=[])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    results: dict[str, Any] = {}
    if options.models is not None or not (options.graphs or options.foreign):
        results["models"] = models(options.models or [], options.exporters)
    if options.graphs:
        results["graphs"] = random_graphs(options.graphs)
    if options.foreign:
        results["foreign"] = {Path(path).name: foreign(path) for path in options.foreign}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
