"""Every limit on what the server reads, keeps and queues: one structure, with units, set in `[limits]`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits; the defaults suit models of a few million weights and fleets of a few thousand devices."""

    largest_delta: Annotated[Positive, Meta(description="bytes of one coded delta")] = 16 * 1024 * 1024
    largest_file: Annotated[Positive, Meta(description="bytes of one pushed file (model, anchor, proxy)")] = (
        256 * 1024 * 1024
    )
    most_weights: Annotated[Positive, Meta(description="trainable weights of a model")] = 64 * 1024 * 1024
    most_classes: Annotated[Positive, Meta(description="entries of a label histogram")] = 4096
    most_devices: Annotated[Positive, Meta(description="devices that are remembered; more are not listened to")] = (
        100_000
    )
    #: Its upper bound is what SQLite takes as parameters of one statement.
    most_deltas_per_merge: Annotated[
        int, Meta(ge=1, le=30_000, description="deltas in one merge; the rest waits for the next")
    ] = 4096
    most_teachers: Annotated[
        Positive, Meta(description="device models in one distillation, those with most samples")
    ] = 64
    largest_staleness: Annotated[
        Positive, Meta(description="releases that a delta's base may be behind the current one; older are rejected")
    ] = 64
    queue_messages: Annotated[Positive, Meta(description="received messages waiting for the database")] = 4096
    queue_bytes: Annotated[Positive, Meta(description="bytes of messages waiting for the database")] = 64 * 1024 * 1024
    batch_messages: Annotated[Positive, Meta(description="messages in one commit")] = 256
    telemetry_seconds: Annotated[Positive, Meta(description="seconds that telemetry is kept")] = 30 * 86400
    rejected_seconds: Annotated[Positive, Meta(description="seconds that the record of a rejected delta is kept")] = (
        7 * 86400
    )
    subscriber_changes: Annotated[Positive, Meta(description="changes waiting for one live viewer")] = 256
    merge_seconds: Annotated[Positive, Meta(description="seconds that one merge may take before it is stopped")] = 3600
    merge_attempts: Annotated[
        Positive, Meta(description="times a failing merge is tried before its deltas are set aside")
    ] = 3
