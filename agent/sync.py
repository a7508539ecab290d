"""What goes over MQTT: birth and will, telemetry, the outbox until it is receipted, releases and chunks coming in.

Nothing relies on the broker's memory: at every connect the birth is published anew and everything without a receipt is
offered again; in between, unanswered rows are repeated with jittered backoff.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from sanderling import __version__
from sanderling.codec.errors import CodecError
from sanderling.codec.messages import DeviceState, Receipt, Telemetry, decode, encode
from sanderling.codec.topics import Topic, build, parse
from sanderling.host.mqtt import BrokerAddress, Connection

from . import update
from .backoff import Backoff
from .config import Settings
from .errors import StorageError
from .limits import LIMITS
from .outbox import Outbox

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the link asks of the agent."""

    telemetry: Callable[[], Telemetry]
    models: Callable[[], dict[str, int]]
    arrived: Callable[[update.Event], None]


class Link:
    """The device's side of the protocol."""

    def __init__(self, settings: Settings, boot: int, outbox: Outbox, hooks: Hooks) -> None:
        self._settings, self._boot, self._outbox, self._hooks = settings, boot, outbox, hooks
        broker = settings.broker
        self.connection = Connection(
            BrokerAddress(
                host=broker.host,
                port=broker.port,
                username=broker.username,
                password=broker.password,
                ca_file=broker.ca_file,
            ),
            f"{settings.device.fleet}.{settings.device.name}",
            on_message=self._receive,
            on_change=self._changed,
            will=(self._topic("state"), encode(self._state(online=False))),
        )
        self.reason = "not connected yet"
        self._due: dict[int, float] = {}
        self._backoffs: dict[int, Backoff] = {}
        self._wake, self._dirty = asyncio.Event(), asyncio.Event()
        self._announced: dict[str, int] | None = None  # the models of the last birth on this connection
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect (for ever) and begin to send."""
        device, model = self._settings.device, self._settings.model.name
        self.connection.subscribe(
            build(Topic(device.fleet, "release", model)), build(Topic(device.fleet, "receipt", device.name))
        )
        await self.connection.start()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._send_outbox(), name="outbox"),
            loop.create_task(self._send_telemetry(), name="telemetry"),
        ]

    async def stop(self) -> None:
        """Say good-bye and disconnect."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        with contextlib.suppress(OSError, TimeoutError):
            farewell = encode(self._state(online=False))
            await self.connection.publish(self._topic("state"), farewell, retain=True, timeout=2)
        await self.connection.stop()

    def poke(self) -> None:
        """Something was queued."""
        self._wake.set()

    def changed(self) -> None:
        """Something that telemetry shows has changed."""
        self._dirty.set()

    def subscribe(self, filters: list[str]) -> None:
        """Receive chunks."""
        self.connection.subscribe(*filters)

    def unsubscribe(self, filters: list[str]) -> None:
        """The opposite."""
        self.connection.unsubscribe(*filters)

    async def _announce(self) -> None:
        """Publish the birth state, if the server does not know it yet: we are here, with these models."""
        state = self._state(online=True)
        if state.models != self._announced:
            await self.connection.publish(self._topic("state"), encode(state), retain=True)
            self._announced = dict(state.models)

    def _topic(self, kind: str) -> str:
        return build(Topic(self._settings.device.fleet, kind, self._settings.device.name))

    def _state(self, *, online: bool) -> DeviceState:
        return DeviceState(
            time=time.time(),
            online=online,
            boot=self._boot,
            agent_version=__version__,
            models=self._hooks.models() if online else {},
        )

    def _changed(self, connected: bool, reason: str) -> None:
        remedy = "" if connected else "; start it, or correct [broker] in the configuration (it is tried for ever)"
        if reason != self.reason:
            log.log(logging.INFO if connected else logging.WARNING, "%s%s", reason, remedy)
        self.reason = reason
        if connected:
            self._announced = None
            self._due.clear()
            self._backoffs.clear()
            self._wake.set()
            self._dirty.set()

    def _receive(self, topic: str, payload: bytes) -> None:
        try:
            parsed = parse(topic)
            if parsed.kind == "receipt":
                self._settle(decode(Receipt, payload))
            elif parsed.kind == "release" and payload:  # an empty payload removes a retained message
                self._hooks.arrived(update.Announced(payload))
            elif parsed.kind == "chunk" and payload:
                self._hooks.arrived(update.Chunk(parsed.name, payload))
        except CodecError as error:
            log.warning("%s: ignored: %s", topic[:200], error)

    def _settle(self, receipt: Receipt) -> None:
        try:
            settled = self._outbox.settle(receipt)
        except StorageError as error:  # the row stays and is sent again; the server will say "duplicate"
            log.error("a receipt could not be noted: %s", error)
            return
        if settled:
            self._due.pop(receipt.sequence, None)
            self._backoffs.pop(receipt.sequence, None)
            self._dirty.set()
            if receipt.status == "rejected":
                log.warning("the server refused %s %d: %s", receipt.of, receipt.sequence, receipt.reason)

    async def _send_outbox(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wait = LIMITS.longest_resend
            if self.connection.connected:
                try:
                    await self._send_due()
                except (OSError, TimeoutError, StorageError) as error:
                    log.debug("outbox: %s", error)
                    wait = 1.0
                if self._due:
                    wait = min(wait, max(min(self._due.values()) - loop.time(), 0.05))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            self._wake.clear()

    async def _send_due(self) -> None:
        loop = asyncio.get_running_loop()
        for sequence, kind in self._outbox.pending():
            if self._due.get(sequence, 0.0) > loop.time():
                continue
            payload = self._outbox.payload(sequence)
            if payload is None:  # its receipt came just now
                continue
            await self.connection.publish(self._topic(kind), payload)
            backoff = self._backoffs.setdefault(
                sequence, Backoff(self._settings.sync.resend_seconds, LIMITS.longest_resend)
            )
            if self._outbox.payload(sequence) is not None:
                self._due[sequence] = loop.time() + backoff.next()

    async def _send_telemetry(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.sync.telemetry_seconds):
                    await self._dirty.wait()
            self._dirty.clear()
            if not self.connection.connected:
                continue
            with contextlib.suppress(OSError, TimeoutError, StorageError):
                await self._announce()
                await self.connection.publish(self._topic("telemetry"), encode(self._hooks.telemetry()))
            await asyncio.sleep(min(0.5, self._settings.sync.telemetry_seconds))  # several changes, one message
