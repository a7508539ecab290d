"""One connection to an MQTT broker, for asyncio: speaks MQTT 5, falls back to 3.1.1, reconnects for ever.

The protocol above never relies on the broker's memory (queues and retained messages are lost when a broker is killed),
so every session starts clean and subscriptions are renewed on each connect. What MQTT 5 adds is used where offered:
reasons for refusals, a receive maximum (the broker holds back what we have not digested), a maximum packet size.

paho does its socket work on a thread of its own; everything that it reports is moved to the event loop here, so the
callbacks of this module run on the loop and need no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

log = logging.getLogger(__name__)

#: Seconds: first and longest wait between attempts to connect (each is jittered by half).
FIRST_RETRY, LONGEST_RETRY = 0.25, 30.0
#: Seconds: first and longest wait for the broker's answer to a connect. Some 3.1.1 brokers never answer MQTT 5, so the
#: first is short; a slow link is met by its doubling.
FIRST_PATIENCE, LONGEST_PATIENCE = 2.0, 32.0
KEEPALIVE = 30
RECEIVE_MAXIMUM = 64
MAXIMUM_PACKET_SIZE = 64 * 1024 * 1024 + 4096


class NotConnected(ConnectionError):  # noqa: N818 - reads as a state, like FileNotFound
    """There is no connection to the broker at this moment; nothing was sent. It is being renewed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where the broker is. `ca_file` turns TLS on and says whom to trust."""

    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password: str = ""
    ca_file: str = ""

    def __str__(self) -> str:
        return f"{'mqtts' if self.ca_file else 'mqtt'}://{self.host}:{self.port}"


class Connection:
    """A connection that is renewed until `stop`; see the module's text for what is promised.

    `on_message(topic, payload)` and `on_change(connected, reason)` are called on the event loop. `will` is published
    (retained, QoS 1) by the broker when this process vanishes.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        on_message: Callable[[str, bytes], None],
        on_change: Callable[[bool, str], None],
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.address = address
        self.connected = False
        self.protocol = int(MQTTProtocolVersion.MQTTv5)
        self._client_id = client_id
        self._on_message = on_message
        self._on_change = on_change
        self._will = will
        self._filters: dict[str, None] = {}
        self._client: paho.Client | None = None
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._patience = FIRST_PATIENCE
        self._task: asyncio.Task[None] | None = None
        self._answered: asyncio.Future[str] | None = None
        self._lost: asyncio.Future[str] | None = None

    async def start(self) -> None:
        """Begin connecting in the background; an absent broker is reported through `on_change` and retried."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"mqtt {self._client_id}")

    async def stop(self) -> None:
        """Disconnect cleanly (no Last Will is published) and stop retrying."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def subscribe(self, *filters: str) -> None:
        """Receive what matches; remembered across reconnects."""
        new = [f for f in filters if f not in self._filters]
        self._filters.update(dict.fromkeys(new))
        if new and self.connected and self._client is not None:
            self._client.subscribe([(f, 1) for f in new])

    def unsubscribe(self, *filters: str) -> None:
        """The opposite of `subscribe`; unknown filters are ignored."""
        old = [f for f in filters if self._filters.pop(f, 0) is None]
        if old and self.connected and self._client is not None:
            self._client.unsubscribe(old)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout: float = 10.0) -> None:
        """Publish with QoS 1; returns once the broker has acknowledged.

        Raises `NotConnected` (also when the connection breaks meanwhile) and `TimeoutError` after `timeout` seconds;
        in both cases the broker may or may not have it. The broker's refusal (MQTT 5) is a `ConnectionRefusedError`.
        """
        client = self._client
        if not self.connected or client is None:
            raise NotConnected(f"no connection to {self.address}")
        info = client.publish(topic, payload, qos=1, retain=retain)
        await self._acknowledged(info.rc, info.mid, timeout)

    async def _acknowledged(self, code: int, mid: int | None, timeout: float) -> None:
        if code != paho.MQTT_ERR_SUCCESS or mid is None:
            raise NotConnected(f"no connection to {self.address}: {paho.error_string(MQTTErrorCode(code))}")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending[mid] = done
        try:
            async with asyncio.timeout(timeout):
                await done
        finally:
            self._pending.pop(mid, None)

    async def _run(self) -> None:
        wait = FIRST_RETRY
        while True:
            reason = await self._attempt()
            if reason == "":  # it was connected: begin again with short waits
                wait = FIRST_RETRY
            else:
                self._report(False, reason)
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(wait * 2, LONGEST_RETRY)

    async def _attempt(self) -> str:
        """Connect and stay until the connection ends; "" if there was one, else why there was none."""
        loop = asyncio.get_running_loop()
        self._answered, self._lost = loop.create_future(), loop.create_future()
        try:
            client = self._new_client(loop)
        except (OSError, ValueError) as error:  # only the certificates are read here; they may be put right meanwhile
            reason = getattr(error, "strerror", None) or error
            return f"ca_file {self.address.ca_file} cannot be used ({reason}); name a readable PEM file of certificates"
        self._client = client
        try:
            properties = _connect_properties() if self.protocol == MQTTProtocolVersion.MQTTv5 else None
            await asyncio.to_thread(
                client.connect, self.address.host, self.address.port, keepalive=KEEPALIVE, properties=properties
            )
            client.loop_start()
            async with asyncio.timeout(self._patience):
                refusal = await self._answered
            if refusal:
                self._other_protocol(refusal)
                return f"{self.address} refused the connection: {refusal}{_remedy(refusal)}"
            if self._filters:
                await self._acknowledged(*client.subscribe([(f, 1) for f in self._filters]), self._patience)
            self.connected, self._patience = True, FIRST_PATIENCE
            self._report(True, f"connected to {self.address} by MQTT {'5' if self.protocol == 5 else '3.1.1'}")
            reason = await self._lost
            self.connected = False
            self._report(False, f"connection to {self.address} lost: {reason}")
            return ""
        except TimeoutError:
            self._other_protocol("no answer")
            if self.protocol == MQTTProtocolVersion.MQTTv5:  # both were tried
                self._patience = min(self._patience * 2, LONGEST_PATIENCE)
            return f"{self.address} does not answer as an MQTT broker"
        except (OSError, ValueError) as error:
            return f"no broker at {self.address}: {error}"
        finally:
            self.connected = False
            self._client = None
            await self._close(client)

    def _other_protocol(self, refusal: str) -> None:
        """A 3.1.1 broker refuses (or just hangs up on) MQTT 5; a wrong password is no reason to change."""
        if refusal in ("no answer", "hung up") or "protocol" in refusal.lower():
            both = (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311)
            self.protocol = int(both[self.protocol == MQTTProtocolVersion.MQTTv5])

    async def _close(self, client: paho.Client) -> None:
        for done in self._pending.values():
            if not done.done():
                done.set_exception(NotConnected(f"connection to {self.address} broke before the broker confirmed"))
        self._pending.clear()
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)

    def _report(self, connected: bool, reason: str) -> None:
        log.debug("mqtt %s: %s", self._client_id, reason)
        self._on_change(connected, reason)

    def _new_client(self, loop: asyncio.AbstractEventLoop) -> paho.Client:
        v5 = self.protocol == MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTProtocolVersion(self.protocol),
            reconnect_on_failure=False,
            clean_session=None if v5 else True,
        )
        client.connect_timeout = LONGEST_PATIENCE
        if self.address.username:
            client.username_pw_set(self.address.username, self.address.password)
        if self.address.ca_file:
            client.tls_set(ca_certs=self.address.ca_file)
        if self._will is not None:
            client.will_set(self._will[0], self._will[1], qos=1, retain=True)
        self._hook(client, loop)
        return client

    def _hook(self, client: paho.Client, loop: asyncio.AbstractEventLoop) -> None:
        """Move what paho's thread reports onto the loop; reports of a client that was given up are dropped."""
        answered, lost = self._answered, self._lost
        assert answered is not None and lost is not None

        def on_loop(function: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(function, *arguments)

        def on_connect(_c: Any, _u: Any, _flags: Any, code: ReasonCode, _p: Any) -> None:
            on_loop(_settle, answered, str(code) if code.is_failure else "")

        def on_disconnect(_c: Any, _u: Any, _flags: Any, code: ReasonCode, _p: Any) -> None:
            on_loop(_settle, answered, "hung up")
            on_loop(_settle, lost, str(code))

        def on_message(_c: Any, _u: Any, message: paho.MQTTMessage) -> None:
            on_loop(self._receive, client, message.topic, bytes(message.payload))

        def on_publish(_c: Any, _u: Any, mid: int, code: ReasonCode, _p: Any) -> None:
            on_loop(self._confirm, client, mid, str(code) if code.is_failure else "")

        def on_subscribe(_c: Any, _u: Any, mid: int, codes: list[ReasonCode], _p: Any) -> None:
            refused = [str(code) for code in codes if code.is_failure]
            on_loop(self._confirm, client, mid, refused[0] if refused else "")

        client.on_connect = on_connect
        client.on_disconnect = on_disconnect
        client.on_message = on_message
        client.on_publish = on_publish
        client.on_subscribe = on_subscribe

    def _receive(self, client: paho.Client, topic: str, payload: bytes) -> None:
        if client is self._client:
            self._on_message(topic, payload)

    def _confirm(self, client: paho.Client, mid: int, refusal: str) -> None:
        done = self._pending.get(mid) if client is self._client else None
        if done is None or done.done():
            return
        if refusal:
            done.set_exception(ConnectionRefusedError(f"{self.address} refused: {refusal}"))
        else:
            done.set_result(None)


def _settle(future: asyncio.Future[str], value: str) -> None:
    if not future.done():
        future.set_result(value)


def _remedy(refusal: str) -> str:
    """What to do about a refusal whose own words (MQTT 5 and 3.1.1) leave it open."""
    words = refusal.lower()
    if "authori" in words or "user name" in words or "password" in words:
        return " (set broker.username and broker.password to what the broker knows)"
    return ""


def _connect_properties() -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = MAXIMUM_PACKET_SIZE
    return properties
