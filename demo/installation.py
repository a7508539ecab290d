"""Where things are in a demo: its folder, ports, and the configuration that server and agents are started with."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLEET, MODEL = "wrists", "wrist"
#: Merged releases after version 1; when they are out, the story comes to its end.
MERGES = 5
MEMORY_LIMIT = "128MiB"
#: What a device's own model may lose on the lab's people: it serves one person, and is meant to become that person's.
ANCHOR_DROP = 0.3


class DemoError(RuntimeError):
    """The story cannot go on; the text says where and which log to read."""


@dataclass(frozen=True)
class Installation:
    """Paths and ports of one demo. The folder's path has to be short: Unix sockets stand in it."""

    directory: Path
    broker_port: int
    web_port: int

    @classmethod
    def make(cls, directory: Path, web_port: int = 0) -> Installation:
        """A new one in an empty (or new) folder, on free ports."""
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise DemoError(f"{directory} is not empty: name a new folder with --directory, or empty this one")
        if len(str(directory)) > 70:
            raise DemoError(f"{directory} is too long a path for the devices' sockets: name a shorter --directory")
        return cls(directory, _free_port(0), _free_port(web_port))

    @property
    def address(self) -> str:
        """The server's address, where the web page is."""
        return f"http://127.0.0.1:{self.web_port}"

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.directory / "server"

    @property
    def token_file(self) -> Path:
        """What the operator's commands prove themselves with."""
        return self.server / "api.token"

    def device(self, name: str) -> Path:
        """A device's folder; `agent.sock` and `agent.toml` are in it."""
        return self.directory / name

    def write_server(self) -> str:
        """Make the server's folder; returns the public key that devices have to trust."""
        sanderling("server", "init", str(self.server), "--fleet", FLEET)
        configuration: dict[str, dict[str, Any]] = {
            "server": {"fleet": FLEET},
            "broker": {"port": self.broker_port},
            "web": {"port": self.web_port},
            "merge": {
                "min_devices": 5,
                "max_wait_seconds": 12.0,
                "min_interval_seconds": 8.0,
                "max_releases": MERGES,
            },
            "distill": {"epochs": 2},
        }
        (self.server / "server.toml").write_text(_toml(configuration))
        key = sanderling("server", "keys", "--config", str(self.server / "server.toml"), "--json")
        return str(json.loads(key)["public_key"])

    def write_agent(self, name: str, trusted_key: str, learns: bool = True) -> Path:
        """Make a device's folder; returns its configuration file."""
        folder = self.device(name)
        folder.mkdir()
        configuration: dict[str, dict[str, Any]] = {
            "device": {"name": name, "fleet": FLEET, "state_directory": str(folder / "state")},
            "broker": {"port": self.broker_port},
            "release": {"trusted_keys": [trusted_key]},
            "model": {"name": MODEL},
            "serve": {"socket": str(folder / "agent.sock")},
            "learn": {"enabled": learns, "memory_limit": MEMORY_LIMIT, "anchor_drop": ANCHOR_DROP},
            "sync": {"telemetry_seconds": 3.0, "resend_seconds": 2.0},
        }
        (folder / "agent.toml").write_text(_toml(configuration))
        return folder / "agent.toml"


def command(*words: str) -> list[str]:
    """The command line for `sanderling WORDS`, with the Python that runs this."""
    return [sys.executable, "-m", "sanderling", *words]


def sanderling(*words: str) -> str:
    """Run a command to its end; returns what it printed. Raises `DemoError` with what it complained of."""
    done = subprocess.run(command(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoError(f"`sanderling {' '.join(words[:2])} …` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise DemoError(f"port {wanted} is taken ({error.strerror}): name another one with --port") from error
        return int(probe.getsockname()[1])


def _toml(sections: dict[str, dict[str, Any]]) -> str:
    """Tables of plain values; JSON's spelling of them is TOML's as well."""
    lines = []
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)
