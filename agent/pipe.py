"""What supervisor and worker tell each other: one JSON object a line, on the worker's standard input and output.

A pipe that closes is a message too: the worker ends when the supervisor is gone.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Which = Literal["none", "fleet", "personal"]


class Start(msgspec.Struct, frozen=True, tag="start"):
    """First line to the worker: what stays the same for its life."""

    model: str
    samples: str
    store_bytes: int
    held_out: float
    idle_seconds: float


class Serve(msgspec.Struct, frozen=True, tag="serve"):
    """To the worker: answer with this file from now on. `path` is empty while there is no model."""

    path: str
    version: int
    which: Which


class Status(msgspec.Struct, frozen=True, tag="status"):
    """To the worker: the answer to `AskStatus`, as JSON that is handed through."""

    body: msgspec.Raw


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """From the worker: it answers with this model now."""

    version: int
    which: Which


class CannotServe(msgspec.Struct, frozen=True, tag="cannot_serve"):
    """From the worker: this model does not load; it goes on with the one before."""

    version: int
    which: Which
    reason: str


class Labelled(msgspec.Struct, frozen=True, tag="labelled"):
    """From the worker: this many labelled samples were stored."""

    count: int


class StorageTrouble(msgspec.Struct, frozen=True, tag="storage_trouble"):
    """From the worker: feedback could not be stored."""

    reason: str


class AskStatus(msgspec.Struct, frozen=True, tag="ask_status"):
    """From the worker: somebody asked GET /status."""


ToWorker = Start | Serve | Status
FromWorker = Serving | CannotServe | Labelled | StorageTrouble | AskStatus


def line(message: ToWorker | FromWorker) -> bytes:
    """One message as a line."""
    return msgspec.json.encode(message) + b"\n"


def read_to_worker(text: bytes) -> ToWorker:
    """The message in a line from the supervisor."""
    message: ToWorker = msgspec.json.decode(text, type=ToWorker)
    return message


def read_from_worker(text: bytes) -> FromWorker:
    """The message in a line from the worker."""
    message: FromWorker = msgspec.json.decode(text, type=FromWorker)
    return message
