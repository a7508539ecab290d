"""MQTT topics: building and parsing are inverses and live only here.

All topics stand under ``sanderling/v1/<fleet>/``::

    device/<device>/state       device -> server   retained; also the Last Will (see `messages.DeviceState`)
    device/<device>/telemetry   device -> server   `messages.Telemetry`
    device/<device>/delta       device -> server   `messages.Delta`; answered by a receipt
    device/<device>/event       device -> server   `messages.Event`; answered by a receipt
    device/<device>/receipt     server -> device   `messages.Receipt`
    release/<model>             server -> fleet    retained; a signed `release.Release`
    chunk/<sha256>              server -> fleet    retained; at most 32 KiB of a release's files, named by content

`docs/reference/protocol.md` is the same table for readers; a test holds the two together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import TopicError

ROOT = "sanderling/v1"

#: What a fleet, device or model may be called: it stands in topics, file names and addresses.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

#: Topics of one device, by kind, with the direction they are published in.
DEVICE_KINDS = {
    "state": "device -> server",
    "telemetry": "device -> server",
    "delta": "device -> server",
    "event": "device -> server",
    "receipt": "server -> device",
}


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic: `kind` is a key of `DEVICE_KINDS`, "release" or "chunk"; `name` the device, model or digest."""

    fleet: str
    kind: str
    name: str


def check_name(what: str, name: str) -> str:
    """`name` itself when it may stand in a topic; raises `TopicError` otherwise."""
    if not NAME.match(name):
        raise TopicError(
            f"{what} {name[:80]!r} is not a usable name: take 1 to 64 letters, digits, '_', '.' or '-', "
            "the first one a letter or digit"
        )
    return name


def build(topic: Topic) -> str:
    """The topic as the broker sees it.

    >>> build(Topic("wrists", "delta", "device-5"))
    'sanderling/v1/wrists/device/device-5/delta'
    """
    fleet = check_name("fleet", topic.fleet)
    if topic.kind in DEVICE_KINDS:
        return f"{ROOT}/{fleet}/device/{check_name('device', topic.name)}/{topic.kind}"
    if topic.kind == "release":
        return f"{ROOT}/{fleet}/release/{check_name('model', topic.name)}"
    if topic.kind == "chunk" and _SHA256.match(topic.name):
        return f"{ROOT}/{fleet}/chunk/{topic.name}"
    raise TopicError(f"no topic is built for kind {topic.kind!r} and name {topic.name[:80]!r}")


def parse(topic: str) -> Topic:
    """The inverse of `build`; raises `TopicError` on every other string.

    >>> parse("sanderling/v1/wrists/release/wrist")
    Topic(fleet='wrists', kind='release', name='wrist')
    """
    parts = topic.split("/")
    if parts[:2] == ROOT.split("/") and len(parts) >= 5:
        fleet, area, rest = parts[2], parts[3], parts[4:]
        parsed: Topic | None = None
        if area == "device" and len(rest) == 2 and rest[1] in DEVICE_KINDS:
            parsed = Topic(fleet, rest[1], rest[0])
        elif area in ("release", "chunk") and len(rest) == 1:
            parsed = Topic(fleet, area, rest[0])
        if parsed is not None and build(parsed) == topic:
            return parsed
    raise TopicError(f"not a topic of this protocol: {topic[:200]!r} (expected {ROOT}/<fleet>/...)")


def every_device(fleet: str, kind: str) -> str:
    """The subscription filter for one kind of topic of all devices of a fleet."""
    if kind not in DEVICE_KINDS:
        raise TopicError(f"devices have no topic of kind {kind!r}")
    return f"{ROOT}/{check_name('fleet', fleet)}/device/+/{kind}"
