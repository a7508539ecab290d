"""The server as a process, and devices that exist only as messages, for tests of ingest and merging."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sanderling.codec import encode_delta, messages, topics
from sanderling.codec.messages import Delta, DeviceState, Event, Receipt
from sanderling.codec.topics import Topic
from sanderling.engine import read_weights
from sanderling.engine.models import depthwise_cnn_1d
from sanderling.host.mqtt import BrokerAddress, Connection
from tests.support.brokers import free_port

FLEET = "wrists"
CLASSES, CHANNELS, LENGTH = 4, 3, 24
Samples = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def small_model(seed: int = 0) -> bytes:
    """A CNN of about a thousand weights for windows of 3 x 24 in 4 classes."""
    return depthwise_cnn_1d(channels=CHANNELS, length=LENGTH, classes=CLASSES, widths=(12, 16, 16), kernel=3, seed=seed)


def windows(count: int, seed: int = 1, labels: tuple[int, ...] = tuple(range(CLASSES)), noise: float = 0.8) -> Samples:
    """Windows of four motions that differ in frequency and phase."""
    generator = np.random.default_rng(seed)
    y = generator.choice(np.asarray(labels), count)
    time_axis = np.arange(LENGTH) / LENGTH * 2 * np.pi
    channel = np.arange(CHANNELS)[None, :, None]
    x = np.sin((1 + y)[:, None, None] * time_axis + channel + 0.3 * y[:, None, None])
    return (x + noise * generator.normal(size=x.shape)).astype(np.float32), y.astype(np.int64)


def small_delta(model: bytes, scale: float = 0.01, seed: int = 0) -> bytes:
    """A coded random change of all weights of `model`."""
    generator = np.random.default_rng(seed)
    change = {n: (scale * generator.normal(size=a.shape)).astype(np.float32) for n, a in read_weights(model).items()}
    return encode_delta(change)[0]


def delta_message(blob: bytes, base: int = 1, sequence: int = 1, samples: int = 40, model: str = "wrist") -> bytes:
    """The payload that a device sends."""
    return messages.encode(
        Delta(time=time.time(), model=model, base_version=base, sequence=sequence, samples=samples,
              label_histogram=[samples // CLASSES] * CLASSES, blob=blob)
    )  # fmt: skip


def state_message(online: bool, boot: int = 1) -> bytes:
    """A birth, or a will."""
    return messages.encode(DeviceState(time=0.0, online=online, boot=boot, agent_version="1", models={"wrist": 1}))


def event_message(sequence: int = 1) -> bytes:
    """An event that a device sends."""
    return messages.encode(Event(time=0.0, sequence=sequence, kind="installed", model="wrist", version=1))


class ServerProcess:
    """`sanderling server run` on a directory made by `sanderling server init`."""

    def __init__(self, directory: Path, broker_port: int, **changed: object) -> None:
        self.directory, self.port = directory, free_port()
        self.log = directory.parent / f"{directory.name}.log"
        run_command("server", "init", str(directory), "--fleet", FLEET)
        self.config = directory / "server.toml"
        values: dict[str, list[object]] = {
            "port": [broker_port, self.port],
            "min_interval_seconds": [0.0],
            "min_devices": [2],
            "epochs": [2],
        }
        values |= {name: [value] for name, value in changed.items()}
        lines = []
        for line in self.config.read_text().splitlines():
            key = line.partition(" = ")[0]
            if values.get(key):
                line = f"{key} = {json.dumps(values[key].pop(0))}"
            lines.append(line)
        self.config.write_text("\n".join(lines))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sanderling", "server", "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                self.get("/healthz")
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return bytes(answer.read())

    def push(self, model: bytes, proxy: bytes | None = None) -> None:
        """Push and release version 1 of "wrist"."""
        self._send("PUT", "/api/models/wrist/files/model.onnx", model)
        if proxy is not None:
            self._send("PUT", "/api/models/wrist/files/proxy.npz", proxy)
        self._send("POST", "/api/models/wrist/releases", b"{}")

    def _send(self, method: str, path: str, data: bytes) -> None:
        token = (self.directory / "api.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60):
            pass


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`sanderling ...`, which must succeed."""
    done = subprocess.run([sys.executable, "-m", "sanderling", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


class PaperFleet:
    """Devices that send what they are told to, and send again until they have a receipt."""

    def __init__(self, broker_port: int) -> None:
        self.receipts: dict[tuple[str, str, int], list[str]] = {}
        self.releases: dict[int, Any] = {}
        self.connection = Connection(
            BrokerAddress(port=broker_port), "paper-fleet", on_message=self._take, on_change=lambda *_: None
        )
        self.connection.subscribe(topics.every_device(FLEET, "receipt"), topics.build(Topic(FLEET, "release", "wrist")))

    def _take(self, topic: str, payload: bytes) -> None:
        parsed = topics.parse(topic)
        if parsed.kind == "receipt":
            receipt = messages.decode(Receipt, payload)
            self.receipts.setdefault((parsed.name, receipt.of, receipt.sequence), []).append(receipt.status)
        elif payload:
            import base64

            release = json.loads(base64.b64decode(json.loads(payload)["payload"]))
            self.releases[release["version"]] = release

    async def until(self, condition: Callable[[], bool], seconds: float = 40.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.02)

    async def send(self, device: str, kind: str, payload: bytes) -> None:
        """Publish once, if there is a connection."""
        try:
            await self.connection.publish(topics.build(Topic(FLEET, kind, device)), payload, timeout=5)
        except (OSError, TimeoutError):
            return

    async def deliver(
        self, device: str, payload: bytes, sequence: int, of: str = "delta", seconds: float = 40.0
    ) -> str:
        """Send until there is a receipt; returns its status."""
        async with asyncio.timeout(seconds):
            while (device, of, sequence) not in self.receipts:
                await self.send(device, of, payload)
                for _ in range(10):
                    if (device, of, sequence) not in self.receipts:
                        await asyncio.sleep(0.05)
        return self.receipts[device, of, sequence][0]
