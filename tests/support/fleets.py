"""For tests of the agent: a server's side of the protocol in a few lines, an application, and a running agent."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sanderling.codec import accumulate
from sanderling.codec.messages import Delta, DeviceState, Event, Receipt, Telemetry, decode, encode
from sanderling.codec.release import Release, Target, cut, generate_key, sign
from sanderling.codec.topics import Topic, build, every_device, parse
from sanderling.host.mqtt import BrokerAddress, Connection

F32 = NDArray[np.float32]
T = TypeVar("T")
FLEET, MODEL = "birds", "gait"


def until(condition: Callable[[], T], seconds: float = 20.0, what: str = "") -> T:
    """Wait for something to become true; its value. Fails loudly when it does not."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.05)


class ServerSide:
    """Publishes signed releases and answers deltas and events with receipts; keeps everything it was sent.

    Runs on a thread with a loop of its own. `mute` withholds receipts, as a server that is away does.
    """

    def __init__(self, port: int) -> None:
        self.private, self.public = generate_key()
        self.deltas: dict[tuple[int, int], Delta] = {}
        self.events: dict[int, Event] = {}
        self.states: list[DeviceState] = []
        self.telemetry: list[Telemetry] = []
        self.received = 0
        self.mute = False
        self.refuse_deltas = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._retained: dict[str, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection = Connection(
            BrokerAddress(port=port), "server-side", on_message=self._receive, on_change=self._changed
        )
        for kind in ("state", "telemetry", "delta", "event"):
            self._connection.subscribe(every_device(FLEET, kind))
        self._call(self._connection.start())
        until(lambda: self._connection.connected, what="the server side to connect")

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def close(self) -> None:
        """Disconnect and end the thread."""
        self._call(self._connection.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def publish(self, topic: Topic, payload: bytes) -> None:
        """Retain this message."""
        self._retained[build(topic)] = payload
        self._call(self._connection.publish(build(topic), payload, retain=True))

    def make(
        self, version: int, files: dict[str, bytes], key: str = "", model: str = MODEL
    ) -> tuple[Release, bytes, dict[str, bytes]]:
        """A signed release: what it says, the envelope, and the chunks."""
        targets: dict[str, Target] = {}
        chunks: dict[str, bytes] = {}
        for name, data in files.items():
            targets[name], pieces = cut(data)
            chunks |= pieces
        release = Release(fleet=FLEET, model=model, version=version, created=time.time(), targets=targets)
        return release, sign(release, key or self.private), chunks

    def release(self, version: int, files: dict[str, bytes]) -> Release:
        """Publish a release: chunks first."""
        release, envelope, chunks = self.make(version, files)
        for digest, data in chunks.items():
            self.publish(Topic(FLEET, "chunk", digest), data)
        self.publish(Topic(FLEET, "release", MODEL), envelope)
        return release

    def kinds(self) -> list[tuple[str, int]]:
        """(kind, version) of every event, in the order of their sequence numbers."""
        return [(event.kind, event.version) for _, event in sorted(self.events.items())]

    def learned(self, base: dict[str, F32], version: int) -> dict[str, F32]:
        """A base plus all deltas on it: the personal model as the server knows it."""
        result = {name: array.copy() for name, array in base.items()}
        for (base_version, _), delta in sorted(self.deltas.items()):
            if base_version == version:
                accumulate(delta.blob, result)
        return result

    def _changed(self, connected: bool, _reason: str) -> None:
        if connected:
            for topic, payload in self._retained.items():
                self._spawn(self._connection.publish(topic, payload, retain=True))

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(_quietly(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _receive(self, name: str, payload: bytes) -> None:
        topic = parse(name)
        if topic.kind == "state":
            self.states.append(decode(DeviceState, payload))
        elif topic.kind == "telemetry":
            self.telemetry.append(decode(Telemetry, payload))
        elif topic.kind == "delta":
            self.received += 1
            delta = decode(Delta, payload)
            if not self.mute:
                if not self.refuse_deltas:
                    self.deltas[delta.base_version, delta.sequence] = delta
                status: Any = "rejected" if self.refuse_deltas else "accepted"
                self._answer(topic, "delta", delta.base_version, delta.sequence, status)
        elif topic.kind == "event" and not self.mute:
            event = decode(Event, payload)
            self.events[event.sequence] = event
            self._answer(topic, "event", 0, event.sequence, "accepted")

    def _answer(self, topic: Topic, of: Any, base: int, sequence: int, status: Any) -> None:
        receipt = Receipt(time=time.time(), of=of, base_version=base, sequence=sequence, status=status)
        reply = build(Topic(topic.fleet, "receipt", topic.name))
        self._spawn(self._connection.publish(reply, encode(receipt)))


async def _quietly(coroutine: Any) -> None:
    with contextlib.suppress(OSError, TimeoutError):  # the broker was killed: the device asks again
        await coroutine


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class RunningAgent:
    """An agent started by the command line, and an application's way to talk to it."""

    def __init__(self, directory: Path, port: int, public_key: str, **sections: dict[str, Any]) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.state = directory / "state"
        self.socket = directory / "s"
        self.log = directory / "log"
        settings: dict[str, dict[str, Any]] = {
            "device": {"name": "d1", "fleet": FLEET, "state_directory": str(self.state)},
            "broker": {"port": port},
            "release": {"trusted_keys": [public_key]},
            "model": {"name": MODEL},
            "serve": {"socket": str(self.socket)},
            "learn": {"memory_limit": "160MiB"},
            "sync": {"telemetry_seconds": 1.0, "resend_seconds": 0.5},
        }
        for section, values in sections.items():
            settings.setdefault(section, {}).update(values)
        self.config = directory / "agent.toml"
        lines = []
        for section, values in settings.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        self.config.write_text("\n".join(lines))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RunningAgent:
        """Start it; returns at once."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("run"), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ)
            )
        return self

    def command(self, *words: str) -> list[str]:
        """The command line of `sanderling agent WORDS` for this configuration."""
        return [sys.executable, "-m", "sanderling", "agent", *words, "--config", str(self.config)]

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, JSON) of one request."""
        connection = _UnixConnection(self.socket)
        try:
            connection.request(method, path, json.dumps(body).encode() if body is not None else None)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """GET /status; {} while it cannot be reached."""
        try:
            code, body = self.ask("GET", "/status")
        except OSError:
            return {}
        return dict(body) if code == 200 else {}

    def infer(self, x: F32) -> tuple[int, Any]:
        """Predict."""
        tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        return self.ask("POST", f"/v2/models/{MODEL}/infer", {"inputs": [tensor]})

    def teach(self, x: F32, labels: NDArray[np.int64]) -> tuple[int, Any]:
        """Feedback with inputs."""
        tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        return self.ask("POST", f"/v2/models/{MODEL}/feedback", {"inputs": [tensor], "labels": labels.tolist()})


def motions(count: int, seed: int, shift: float = 0.0) -> tuple[F32, NDArray[np.int64]]:
    """Windows [N, 6, 100] of four kinds of motion with noise; `shift` moves the phase, as another wearer would."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    time_axis = np.arange(100) / 100
    channels = np.arange(6)[:, None]
    x = np.stack(
        [np.sin(2 * np.pi * (label + 1) * time_axis[None] * (1 + shift) + channels * (label + 1)) for label in labels]
    )
    return (x + random.normal(0, 0.5, x.shape)).astype(np.float32), labels.astype(np.int64)
