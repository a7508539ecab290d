"""Every limit on resources that the agent keeps to, with its unit. Operators choose settings; these are fixed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that hold whatever the configuration says."""

    #: Bytes of an HTTP request's body; a larger one is answered 413 unread.
    request_body: int = 16 * 2**20
    #: Bytes of an HTTP request's line and headers together (431 beyond).
    request_head: int = 32 * 2**10
    #: Samples in one prediction or feedback request.
    request_samples: int = 4096
    #: Connections that the worker holds open at once; more wait in the backlog.
    connections: int = 128
    #: Seconds that a client may take to send one request it has begun.
    request_seconds: float = 30.0
    #: Predictions remembered for feedback by id: how many, and bytes of their inputs.
    remembered: int = 4096
    remembered_bytes: int = 8 * 2**20
    #: Labelled predictions that the prequential accuracy looks back on.
    prequential_window: int = 64
    #: Labels are 0 <= label < this.
    labels: int = 65536
    #: Held-out samples below which a personal model is not judged, so not served.
    least_held_out: int = 4
    #: Bytes of deltas that wait for a receipt; beyond, changes stay in the model and go with a later delta.
    outbox_delta_bytes: int = 64 * 2**20
    #: Events that wait for a receipt; beyond, new ones are only logged.
    outbox_events: int = 1000
    #: Chunks asked for at once: less than what any broker queues for one client.
    chunks_in_flight: int = 32
    #: Seconds without a wanted chunk after which missing ones are asked for again.
    chunk_patience: float = 10.0
    #: Seconds: a release's health check, and one prediction in it, may take this long.
    health_seconds: float = 120.0
    prediction_seconds: float = 10.0
    #: Health checks that may crash before a release is refused for it.
    health_attempts: int = 3
    #: Seconds that planning and one training run may take.
    planning_seconds: float = 900.0
    training_seconds: float = 6 * 3600.0
    #: Seconds: first and longest wait after a crash of a child (jittered by half).
    first_backoff: float = 0.5
    longest_backoff: float = 300.0
    #: Seconds: longest wait before an unacknowledged row is sent again.
    longest_resend: float = 600.0
    #: Bytes of a child's answer on its standard output, and of its errors kept for the log.
    child_output: int = 4 * 2**20
    child_errors: int = 8 * 2**10
    #: Rows in one batch while evaluating.
    evaluation_batch: int = 32


LIMITS = Limits()
