"""Look at a pushed model before it is signed: does it load and run, can it be trained, do anchor and proxy fit?

In a child process (`python -m sanderling.server.inspection`), because some malformed models abort the native runtime
instead of raising; the server outlives that and says so. The child reads files and prints one JSON object. A model that
runs but cannot be trained is accepted: devices serve it and do not learn, and `metrics` says why.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from .errors import RequestError
from .limits import Limits

#: Seconds that the child may take.
PATIENCE = 300.0
_RELEASE_FILES = {"model.onnx": "--model", "anchor.npz": "--anchor", "proxy.npz": "--proxy"}


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found: trainable weights by name with their shapes, classes (0: unknown), and figures."""

    weights: dict[str, list[int]] = {}
    classes: int = 0
    metrics: dict[str, Any] = {}


async def inspect(files: dict[str, Path], limits: Limits) -> Findings:
    """Findings on the files of a release, by name. Raises `RequestError` with what is wrong with them."""
    arguments = [word for name, path in files.items() for word in (_RELEASE_FILES[name], str(path))]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sanderling.server.inspection", "--parent", str(os.getpid()), *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = await asyncio.wait_for(child.communicate(), PATIENCE)
    except TimeoutError as error:
        raise RequestError(f"looking at the model took over {PATIENCE:.0f} s", "push a smaller model") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or [f"status {child.returncode}"]
        raise RequestError(
            f"the model makes the runtime fail ({last[0][:300]})", "export it again; check it with onnx.checker"
        )
    answer = json.loads(output)
    if "refused" in answer:
        raise RequestError(answer["refused"], answer.get("remedy", ""))
    findings = msgspec.convert(answer, Findings)
    weights = sum(_size(shape) for shape in findings.weights.values())
    if weights > limits.most_weights:
        raise RequestError(
            f"the model has {weights} trainable weights, at most {limits.most_weights} are taken",
            "raise limits.most_weights in server.toml",
        )
    return findings


def _size(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def look(model: Path, anchor: Path | None, proxy: Path | None) -> dict[str, Any]:
    """What the child prints: `Findings`' fields, or `refused` and `remedy`."""
    from sanderling.engine import EngineError, compile, read_weights
    from sanderling.engine.inference import Predictor
    from sanderling.engine.memory import peak_resident_bytes

    from .datasets import measure, read

    data = model.read_bytes()
    metrics: dict[str, Any] = {}
    classes = 0
    what = "model.onnx"
    try:
        Predictor(data)
        weights = {name: list(array.shape) for name, array in read_weights(data).items()}
        for name, path in (("anchor", anchor), ("proxy", proxy)):
            if path is None:
                continue
            what = f"{name}.npz"
            samples = read(path, data)
            accuracy, classes = measure(data, samples)
            metrics[f"{name}_samples"] = len(samples)
            if accuracy is not None:
                metrics[f"{name}_accuracy"] = round(accuracy, 6)
    except EngineError as error:
        return {"refused": f"{what}: {str(error).removeprefix('model: ')}", "remedy": "push files that fit together"}
    try:
        plan = compile(data, loss="cross_entropy", batch=1, trial=False)
        metrics["trainable"] = True
        metrics["training_peak_batch_1"] = int(plan.peak_bytes)
    except EngineError as error:
        metrics |= {"trainable": False, "not_trainable_because": str(error)[:1000]}
        weights = {}
    metrics["weights"] = sum(map(_size, weights.values()))
    metrics["inspection_peak"] = peak_resident_bytes()
    return {"weights": weights, "classes": classes, "metrics": metrics}


def main() -> int:
    """The child."""
    from sanderling.host.children import die_with_parent

    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--anchor", type=Path)
    parser.add_argument("--proxy", type=Path)
    options = parser.parse_args()
    die_with_parent(options.parent)
    print(json.dumps(look(options.model, options.anchor, options.proxy)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
