"""The jobs of short-lived children and their results, as the supervisor and the children both see them (no numpy)."""

from __future__ import annotations

import msgspec

from sanderling.codec.messages import Accuracy
from sanderling.codec.release import Release


class VerifyJob(msgspec.Struct, frozen=True):
    """Check who signed a release."""

    envelope: bytes
    trusted_keys: list[str]


class VerifyDone(msgspec.Struct, frozen=True):
    """A trusted key has: the release, and the SHA-256 of its canonical JSON. Otherwise `reason` says why not."""

    release: Release | None
    digest: str
    reason: str


class HealthJob(msgspec.Struct, frozen=True):
    """Try a model. `present` is the model in use (empty: none), `anchor` the release's anchor set (empty: none)."""

    model: str
    present: str
    anchor: str
    anchor_drop: float


class HealthDone(msgspec.Struct, frozen=True):
    """Whether the model may serve; `seconds` is one prediction's time, `resident` the process's peak in bytes."""

    healthy: bool
    reason: str
    seconds: float
    resident: int
    anchor: Accuracy | None


class PlanJob(msgspec.Struct, frozen=True):
    """Plan training of a model; results go to `directory`."""

    model: str
    directory: str
    memory_limit: int
    batch: int
    optimizer: str


class PlanDone(msgspec.Struct, frozen=True):
    """Files that the trainer needs: the plan, and the model's weights as `tensors.pack` writes them."""

    plan: str
    weights: str
    peak_bytes: int


class TrainJob(msgspec.Struct, frozen=True):
    """One training run. `start` is the personal model's weights to go on from (empty: the base's)."""

    state_directory: str
    model_name: str
    base_version: int
    base_digest: str
    model: str
    anchor: str
    plan: str
    weights: str
    memory_limit: int
    store_bytes: int
    held_out: float
    epochs: int
    batch: int
    learning_rate: float
    seed: int
    anchor_drop: float
    quality: float


class TrainDone(msgspec.Struct, frozen=True):
    """How a run went; everything that matters is in the ledger already. `peak` in bytes, `seconds` of training."""

    adopted: bool
    sent: bool
    reason: str
    peak: int
    seconds: float
    loss: float
