"""A broker for one machine: mosquitto when it is installed, else amqtt, which is a Python package and needs no root.

`python -m sanderling.host.broker --port 1883` becomes mosquitto (by exec, so that the process id is the broker's) or
runs amqtt in this process. Loopback only, no passwords: for the demo, tests and trying things. A fleet wants
`deploy/mosquitto.conf`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

from .files import write_durably

KINDS = ("mosquitto", "amqtt")


def find_mosquitto() -> str | None:
    """Path of mosquitto, if this machine has it. Debian puts it where only root looks."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def available_kinds() -> list[str]:
    """The kinds of `KINDS` that can run here, best first."""
    import importlib.util

    found = [bool(find_mosquitto()), importlib.util.find_spec("amqtt") is not None]
    return [kind for kind, there in zip(KINDS, found, strict=True) if there]


def run_mosquitto(port: int, directory: Path) -> None:
    """Replace this process by mosquitto on 127.0.0.1:`port`. Does not return."""
    program = find_mosquitto()
    assert program is not None
    configuration = directory / "mosquitto.conf"
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false", "log_type error"]
    write_durably(configuration, "\n".join([*lines, ""]).encode())
    os.execv(program, [program, "-c", str(configuration)])


async def run_amqtt(port: int) -> None:
    """Run amqtt on 127.0.0.1:`port` until SIGTERM or SIGINT."""
    from amqtt.broker import Broker

    logging.getLogger("amqtt").setLevel(logging.ERROR)
    logging.getLogger("transitions").setLevel(logging.ERROR)
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await broker.start()
    await stop.wait()
    await broker.shutdown()


def main() -> int:
    """Run the broker that was asked for; 2 when this machine has none."""
    parser = argparse.ArgumentParser(prog="python -m sanderling.host.broker", description=__doc__)
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--kind", choices=("auto", *KINDS), default="auto")
    parser.add_argument("--directory", type=Path, default=Path(), help="where mosquitto's configuration is written")
    options = parser.parse_args()
    kinds = available_kinds() if options.kind == "auto" else [k for k in available_kinds() if k == options.kind]
    if not kinds:
        print(
            f"no MQTT broker ({options.kind}) on this machine: "
            "`apt install mosquitto` or `pip install 'sanderling[demo]'`",
            file=sys.stderr,
        )
        return 2
    if kinds[0] == "mosquitto":
        run_mosquitto(options.port, options.directory)
    asyncio.run(run_amqtt(options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
