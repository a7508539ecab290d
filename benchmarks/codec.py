"""Bytes, error and speed of the codec beside its peers, on sets that this makes by itself. Prints JSON.

    python benchmarks/codec.py [--sections sizes equal quality speed] [--only NAME ...] [--rounds 9] [--output FILE]

`sizes`: integers of 84 deltas and 28 models' weights (`_sets.py`: training with fixed seeds, weights out of packages),
coded without loss. Ours is the whole blob of `encode_integers`, decoded again and compared; NNCodec 2.1.3 (ISO/IEC
15938-17) is its whole bitstream, names and shapes included, for the same integers, as it comes and `tuned`; zlib 9,
lzma 9e, zstd 19 and brotli 11 get the values and a line of text for each array (`values_only`: without them;
`_peers.py`). Ratios are ours over theirs; means are geometric.

`equal`: the squared error that uniform rounding to the nearest with one step makes when 80, 95 and 99 % become zero,
and the bytes for it: of `encode_delta` with the `target_bytes` that give this error, and with the `quality` that does
(`by_quality`); of uniform rounding under our own lossless coder; of NNCodec's trellis quantization as it comes
(`lambda_scale` 0) and at the best of three `lambda_scale`, interpolated on its curves of bytes over error (None where
the curve has a gap). Where 95 % of the energy are lost, it is in no mean.

`quality`: what a quality comes to: zeros, float32 bytes over bytes of the blob, and the share of the error allowed
that was made, of each delta, and the least, median and most by optimizer.

`speed`: one thread, about a million weights of the recurrent network's deltas, dense and with 80, 95 and 99 % zeros,
and of int8 weights; millions of weights a second, medians, and the same in processor time (what to compare on a machine
that does other work as well). `encode_delta` and what follows it get the float delta at a quality with as many zeros.

What peers gave is kept in the cache folder beside the sets.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import _sets  # noqa: E402
from benchmarks._peers import LAMBDA_SCALES, PEERS, Peers, interpolate, nncodec  # noqa: E402
from sanderling.codec import accumulate, decode_delta, decode_integers, encode_delta, encode_integers  # noqa: E402

SECTIONS = ("sizes", "equal", "quality", "speed")
#: Bytes that the step of uniform rounding takes beside its integers.
STEP_BYTES = 4
#: Where more than this share of the energy is lost, next to nothing is sent: listed, not in means.
MOST_ERROR = 0.95
QUALITIES = (0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999)
#: Timed: about a million weights each. Deltas of floats are timed beside the sets of the same network and optimizer.
TIMED = ("gru-sgd-dense", "gru-sgd-step80", "gru-sgd-step95", "gru-sgd-step99", "gru-adam-dense", "ocr-det-int8")
Arrays = dict[str, Any]


def sizes(only: list[str], peers: Peers) -> dict[str, Any]:
    """Bytes of all coders on all sets, ratios, geometric means by kind and form, and what is worst."""
    result: dict[str, Any] = {}
    for kind in ("deltas", "weights"):
        table: dict[str, Any] = {}
        for name in _chosen(_sets.names(kind), only):
            arrays = _sets.integers(name)
            blob = encode_integers(arrays)
            back = decode_integers(blob)
            if list(back) != list(arrays) or not all(_same(back[key], value) for key, value in arrays.items()):
                raise RuntimeError(f"{name} does not come back as it was")
            theirs = peers.sizes(name, arrays)
            count = sum(value.size for value in arrays.values())
            table[name] = {
                "weights": count,
                "zeros": round(sum(int((value == 0).sum()) for value in arrays.values()) / count, 4),
                "fingerprint": _sets.fingerprint(arrays),
                "bytes": {"sanderling": len(blob), **theirs},
                "ratio": {peer: round(len(blob) / theirs[peer], 4) for peer in (*PEERS, "nncodec_tuned")},
                "ratio_values_only": {p: round(len(blob) / size, 4) for p, size in theirs["values_only"].items()},
            }
            _progress(name, table[name]["ratio"]["nncodec"])
        if table:
            result[kind] = {"sets": table, **_summary(table)}
    return result


def _summary(table: dict[str, Any]) -> dict[str, Any]:
    ratios = {name: row["ratio"] for name, row in table.items()}
    by: dict[str, list[float]] = {}
    for name, row in ratios.items():
        source, form = name.rsplit("-", 1)
        for group in (form, source):
            by.setdefault(group, []).append(row["nncodec"])
    worst = {p: max(ratios, key=lambda name: float(ratios[name][p])) for p in (*PEERS, "nncodec_tuned")}
    return {
        "count": len(table),
        "mean_ratio": {peer: _mean(row[peer] for row in ratios.values()) for peer in (*PEERS, "nncodec_tuned")},
        "mean_ratio_nncodec_by": {group: _mean(values) for group, values in by.items()},
        "worst": {peer: {"set": name, "ratio": ratios[name][peer]} for peer, name in worst.items()},
        "larger_than": {peer: [name for name, row in ratios.items() if row[peer] >= 1] for peer in PEERS},
        "larger_than_values_only": {
            peer: [name for name, row in table.items() if row["ratio_values_only"][peer] >= 1] for peer in PEERS[1:]
        },
    }


def equal(only: list[str], peers: Peers) -> dict[str, Any]:
    """What the squared error of uniform rounding with one step costs us and NNCodec, by delta and share of zeros."""
    table: dict[str, Any] = {}
    for source in _chosen([f"{n}-{o}" for n in _sets.NETWORKS for o in _sets.OPTIMIZERS], only):
        delta = _sets.floats(source)
        energy = _energy(delta.values())
        points = [(p["lambda_scale"], p["squared_error"], p["bytes"]) for p in peers.trellis(source, delta)]
        for share in _sets.ZEROS:
            levels, step = _sets.uniform(delta, share)
            uniform = STEP_BYTES + len(encode_integers(levels))
            error = _energy(value - step * levels[name] for name, value in delta.items())
            ours, _ = _ours(delta, error, 0.3 * uniform, 1.5 * uniform, 7, "target_bytes")
            by_quality, quality = _ours(delta, error, 1e-4, 1 - 1e-4, 12, "quality")
            trellis = {s: interpolate([(e, b) for scale, e, b in points if scale == s], error) for s in LAMBDA_SCALES}
            others = {
                "by_quality": by_quality,
                "uniform": uniform,
                "trellis": trellis[0],
                "trellis_tuned": min((size for size in trellis.values() if size is not None), default=None),
            }
            table[f"{source}-step{share}"] = {
                "error": round(error / energy, 5),
                "quality": quality,
                "bytes": {"sanderling": round(ours), **{n: size and round(size) for n, size in others.items()}},
                "ratio": {name: size and round(ours / size, 4) for name, size in others.items()},
            }
            _progress(f"{source}-step{share}", table[f"{source}-step{share}"])
    counted = {name: row for name, row in table.items() if row["error"] <= MOST_ERROR}
    found = {
        other: {name: row["ratio"][other] for name, row in counted.items() if row["ratio"][other]}
        for other in ("by_quality", "uniform", "trellis", "trellis_tuned")
    }
    return {
        "deltas": table,
        "mean_ratio": {other: _mean(ratios.values()) for other, ratios in found.items()},
        "worst": {
            other: {"delta": (name := max(ratios, key=lambda n: float(ratios[n]))), "ratio": ratios[name]}
            for other, ratios in found.items()
            if ratios
        },
    }


def quality(only: list[str]) -> dict[str, Any]:
    """Zeros, factors of size and error of all deltas at some qualities."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for source in _chosen([f"{n}-{o}" for n in _sets.NETWORKS for o in _sets.OPTIMIZERS], only):
        delta = _sets.floats(source)
        count, energy = sum(value.size for value in delta.values()), _energy(delta.values())
        for wanted in QUALITIES:
            blob, residual = encode_delta(delta, quality=wanted)
            zeros = sum(int((value == 0).sum()) for value in decode_delta(blob).values()) / count
            error = _energy(residual.values()) / energy / (1 - wanted)
            table.setdefault(str(wanted), {})[source] = {
                "zeros": round(zeros, 4), "smaller": round(4 * count / len(blob), 1), "error": round(error, 4)
            }  # fmt: skip
    summary: dict[str, dict[str, dict[str, list[float]]]] = {}
    for share, rows in table.items():
        for optimizer in _sets.OPTIMIZERS:
            chosen = [row for source, row in rows.items() if source.endswith(optimizer)]
            for what in ("zeros", "smaller", "error") if chosen else ():
                values = sorted(row[what] for row in chosen)
                place = summary.setdefault(share, {}).setdefault(optimizer, {})
                place[what] = [values[0], round(statistics.median(values), 4), values[-1]]
    return {"least_median_most": summary, "deltas": table}


def _ours(delta: Arrays, error: float, low: float, high: float, tries: int, setting: str) -> tuple[float, float]:
    """Bytes of `encode_delta` at this squared error, and the setting nearest to it.

    The setting is bisected; between the two nearest that enclose the error, bytes are interpolated as NNCodec's are.
    """
    tried: list[tuple[float, float, float]] = []
    for _ in range(tries):
        middle = (low + high) / 2
        blob = encode_delta(delta, **{setting: middle if high < 1 else round(middle)})[0]  # type: ignore[arg-type]
        back = decode_delta(blob)
        made = _energy(value - back[name] for name, value in delta.items())
        tried.append((made, len(blob), middle))
        low, high = (middle, high) if made > error else (low, middle)
    made, size, nearest = min(tried, key=lambda point: abs(math.log(point[0] / error)))
    return interpolate([point[:2] for point in tried], error) or size, round(nearest, 4)


def speed(rounds: int) -> dict[str, Any]:
    """Mweights/s of everything that codes, ours and NNCodec's."""
    result: dict[str, Any] = {}
    for name in TIMED:
        arrays = _sets.integers(name)
        count = sum(value.size for value in arrays.values())
        blob = encode_integers(arrays)
        calls: dict[str, Callable[[], object]] = {
            "encode_integers": partial(encode_integers, arrays),
            "decode_integers": partial(decode_integers, blob),
        }
        row: dict[str, Any] = {"weights": count, "bits_per_weight": round(8 * len(blob) / count, 3)}
        if name.startswith("gru-sgd"):
            delta = _sets.floats("gru-sgd")
            quality = _quality(delta, 0.5 if name.endswith("dense") else int(name[-2:]) / 100)
            sent, residual = encode_delta(delta, quality=quality)
            into = {name: np.zeros_like(value) for name, value in delta.items()}
            calls["encode_delta"] = partial(encode_delta, delta, residual, quality)
            calls["decode_delta"] = partial(decode_delta, sent)
            calls["accumulate"] = partial(accumulate, sent, into, 0.5)
            row["quality_of_delta"] = quality
        row |= {"sanderling": _rates(calls, count, rounds), "nncodec": nncodec(arrays, how="speed", rounds=rounds)}
        result[name] = row
        _progress(name, row)
    return result


def _quality(delta: Arrays, share: float) -> float:
    """The quality at which this share of a delta is zero, to two parts in a thousand."""
    low, high = 0.001, 0.999
    while high - low > 0.002:
        middle = (low + high) / 2
        back = decode_delta(encode_delta(delta, quality=middle)[0])
        zeros = sum(int((value == 0).sum()) for value in back.values()) / sum(value.size for value in back.values())
        low, high = (middle, high) if zeros > share else (low, middle)
    return round(high, 3)


def _rates(calls: dict[str, Callable[[], object]], count: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which each call has its turn, so that a machine that slows down slows all."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "mweights_s": round(count / 1e6 / statistics.median(wall for wall, _ in times), 2),
            "cpu": round(count / 1e6 / statistics.median(cpu for _, cpu in times), 2),
        }
        for name, times in taken.items()
    }


def _chosen(names: list[str], only: list[str]) -> list[str]:
    return [name for name in names if not only or any(part in name for part in only)]


def _same(one: Any, other: Any) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def _energy(tensors: Iterable[Any]) -> float:
    return sum(float(np.square(value, dtype=np.float64).sum()) for value in tensors)


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return round(math.exp(statistics.fmean(logarithms)), 4) if logarithms else math.nan


def _progress(*what: object) -> None:
    print(*what, file=sys.stderr, flush=True)


def main() -> None:
    """Make the sets, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--only", nargs="+", default=[], help="sets whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=9, help="repetitions in the section of speed")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    peers = Peers()
    report: dict[str, Any] = {"python": platform.python_version(), "numpy": np.__version__}
    if "sizes" in options.sections:
        report["sizes"] = sizes(options.only, peers)
    if "equal" in options.sections:
        report["equal"] = equal(options.only, peers)
    if "quality" in options.sections:
        report["quality"] = quality(options.only)
    if "speed" in options.sections:
        report["speed"] = speed(options.rounds)
    text = json.dumps(report, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
