"""The messages that devices and server exchange: typed, versioned, checked at the door.

JSON for everything a person may want to read off the broker, MessagePack for `Delta`, which carries bytes. An unknown
field is ignored (newer peers may add some); an unknown version is refused with a reason. Limits are checked before
decoding. Times are seconds since 1970 (UTC) by the sender's clock and are never used to order or deduplicate.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from .errors import MessageError

VERSION = 1

#: Bytes; a larger payload is refused unread. Deltas carry weights, all else is short.
LARGEST_JSON = 256 * 1024
LARGEST_DELTA = 64 * 1024 * 1024

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Text = Annotated[str, Meta(max_length=2000)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What all messages have: the protocol's version and the sender's clock."""

    binary: ClassVar[bool] = False

    v: int = VERSION
    time: float


class DeviceState(Message, frozen=True, kw_only=True):
    """Birth (`online`) and Last Will (not `online`) of one boot; a will counts only against the boot it carries."""

    online: bool
    boot: Count
    agent_version: Text
    models: dict[Name, Count] = {}


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy over `count` labelled samples, 0 to 1."""

    value: Fraction
    count: Count


class Telemetry(Message, frozen=True, kw_only=True):
    """How a device is: model, accuracy, memory, traffic. Bytes unless said otherwise."""

    boot: Count
    model: Name
    version: Count
    serving: Literal["none", "fleet", "personal"]
    samples_seen: Count = 0
    samples_stored: Count = 0
    #: Predict-then-learn accuracy over the most recent labelled samples.
    prequential: Accuracy | None = None
    #: On the held-out slice, which is never trained on.
    held_out_fleet: Accuracy | None = None
    held_out_personal: Accuracy | None = None
    #: Resident memory of each process (supervisor, worker, trainer) at this moment.
    resident: dict[str, Count] = {}
    training_runs: Count = 0
    training_peak: Count = 0
    memory_limit: Count = 0
    deltas_sent: Count = 0
    delta_bytes: Count = 0
    #: What the same deltas would take as plain float32.
    float32_bytes: Count = 0
    outbox: Count = 0


class Delta(Message, frozen=True, kw_only=True):
    """One coded change of weights since what this device last sent for the same base version.

    (device, `base_version`, `sequence`) names it for ever; the sum of a device's deltas on one base, added to that
    base, is the device's personal model. `samples` is the number of labelled samples the change was learned from and
    `label_histogram` how many of each label, for weighting.
    """

    binary: ClassVar[bool] = True

    model: Name
    base_version: Count
    sequence: Count
    samples: Count
    label_histogram: Annotated[list[Count], Meta(max_length=65536)]
    blob: bytes


class Event(Message, frozen=True, kw_only=True):
    """Something that an operator will want to know of, once: it stays in the outbox until it has a receipt."""

    sequence: Count
    kind: Literal[
        "installed", "rejected", "rolled_back", "training_failed", "worker_crashed", "personal_adopted",
        "chunk_refused", "storage_full",
    ]  # fmt: skip
    model: Name
    version: Count
    reason: Text = ""


class Receipt(Message, frozen=True, kw_only=True):
    """The server has committed (or for a stated reason refused) a delta or event: the device may forget it."""

    of: Literal["delta", "event"]
    base_version: Count = 0
    sequence: Count
    status: Literal["accepted", "duplicate", "rejected"]
    reason: Text = ""


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """The payload to publish."""
    return msgspec.msgpack.encode(message) if message.binary else msgspec.json.encode(message)


def decode(kind: type[M], payload: bytes) -> M:
    """The message of this `kind` in `payload`; raises `MessageError` for anything else."""
    limit = LARGEST_DELTA if kind.binary else LARGEST_JSON
    if len(payload) > limit:
        raise MessageError(f"{kind.__name__} of {len(payload)} bytes refused: at most {limit} are read")
    try:
        version = (msgspec.msgpack if kind.binary else msgspec.json).decode(payload, type=_Versioned).v
        if version != VERSION:
            raise MessageError(
                f"{kind.__name__} has protocol version {version}, this side speaks {VERSION}: update the older side"
            )
        if kind.binary:
            return msgspec.msgpack.decode(payload, type=kind)
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MessageError(f"not a {kind.__name__}: {error}") from error


class _Versioned(msgspec.Struct):
    v: int
