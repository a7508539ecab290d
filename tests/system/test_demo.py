"""The whole demo, as a user starts it, while its processes are killed: it still ends well, and the books balance.

The bars are those that README.md claims. Runs with the broker that the machine has, and with the embedded one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sanderling.host.broker import available_kinds

DEVICES = [f"device-{number}" for number in (5, 6, 7, 8, 9)]
#: Who is killed when that many releases are out. The broker's memory (retained messages) goes with it.
KILLS = {1: ["device-6"], 2: ["server"], 3: ["broker", "device-8"]}

pytestmark = pytest.mark.system


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A folder whose path leaves room for Unix sockets in it."""
    with tempfile.TemporaryDirectory(prefix="sl-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def released_versions(server: Path) -> int:
    """How many versions the server's database knows; 0 while there is none."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(reading(server / "sanderling.db")) as db:
        return int(db.execute("SELECT count(*) FROM releases").fetchone()[0])
    return 0


def reading(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)


def kill(directory: Path, name: str) -> None:
    """kill -9 of one of the demo's processes."""
    os.kill(int((directory / "processes" / f"{name}.pid").read_text()), signal.SIGKILL)


def assassin(directory: Path, stop: threading.Event, killed: list[str]) -> None:
    """Kill whoever `KILLS` names, as soon as that many versions are released."""
    for versions, victims in KILLS.items():
        while released_versions(directory / "server") < versions:
            if stop.wait(0.2):
                return
        time.sleep(3)  # in the middle of what follows a release: downloads, training, deltas on their way
        for victim in victims:
            kill(directory, victim)
            killed.append(victim)


def run_demo(directory: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Run it to its end; the figures and what it printed."""
    out = directory.parent / f"{directory.name}-out"
    out.mkdir()
    command = [sys.executable, "-m", "sanderling", "demo", "--directory", str(directory), "--json", str(out / "d.json")]
    done = subprocess.run(
        [*command, "--picture", str(out / "d.png"), *options], capture_output=True, text=True, timeout=420
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (out / "d.png").read_bytes().startswith(b"\x89PNG")
    figures: dict[str, Any] = json.loads((out / "d.json").read_text())
    return figures, done.stdout


def assert_bars(figures: dict[str, Any]) -> None:
    """What README.md promises of the demo."""
    summary = figures["summary"]
    assert summary["mean_accuracy_after"] >= 0.90
    assert summary["mean_accuracy_before"] <= 0.80
    assert summary["new_device_gain_points"] >= 6
    assert summary["traffic_ratio"] >= 12
    for device in figures["devices"]:
        assert 0 < device["training_peak"] <= device["memory_limit"] == 128 * 2**20
        assert device["version"] == figures["releases"][-1][1]
        assert len(device["versions_installed"]) >= 4


def assert_books_balance(directory: Path) -> None:
    """Every delta that a device ever queued is at the server exactly once, and is merged at most once."""
    with contextlib.closing(reading(directory / "server" / "sanderling.db")) as server:
        rows = server.execute("SELECT device, base_version, sequence, status, merged_into, job FROM deltas").fetchall()
        releases = {row[0] for row in server.execute("SELECT version FROM releases")}
    received = [(device, base, sequence) for device, base, sequence, *_ in rows]
    assert len(received) == len(set(received))
    queued = set()
    for name in DEVICES:
        with contextlib.closing(reading(directory / name / "state" / "agent.db")) as agent:
            entries = agent.execute("SELECT base_version, sequence, status FROM outbox WHERE kind = 'delta'").fetchall()
        assert entries
        assert {status for _, _, status in entries} <= {"accepted", "duplicate"}
        queued |= {(name, base, sequence) for base, sequence, _ in entries}
    assert queued == set(received)
    assert {status for _, _, _, status, _, _ in rows} == {"accepted"}
    merged = [(job, version) for *_, version, job in rows if version is not None]
    assert merged
    assert {version for _, version in merged} <= releases
    assert len({job for job, _ in merged}) == len({version for _, version in merged})


def test_demo_survives_kills_of_agents_server_and_broker(short_directory: Path) -> None:
    directory, stop = short_directory / "demo", threading.Event()
    killed: list[str] = []
    killer = threading.Thread(target=assassin, args=(directory, stop, killed))
    killer.start()
    try:
        figures, printed = run_demo(directory)
    finally:
        stop.set()
        killer.join()
    assert killed == [victim for victims in KILLS.values() for victim in victims]
    assert all(figures["restarts"][victim] >= 1 for victim in killed)
    assert "started again" in printed
    assert_bars(figures)
    assert_books_balance(directory)


@pytest.mark.skipif(
    "mosquitto" not in available_kinds(), reason="without mosquitto the other test runs on amqtt already"
)
def test_demo_on_the_embedded_broker(short_directory: Path) -> None:
    directory = short_directory / "demo"
    figures, _ = run_demo(directory, "--broker", "amqtt")
    assert figures["broker"] == "amqtt (MQTT 3.1.1)"
    assert_bars(figures)
    assert_books_balance(directory)


def test_live_demo_keeps_running_and_serves_the_page(short_directory: Path) -> None:
    """`--live`: the address that is printed first answers while the story is told, and SIGTERM ends everything."""
    directory = short_directory / "demo"
    command = [sys.executable, "-u", "-m", "sanderling", "demo", "--live", "--directory", str(directory)]
    process = subprocess.Popen(
        [*command, "--picture", str(short_directory / "d.png")], stdout=subprocess.PIPE, text=True, cwd=short_directory
    )
    pids: list[int] = []
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        address = first[first.index("http://") :].strip()
        deadline = time.monotonic() + 60
        while True:
            try:
                page = urllib.request.urlopen(address, timeout=5).read().decode()
                break
            except OSError:
                assert time.monotonic() < deadline, "the page did not come up"
                time.sleep(0.3)
        assert "<html" in page
        pids = [int(path.read_text()) for path in (directory / "processes").glob("*.pid")]
        assert pids
    finally:
        process.terminate()
        assert process.stdout is not None
        told = process.stdout.read()
        process.stdout.close()
        process.wait(60)
    assert "ended" in told
    time.sleep(0.5)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
