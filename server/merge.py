"""A merge, as a child process: job row in, model and figures out (`python -m sanderling.server.merge`).

Apart from the server so that its memory, its time and whatever the native runtime may do stay apart too. It only reads
the database: the job's row names the version that it starts from, and its deltas are those whose `job` it is; neither
changes while it runs, so the same job gives the same result however often it is begun. The result is two files, written
durably, `result.json` last: either it is whole or the merge has not happened.

Steps: aggregate -> ask the teachers (each device's model: its base and all its deltas on that base; and the present
release) -> distill -> measure candidates -> choose.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sanderling.codec import CodecError, CodecLimits, accumulate
from sanderling.engine import EngineError, export_model, read_weights
from sanderling.engine.memory import peak_resident_bytes
from sanderling.host.children import die_with_parent
from sanderling.host.files import write_durably

from .aggregate import Contribution, Partial, StalenessAverage, Weights, interpolate
from .choose import AGREEMENT_SHARE, Candidate, choose
from .datasets import Samples, accuracy, logits, read
from .distill import distill
from .ensemble import Ensemble, Floats
from .errors import ServerError, StorageError
from .files import Files
from .merge_settings import DISK_FAILED, JobSettings
from .store import DATABASE, Row, Store

#: How far from the aggregate towards the distilled student the candidates lie.
BETWEEN = (0.25, 0.5, 0.75)
#: The cautious candidate: this far from the present release towards the aggregate.
CAUTIOUS = 0.5


class Merge:
    """One merge of one job, over a database and files that it only reads."""

    def __init__(self, store: Store, files: Files, job: int) -> None:
        self._store, self._files = store, files
        (self.job,) = store.rows("SELECT * FROM jobs WHERE id = ?", [job])
        self.settings = msgspec.convert(self.job["settings"], JobSettings)
        self.model_name: str = self.job["model"]
        self.release = store.release(self.model_name, self.job["from_version"])
        self.model = self._file(self.release, "model.onnx")
        self.current: Weights = read_weights(self.model)
        self._bases = {int(self.release["version"]): (self.model, self.current)}
        sizes = [array.size for array in self.current.values()]
        self._codec_limits = CodecLimits(elements=sum(sizes), decoded_bytes=4 * sum(sizes))
        self.seconds: dict[str, float] = {}

    def run(self) -> tuple[dict[str, Any], bytes]:
        """(result, model bytes): see `main`. Raises `MergeError`, `EngineError`, `StorageError`."""
        contributions = self._clocked("aggregate", self._contributions)
        strategy = StalenessAverage(self.settings.merge.staleness_exponent, self.settings.merge.server_learning_rate)
        partial = Partial.zero(self.current)
        for contribution, blobs in contributions:
            partial.take(contribution, blobs, strategy.weight(contribution), self._codec_limits)
        aggregate = strategy.apply(self.current, partial)
        candidates = {"aggregate": aggregate, "cautious": interpolate(self.current, aggregate, CAUTIOUS)}
        training, validation = self._proxy()
        lineage: dict[str, Any] = {"from_version": self.release["version"], "job": self.job["id"]}
        wanted: npt.NDArray[np.intp] | None = None
        if training is not None and validation is not None:
            asked = self._clocked("teachers", lambda: self._ask(training, validation, contributions))
            wanted = asked.validation.argmax(axis=1)
            lineage |= asked.figures
            if self.settings.distill.enabled:
                try:
                    student = self._clocked(
                        "distill",
                        lambda: distill(self.model, aggregate, training, asked.targets, self.settings.distill),
                    )
                    candidates["distilled"] = student
                    candidates |= {f"between_{t:g}": interpolate(aggregate, student, t) for t in BETWEEN}
                except (EngineError, MemoryError) as error:
                    lineage["distillation_failed"] = f"{type(error).__name__}: {error}"[:1000]
        elif validation is None:
            validation = self._anchor()
        return self._decide(candidates, validation, wanted, contributions, partial, lineage)

    # ---- what goes in

    def _file(self, release: Row, name: str) -> bytes:
        return self._files.read(release["files"][name]["sha256"])

    def _proxy(self) -> tuple[Samples | None, Samples | None]:
        if "proxy.npz" not in self.release["files"]:
            return None, None
        samples = read(self._files.path(self.release["files"]["proxy.npz"]["sha256"]), self.model)
        return samples.split()

    def _anchor(self) -> Samples | None:
        if "anchor.npz" not in self.release["files"]:
            return None
        samples = read(self._files.path(self.release["files"]["anchor.npz"]["sha256"]), self.model)
        return samples if samples.labels is not None else None

    def _contributions(self) -> list[tuple[Contribution, list[bytes]]]:
        rows = self._store.rows(
            "SELECT d.*, b.blob FROM deltas d JOIN delta_blobs b ON b.delta = d.id WHERE d.job = ? ORDER BY d.id",
            [self.job["id"]],
        )
        return self._grouped(rows)

    def _grouped(self, rows: Sequence[Row]) -> list[tuple[Contribution, list[bytes]]]:
        groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
        for row in rows:
            groups[row["device"], row["base_version"]].append(row)
        return [
            (
                Contribution(
                    device=device,
                    base_version=base,
                    samples=members[-1]["samples"],
                    staleness=max(0, self.release["version"] - base),
                    histogram=members[-1]["histogram"],
                ),
                [row["blob"] for row in members],
            )
            for (device, base), members in groups.items()
        ]

    # ---- teachers

    def _ask(
        self, training: Samples, validation: Samples, contributions: Sequence[tuple[Contribution, list[bytes]]]
    ) -> _Asked:
        """Every teacher's opinion on the proxy samples, and which way of mixing them validation prefers."""
        temperature = self.settings.distill.temperature
        present = logits(self.model, training), logits(self.model, validation)
        classes = present[0].shape[1]
        both = [Ensemble(len(s), classes, temperature) for s in (training, validation)]
        teachers = sorted((c for c, _ in contributions), key=lambda c: -c.samples)
        newest = {c.device: c.base_version for c in sorted(teachers, key=lambda c: c.base_version)}
        chosen = [c for c in teachers if newest[c.device] == c.base_version][: self.settings.limits.most_teachers]
        for teacher in chosen:
            model = self._device_model(teacher.device, teacher.base_version)
            for ensemble, samples in zip(both, (training, validation), strict=True):
                ensemble.ask(logits(model, samples), teacher.histogram)
        # the present release speaks for what the devices at hand have not seen: as one average device
        mean = np.zeros(classes)
        for teacher in chosen:
            known = np.asarray(teacher.histogram[:classes], np.float64)
            mean[: len(known)] += known / len(chosen)
        for ensemble, said in zip(both, present, strict=True):
            ensemble.ask(said, np.full(classes, mean.mean()).tolist())
        figures: dict[str, Any] = {"teachers": [c.device for c in chosen]}
        ways = {"histogram": Ensemble.histogram_weighted, "plain": Ensemble.plain}
        if validation.labels is None:
            way = "histogram"
        else:
            scores = {name: accuracy(mix(both[1]), validation.labels) for name, mix in ways.items()}
            figures["ensemble_accuracy"] = scores
            way = max(scores, key=lambda name: scores[name])  # the first of equals: histogram
        figures["ensemble"] = way
        return _Asked(both[0].as_logits(ways[way](both[0])), ways[way](both[1]), figures)

    def _device_model(self, device: str, base_version: int) -> bytes:
        """A device's own model: its base, and all that was accepted from it on that base, merged before or not."""
        if base_version not in self._bases:
            base = self._file(self._store.release(self.model_name, base_version), "model.onnx")
            self._bases = {base_version: (base, read_weights(base))}  # one at a time: models may be large
        base, weights = self._bases[base_version]
        weights = {name: array.copy() for name, array in weights.items()}
        rows = self._store.rows(
            "SELECT b.blob FROM deltas d JOIN delta_blobs b ON b.delta = d.id WHERE d.device = ? AND d.model = ?"
            " AND d.base_version = ? AND d.status = 'accepted'"
            " AND d.id <= (SELECT max(id) FROM deltas WHERE job = ?) ORDER BY d.id",
            [device, self.model_name, base_version, self.job["id"]],
        )
        for row in rows:
            accumulate(row["blob"], weights, 1.0, limits=self._codec_limits)
        return export_model(base, weights)

    # ---- what comes out

    def _decide(
        self,
        candidates: dict[str, Weights],
        validation: Samples | None,
        wanted: npt.NDArray[np.intp] | None,
        contributions: Sequence[tuple[Contribution, list[bytes]]],
        partial: Partial,
        lineage: dict[str, Any],
    ) -> tuple[dict[str, Any], bytes]:
        begun = time.perf_counter()
        models = {name: export_model(self.model, weights) for name, weights in candidates.items()}
        figures = [self._measure(name, model, validation, wanted) for name, model in models.items()]
        previous = self._measure("present", self.model, validation, wanted)
        choice = choose(figures, previous.accuracy, self.settings.merge.largest_drop)
        self.seconds["measure"] = round(time.perf_counter() - begun, 3)
        lineage |= {
            "devices": sorted({c.device for c, _ in contributions}),
            "deltas": sum(len(blobs) for _, blobs in contributions),
            "contributions": [
                {"device": c.device, "base_version": c.base_version, "samples": c.samples, "staleness": c.staleness,
                 "share": round(weight / partial.weight, 6)}
                for c, weight in partial.contributions
            ],
            "candidates": {
                c.name: {"accuracy": c.accuracy, "agreement": c.agreement, "score": round(c.score(), 6)}
                for c in (*figures, previous)
            },
            "agreement_share": AGREEMENT_SHARE,
            "choice": choice.reason,
            "seconds": self.seconds,
            "peak_bytes": peak_resident_bytes(),
        }  # fmt: skip
        if choice.candidate is None:
            return {"outcome": "refused", "reason": choice.reason, "lineage": lineage}, b""
        model = models[choice.candidate.name]
        metrics = {
            "candidate": choice.candidate.name,
            "validation_accuracy": choice.candidate.accuracy,
            "agreement": choice.candidate.agreement,
            "previous_validation_accuracy": previous.accuracy,
            "validation_samples": 0 if validation is None else len(validation),
        }
        return {
            "outcome": "released",
            "sha256": hashlib.sha256(model).hexdigest(),
            "metrics": metrics,
            "lineage": lineage,
        }, model

    def _measure(
        self, name: str, model: bytes, validation: Samples | None, wanted: npt.NDArray[np.intp] | None
    ) -> Candidate:
        if validation is None:
            return Candidate(name=name, fallback=name == "cautious")
        said = logits(model, validation)
        return Candidate(
            name=name,
            fallback=name == "cautious",
            accuracy=None if validation.labels is None else accuracy(said, validation.labels),
            agreement=None if wanted is None else accuracy(said, wanted),
        )

    def _clocked(self, what: str, work: Any) -> Any:
        begun = time.perf_counter()
        result = work()
        self.seconds[what] = round(time.perf_counter() - begun, 3)
        return result


@dataclass(frozen=True, slots=True)
class _Asked:
    """The ensemble's targets for training (logits), its probabilities on validation, and figures for the lineage."""

    targets: npt.NDArray[np.float32]
    validation: Floats
    figures: dict[str, Any]


def main() -> int:
    """The child: leaves `model.onnx` (unless refused) and `result.json` in `--out`, or one line on stderr.

    Status 1: this merge cannot be computed. `DISK_FAILED`: the disk's fault, it may be computed later.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--job", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    die_with_parent(options.parent)
    try:
        store = Store(options.data / DATABASE, readonly=True)
        result, model = Merge(store, Files(options.data / "files"), options.job).run()
        if model:
            write_durably(options.out / "model.onnx", model)
        write_durably(options.out / "result.json", json.dumps(result).encode())
    except (StorageError, OSError) as error:
        print(error, file=sys.stderr)
        return DISK_FAILED
    except (ServerError, EngineError, CodecError, MemoryError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
