"""`sanderling model` and `sanderling fleet`: ask a running server, and push models to it, from anywhere.

Everything goes over the REST API, so these commands work from any machine that reaches the server. `--json` prints what
the API answered. Exit status: 0 done, 1 the server refused or was not reached, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from .client import Client

SERVER = "http://127.0.0.1:8080"
#: Columns of a line that goes to a pipe or file.
UNBOUNDED = 200
Command = Callable[["Client", argparse.Namespace], int]


def register(subparsers: Any) -> None:
    """Add the commands `model` and `fleet`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--server", metavar="URL", help=f"the server's address (SANDERLING_SERVER; {SERVER})")
    shared.add_argument("--token", help="the API token (SANDERLING_TOKEN); other users may see it, so rather:")
    shared.add_argument(
        "--token-file", type=Path, metavar="PATH", help="file with the API token (the server's api.token)"
    )
    shared.add_argument("--json", action="store_true", help="print the server's answer as JSON")

    model = subparsers.add_parser("model", help="models and releases on a server: push, list, show")
    actions = model.add_subparsers(dest="action", metavar="ACTION", required=True)
    push = _add(actions, shared, "push", _push, "upload a model and release it to the fleet")
    push.add_argument("file", type=Path, metavar="MODEL.onnx")
    push.add_argument("--name", required=True, help="the model's name on server and devices")
    push.add_argument("--anchor", type=Path, metavar="A.npz", help="samples on which no better model may fail")
    push.add_argument("--proxy", type=Path, metavar="P.npz", help="samples for distillation; they stay on the server")
    push.add_argument("--labels", metavar="a,b,c", type=_labels, default=[], help="names of the classes, in order")
    push.add_argument(
        "--note", metavar="KEY=VALUE", type=_note, action="append", default=[], help="kept with the release"
    )
    _add(actions, shared, "list", _models, "the models and their current versions")
    _add(actions, shared, "show", _releases, "a model's releases").add_argument("name")
    rollback = _add(actions, shared, "rollback", _rollback, "release an older version again, as a new one")
    rollback.add_argument("name")
    rollback.add_argument("--to", type=int, required=True, metavar="VERSION", help="the version whose files come back")

    fleet = subparsers.add_parser("fleet", help="the devices of a fleet: status, devices, show, watch")
    views = fleet.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add(views, shared, "status", _status, "the fleet at a glance")
    _add(views, shared, "devices", _devices, "every device with version, accuracy and memory")
    _add(views, shared, "show", _device, "one device in detail").add_argument("name")
    watch = _add(views, shared, "watch", _watch, "status and devices, kept up to date; ends with Ctrl-C")
    watch.add_argument("--interval", type=_seconds, default=2.0, metavar="SECONDS", help="between two looks (2)")
    watch.add_argument("--updates", type=int, default=0, metavar="N", help="end after N looks")


def _add(actions: Any, shared: argparse.ArgumentParser, name: str, command: Command, text: str) -> Any:
    parser = actions.add_parser(name, parents=[shared], help=text, description=text)
    parser.set_defaults(handler=_handled(command))
    return parser


def _handled(command: Command) -> Callable[[argparse.Namespace], int]:
    """`command` with its client made and every known failure printed with its remedy."""

    def handler(options: argparse.Namespace) -> int:
        from .client import Client, find_token
        from .client_text import clean
        from .errors import ServerError

        try:
            address = options.server or os.environ.get("SANDERLING_SERVER") or SERVER
            return command(Client(address, find_token(options.token, options.token_file)), options)
        except ServerError as error:
            print(f"sanderling: {clean(error.what)}", file=sys.stderr)
            if error.remedy:
                print(f"  remedy: {clean(error.remedy)}", file=sys.stderr)
            return 1

    return handler


def _show(options: argparse.Namespace, value: Any, drawn: Callable[[], Any]) -> int:
    """Print `value` as JSON if that is wanted, else what `drawn` makes of it."""
    if options.json:
        print(json.dumps(value, indent=2))
        return 0
    _console().print(drawn())
    return 0


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe or file has no width that a table would have to fit
        console.width = UNBOUNDED
    return console


def _push(client: Client, options: argparse.Namespace) -> int:
    from .client_text import facts, size

    files = {"model.onnx": options.file, "anchor.npz": options.anchor, "proxy.npz": options.proxy}
    client.check_token()
    for name, path in files.items():
        if path is not None:
            staged = client.upload(options.name, name, path)
            if not options.json:
                print(f"uploaded {path} as {name}, {size(staged['length'])}", flush=True)
    answer = client.release(options.name, options.labels, dict(options.note))
    metrics = answer["metrics"]
    untrainable = metrics.get("not_trainable_because")
    return _show(options, answer, lambda: facts([
        ("released", f"{answer['model']} v{answer['version']}"),
        ("digest", answer["digest"]),
        ("weights", metrics.get("weights")),
        ("accuracy on proxy", metrics.get("proxy_accuracy")),
        ("accuracy on anchor", metrics.get("anchor_accuracy")),
        ("devices will not learn", untrainable),
    ]))  # fmt: skip


def _rollback(client: Client, options: argparse.Namespace) -> int:
    from .client_text import facts

    answer = client.rollback(options.name, options.to)
    text = f"{answer['model']} v{answer['version']}, with the files of v{options.to}"
    return _show(options, answer, lambda: facts([("released", text)]))


def _models(client: Client, options: argparse.Namespace) -> int:
    from .client_text import models

    answer = client.get("models")
    return _show(options, answer, lambda: models(answer))


def _releases(client: Client, options: argparse.Namespace) -> int:
    from .client_text import releases

    answer = client.get("models", options.name, "releases")
    return _show(options, answer, lambda: releases(answer, time.time()))


def _status(client: Client, options: argparse.Namespace) -> int:
    from .client_text import status

    answer = client.get("status")
    return _show(options, answer, lambda: status(answer))


def _devices(client: Client, options: argparse.Namespace) -> int:
    from .client_text import devices

    answer = client.get("devices")
    return _show(options, answer, lambda: devices(answer, time.time(), _console().width))


def _device(client: Client, options: argparse.Namespace) -> int:
    from .client_text import device

    answer = client.get("devices", options.name)
    return _show(options, answer, lambda: device(answer, time.time()))


def _watch(client: Client, options: argparse.Namespace) -> int:
    """With --json one line of JSON per look; else one picture that changes. A server that goes away is waited for."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from .client import ClientError
    from .client_text import clean, devices, status

    def look() -> dict[str, Any]:
        return {"status": client.get("status"), "devices": client.get("devices")}

    left = options.updates or -1
    answer = look()  # a server that was never there is an error, not something to wait for
    if options.json:
        while True:
            print(json.dumps(answer), flush=True)
            left -= 1
            if left == 0:
                return 0
            time.sleep(options.interval)
            answer = look()
    console = _console()
    with Live(console=console, auto_refresh=False) as live:
        trouble = ""
        while True:
            now = answer["status"]["time"]
            parts = [status(answer["status"]), Text(), devices(answer["devices"], now, console.width)]
            live.update(Group(*parts, *([Text(trouble, "yellow")] if trouble else [])), refresh=True)
            left -= 1
            if left == 0:
                return 0
            time.sleep(options.interval)
            try:
                answer, trouble = look(), ""
            except ClientError as error:
                trouble = f"not up to date: {clean(error.what)}"


def _labels(text: str) -> list[str]:
    labels = [label.strip() for label in text.split(",")]
    if not all(labels):
        raise argparse.ArgumentTypeError("write the names of the classes with commas between them: rest,walk,run")
    return labels


def _note(text: str) -> tuple[str, str | int | float]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if abs(number) < 2**53:  # neither nan nor inf, which JSON does not have
            return key, number
    return key, value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.05 to 3600")
    return value
