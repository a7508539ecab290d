"""The trainer child: one fine-tuning run under a hard memory limit.

It goes on from the personal model of this base (or from the base), learns from the stored samples, compares both models
on the held-out slice and the anchor set, and then commits in *one* transaction: the coded delta in the outbox, what the
server will know of this model after it (error feedback: the next delta is the difference to that), the personal model's
record and the counters. Files are on the disk before. So a kill at any moment leaves all of it or nothing of it.

Samples are read from the store batch by batch: the store may be larger than the memory limit.
"""

from __future__ import annotations

import gc
import time
import uuid
from pathlib import Path

import msgspec
import numpy as np

from sanderling.codec import CodecError, accumulate, decode_delta, encode_delta
from sanderling.codec.messages import Delta, decode
from sanderling.engine import Trainer, load_plan
from sanderling.engine.errors import DataError, EngineError
from sanderling.engine.memory import enforce_limit, peak_resident_bytes, trim
from sanderling.host.files import write_durably

from . import children
from .anchor import read_anchor
from .errors import ServingError, StorageError, TrainingError, storage_errors
from .evaluation import evaluate
from .gate import Evaluation, Verdict, judge
from .jobs import TrainDone, TrainJob
from .layout import Layout
from .ledger import Ledger
from .outbox import Outbox
from .runtime import load
from .store import Store
from .tensors import Arrays, pack, stack, unpack
from .versions import Versions


class Run:
    """One training run: learn, judge, commit."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.layout = Layout(Path(job.state_directory))
        self.ledger = Ledger(self.layout.database)
        self.outbox = Outbox(self.ledger)
        self.versions = Versions(self.ledger, self.layout.personal)
        self.store = Store(self.layout.samples, capacity=job.store_bytes, held_out=job.held_out)
        self.base = unpack(Path(job.weights).read_bytes())
        self.loss = 0.0

    def learn(self) -> tuple[Arrays, bytes, list[int]]:
        """Train; the new weights, the new model as an ONNX file, and the ids of the samples it learned from."""
        job = self.job
        trainer = Trainer(load_plan(job.plan), learning_rate=job.learning_rate)
        trainer.set_weights(self._start())
        samples = self.store.identifiers(held_out=False)
        order = np.random.default_rng(job.seed + self.ledger.number("training_runs"))
        for _ in range(job.epochs):
            losses = []
            shuffled = order.permutation(len(samples))
            for begin in range(0, len(samples), job.batch):
                chosen = [samples[i] for i in shuffled[begin : begin + job.batch].tolist()]
                batch = self.store.fetch(chosen)
                if batch:  # else all of them were replaced by newer ones meanwhile
                    inputs = stack([unpack(data) for data, _ in batch])
                    losses.append(trainer.step(inputs, np.array([label for _, label in batch], np.int64)))
            self.loss = float(np.mean(losses)) if losses else self.loss
        return trainer.weights(), trainer.export_bytes(), samples

    def _start(self) -> Arrays:
        latest = self.versions.latest(self.job.base_digest)
        if latest is not None:
            path = self.versions.path(latest, ".weights")
            if path.exists():
                return unpack(path.read_bytes())
        return self.base

    def evaluate(self, personal: Path) -> Evaluation:
        """Both models on the held-out slice and on the anchor set."""
        fleet_runtime, personal_runtime = load(Path(self.job.model)), load(personal)
        held_out = self.store.identifiers(held_out=True)
        before = evaluate(fleet_runtime, self.store, held_out)
        after = evaluate(personal_runtime, self.store, held_out)
        if not self.job.anchor:
            return Evaluation(before, after)
        anchor = read_anchor(Path(self.job.anchor))
        return Evaluation(before, after, anchor.accuracy(fleet_runtime).value, anchor.accuracy(personal_runtime).value)

    def commit(
        self, file: str, weights: Arrays, found: Evaluation, verdict: Verdict, samples: list[int], seen: int
    ) -> bool:
        """Everything that the run changes, in one transaction; whether a delta was queued."""
        job, ledger = self.job, self.ledger
        with ledger.transaction("committing a training run"):
            sent = self._sent()
            queued = verdict.send and self.outbox.has_room()
            if queued:
                change = {name: weights[name] - self.base[name] - sent[name] for name in self.base}
                blob, _ = encode_delta(change, quality=job.quality)
                accumulate(blob, sent)
                histogram = self.store.histogram(0)
                plain = sum(array.size * 4 for array in self.base.values())
                self.outbox.queue_delta(job.model_name, job.base_version, len(samples), histogram, blob, plain)
            ledger.run("DELETE FROM sent")
            ledger.run("INSERT INTO sent VALUES (?, ?)", job.base_digest, pack(sent))
            if verdict.send:
                first = self.versions.latest(job.base_digest, adopted=True) is None
                self.versions.record(job.base_version, job.base_digest, file, verdict.serve, found)
                if verdict.serve and first:
                    self.outbox.queue_event("personal_adopted", job.model_name, job.base_version, verdict.reason)
            ledger.add("training_runs")
            ledger.put("trained_seen", seen)
            ledger.put("trained_base", job.base_digest)
            ledger.put("evaluation", msgspec.json.encode(found).decode())
            ledger.put("verdict", verdict.reason)
            ledger.put("training_peak", max(ledger.number("training_peak"), peak_resident_bytes()))
        return queued

    def _sent(self) -> Arrays:
        """The sum of what the server has of this device on this base; deltas that it refused are taken back."""
        row = self.ledger.row("SELECT weights FROM sent WHERE base_digest = ?", self.job.base_digest)
        stored = unpack(row[0]) if row is not None else {}
        sent = {name: np.array(stored.get(name, np.zeros_like(array))) for name, array in self.base.items()}
        for sequence, message in self.outbox.refused_deltas(self.job.base_version):
            for name, array in decode_delta(decode(Delta, message).blob).items():
                sent[name] -= array
            self.outbox.taken_back(sequence)
        return sent


def train(job: TrainJob) -> TrainDone:
    """One run; raises `TrainingError`, and then nothing has changed."""
    begin = time.perf_counter()
    try:
        enforce_limit(job.memory_limit)
        run = Run(job)
        seen = run.store.counts().seen
        weights, exported, samples = run.learn()
        gc.collect()  # the trainer's sessions and optimizer state, before two models are loaded
        trim()
        file = f"{job.base_version}-{uuid.uuid4().hex[:12]}"
        onnx_path, weights_path = run.layout.personal / f"{file}.onnx", run.layout.personal / f"{file}.weights"
        with storage_errors("saving the personal model"):
            write_durably(onnx_path, exported)
            write_durably(weights_path, pack(weights))
        found = run.evaluate(onnx_path)
        verdict = judge(found, job.anchor_drop)
        queued = run.commit(file, weights, found, verdict, samples, seen)
        if not verdict.send:
            onnx_path.unlink(missing_ok=True)
            weights_path.unlink(missing_ok=True)
    except DataError as error:
        raise TrainingError(f"the stored samples do not fit the model: {error}", permanent=True) from error
    except (EngineError, ServingError, StorageError, CodecError, OSError) as error:
        raise TrainingError(str(error)) from error
    seconds = time.perf_counter() - begin
    return TrainDone(verdict.serve, queued, verdict.reason, peak_resident_bytes(), seconds, run.loss)


if __name__ == "__main__":
    children.yield_to_others()
    children.work(TrainJob, train)
