"""Real brokers for tests, each a process of its own on a free loopback port."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sanderling.host.broker import KINDS, available_kinds


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class BrokerProcess:
    """A broker that can be killed and started again on the same port."""

    def __init__(self, kind: str, directory: Path, port: int | None = None) -> None:
        self.kind, self.directory, self.port = kind, directory, port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it listens."""
        command = [sys.executable, "-m", "sanderling.host.broker", "--port", str(self.port), "--kind", self.kind]
        self._process = subprocess.Popen([*command, "--directory", str(self.directory)], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError(f"{self.kind} does not listen on {self.port}")

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def start_broker(directory: Path, kind: str = "mosquitto") -> Iterator[BrokerProcess]:
    """A running broker of this kind; skips the test with a printed reason where the machine has none."""
    if kind not in available_kinds():
        pytest.skip(f"{kind} is not installed on this machine")
    broker = BrokerProcess(kind, directory)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


#: For `@pytest.mark.parametrize("kind", BROKER_KINDS)`: MQTT 5 (mosquitto) and 3.1.1 (amqtt).
BROKER_KINDS = KINDS
