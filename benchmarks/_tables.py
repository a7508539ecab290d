"""The tables of `docs/benchmarks.md` from what `codec.py` printed:

python benchmarks/_tables.py REPORT.json
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

GENERAL = ("zlib", "lzma", "zstd", "brotli")
#: Sets above this size have a line of their own: below it headers weigh more than the coding.
LARGE = 50_000
#: As in `codec.py`.
MOST_ERROR = 0.95


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def mean(values: Iterable[float]) -> float:
    """Geometric."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def sizes(report: dict[str, Any]) -> str:
    """A line for each form of deltas and of weights, and one for each kind as a whole."""
    rows: list[list[object]] = []
    for kind, found in report.items():
        sets: dict[str, Any] = found["sets"]
        large = [name for name, row in sets.items() if row["weights"] > LARGE]
        forms: dict[str, list[str]] = {f"**all {kind}**": list(sets), f"those of more than {LARGE:,} weights": large}
        for name in sets:
            forms.setdefault(name.rsplit("-", 1)[1], []).append(name)
        for form, names in forms.items():
            ratios = [sets[name]["ratio"] for name in names]
            worst = max(names, key=lambda name: float(sets[name]["ratio"]["nncodec"]))
            above = sum(any(ratio[peer] >= 1 for peer in GENERAL) for ratio in ratios)
            rows.append(
                [
                    form,
                    len(names),
                    f"{mean(ratio['nncodec'] for ratio in ratios):.3f}",
                    f"{sets[worst]['ratio']['nncodec']:.3f} ({worst})",
                    f"{mean(ratio['nncodec_tuned'] for ratio in ratios):.3f}",
                    *(f"{mean(ratio[peer] for ratio in ratios):.3f}" for peer in GENERAL),
                    above,
                ]
            )
    head = ["", "sets", "NNCodec", "worst of them", "tuned", *GENERAL, "sets on which one of these four is smaller"]
    return table(head, rows)


def sources(report: dict[str, Any]) -> str:
    """Geometric mean against NNCodec for each network and model."""
    rows = []
    for kind, found in report.items():
        names = {name.rsplit("-", 1)[0] for name in found["sets"]}
        means = {name: value for name, value in found["mean_ratio_nncodec_by"].items() if name in names}
        rows.append([kind, ", ".join(f"{name} {value:.3f}" for name, value in means.items())])
    return table(["", "bytes of NNCodec's"], rows)


def equal(report: dict[str, Any]) -> str:
    """A line for each share of zeros: geometric mean over all deltas, and the worst of them."""
    rows: list[list[object]] = []
    for share in (80, 95, 99):
        deltas = {name: row for name, row in report["deltas"].items() if name.endswith(f"-step{share}")}
        found = {name: row for name, row in deltas.items() if row["error"] <= MOST_ERROR}
        cells = []
        for other in ("uniform", "by_quality", "trellis", "trellis_tuned"):
            ratios = {name: row["ratio"][other] for name, row in found.items() if row["ratio"][other]}
            if not ratios:
                cells.append("-")
                continue
            worst = max(ratios, key=lambda name: float(ratios[name]))
            of = f" of {len(ratios)}" if len(ratios) < len(deltas) else ""
            cells.append(f"{mean(ratios.values()):.3f}{of}, worst {ratios[worst]:.3f} ({worst.rsplit('-', 1)[0]})")
        error = statistics.fmean(row["error"] for row in found.values())
        rows.append([f"{share} %", f"{error:.2f}", *cells])
    others = ["uniform", "ours, by quality", "NNCodec's trellis", "the same, tuned"]
    return table(["zeros of uniform rounding", "mean error, of the energy", *others], rows)


def speed(report: dict[str, Any]) -> str:
    """Mweights/s by the clock."""
    ours = ("encode_integers", "decode_integers", "encode_delta", "decode_delta", "accumulate")
    rows: list[list[object]] = []
    for name, row in report.items():
        rates = [row["sanderling"].get(call, {}).get("mweights_s", "") for call in ours]
        theirs = [row["nncodec"][call]["mweights_s"] for call in ("encode", "decode")]
        rows.append([name, row["bits_per_weight"], *rates, *theirs])
    return table(["", "bits a weight", *(f"`{call}`" for call in ours), "NNCodec encode", "NNCodec decode"], rows)


def main() -> None:
    """Print what the report has."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if "sizes" in report:
        print(sizes(report["sizes"]))
        print(sources(report["sizes"]))
    if "equal" in report:
        print(equal(report["equal"]))
    if "speed" in report:
        print(speed(report["speed"]))


if __name__ == "__main__":
    main()
