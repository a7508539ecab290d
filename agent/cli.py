"""`sanderling agent ...`: run the daemon, ask how it is, go back a version, check a configuration."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Settings


def register(subparsers: Any) -> None:
    """Add `agent` and its commands."""
    agent = subparsers.add_parser("agent", help="the daemon on a device: run it, ask how it is")
    commands = agent.add_subparsers(dest="agent_command", metavar="COMMAND", required=True)
    _add(commands, "run", _run, "run the agent until it is told to stop (SIGTERM)")
    status = _add(commands, "status", _status, "how a running agent is: model, accuracy, memory, outbox")
    status.add_argument("--json", action="store_true", help="print everything as JSON")
    rollback = _add(commands, "rollback", _rollback, "go back: from the personal model to the fleet's, or a release")
    rollback.add_argument("--release", action="store_true", help="go back a release although a personal model answers")
    _add(commands, "check", _check, "check the configuration, the state directory and the broker")


def _add(commands: Any, name: str, handler: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--config", type=Path, default=Path("/etc/sanderling/agent.toml"), help="default: %(default)s")
    parser.set_defaults(handler=lambda options: _guarded(handler, options))
    return parser


def _guarded(handler: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    from .errors import AgentError

    try:
        return handler(options)
    except AgentError as error:
        print(f"sanderling agent: {error}", file=sys.stderr)
        return 1


def _settings(options: argparse.Namespace) -> Settings:
    from .config import read

    return read(options.config)


def _run(options: argparse.Namespace) -> int:
    from .supervisor import run

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    run(_settings(options))
    return 0


def _status(options: argparse.Namespace) -> int:
    import msgspec

    from .control import Command, ask
    from .layout import Layout

    body = ask(Layout(Path(_settings(options).device.state_directory)).control, Command("status"))
    if options.json:
        print(msgspec.json.format(body).decode())
        return 0
    for name, value in describe(msgspec.json.decode(body)):
        print(f"{name:<12} {value}")
    return 0


def describe(status: dict[str, Any]) -> list[tuple[str, str]]:
    """The status as lines for people: (what, how it is)."""

    def accuracy(key: str) -> str:
        found = status[key]
        return f"{found['value']:.3f} of {found['count']}" if found else "not known yet"

    def size(count: float) -> str:
        return f"{count / 2**20:.1f} MiB"

    ratio = status["float32_bytes"] / status["delta_bytes"] if status["delta_bytes"] else 0.0
    peak = f"{size(status['training_peak'])} of {size(status['memory_limit'])}"
    return [
        ("device", f"{status['fleet']}/{status['device']}, boot {status['boot']}"),
        ("model", f"{status['model']} version {status['version']}, answered by: {status['serving']}"),
        ("broker", status["connection"]),
        ("update", status["update"]["state"]),
        ("accuracy", f"lately {accuracy('prequential')}"),
        ("held out", f"fleet {accuracy('held_out_fleet')}, personal {accuracy('held_out_personal')}"),
        ("samples", f"{status['samples_stored']} stored of {status['samples_seen']} seen"),
        ("training", f"{status['training_runs']} runs, peak {peak}"),
        ("learning", status["learning"] or "no run yet"),
        ("sent", f"{status['deltas_sent']} deltas, {status['delta_bytes']} bytes (1/{ratio:.1f} of float32)"),
        ("outbox", f"{status['outbox']} waiting for a receipt"),
        ("memory", ", ".join(f"{name} {size(count)}" for name, count in status["resident"].items())),
    ]


def _rollback(options: argparse.Namespace) -> int:
    import msgspec

    from .choice import Choice
    from .control import Command, ask, only_one
    from .layout import Layout
    from .ledger import Ledger

    settings = _settings(options)
    layout = Layout(Path(settings.device.state_directory))
    layout.create()
    with only_one(layout) as alone:
        if alone:
            choice = Choice(settings, layout, Ledger(layout.database))
            reason = "the operator asked for it"
            personal = choice.serving().which == "personal" and not options.release
            done = choice.withdraw_personal(reason) if personal else choice.withdraw_release(reason)
        else:
            done = msgspec.json.decode(ask(layout.control, Command("rollback", options.release)), type=str)
    print(done)
    return 0


def _check(options: argparse.Namespace) -> int:
    from .checking import check

    settings = _settings(options)
    results = check(settings)
    for what, fine, text in results:
        print(f"{'ok' if fine else 'FAILED':<7} {what}: {text}")
    return 0 if all(fine for _, fine, _ in results) else 1
