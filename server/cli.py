"""`sanderling server`: make one, print its public key, run it. Heavy imports only inside the handlers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `server` to the command line."""
    server = subparsers.add_parser("server", help="the server that the fleet reports to")
    commands = server.add_subparsers(dest="server_command", metavar="COMMAND", required=True)

    init = commands.add_parser("init", help="make a server: configuration, keys, database")
    init.add_argument("directory", type=Path, metavar="DIRECTORY", help="where; empty or not there yet")
    init.add_argument("--fleet", default="fleet", metavar="NAME", help="the fleet's name (default: %(default)s)")
    init.set_defaults(handler=_guarded(_init))

    keys = commands.add_parser("keys", help="print the public key that devices must trust")
    keys.add_argument("--json", action="store_true", help="print it as JSON")
    keys.set_defaults(handler=_guarded(_keys))

    run = commands.add_parser("run", help="run the server until it is stopped (SIGTERM, Ctrl-C)")
    run.add_argument("--verbose", action="store_true", help="log more")
    run.set_defaults(handler=_guarded(_run))
    for command in (keys, run):
        command.add_argument("--config", type=Path, required=True, metavar="FILE", help="the server.toml")


def _guarded(handler: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """What a person can put right is printed as one message, without a traceback; status 1."""

    def guarded(options: argparse.Namespace) -> int:
        from .errors import ServerError

        try:
            return handler(options)
        except ServerError as error:
            print(f"sanderling server: {error.what}", file=sys.stderr)
            if error.remedy:
                print(f"  remedy: {error.remedy}", file=sys.stderr)
            return 1

    return guarded


def _init(options: argparse.Namespace) -> int:
    from .service import TOKEN
    from .setup import CONFIGURATION, initialize

    initialize(options.directory, options.fleet)
    config = options.directory / CONFIGURATION
    print(f"made {config}")
    print(f"run it:              sanderling server run --config {config}")
    print(f"devices must trust:  sanderling server keys --config {config}")
    print(f"the API token is in  {options.directory / TOKEN}")
    return 0


def _keys(options: argparse.Namespace) -> int:
    from .config import load
    from .service import KEY
    from .signing import Signer

    settings = load(options.config)
    public = Signer(settings.server.fleet, settings.data / KEY).public
    print(json.dumps({"fleet": settings.server.fleet, "public_key": public}) if options.json else public)
    return 0


def _run(options: argparse.Namespace) -> int:
    import asyncio
    import logging

    from .config import load

    settings = load(options.config)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    from .app import run

    asyncio.run(run(settings))
    return 0
