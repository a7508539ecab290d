"""The `sanderling` command: dispatches to the packages, which keep their own commands in their own `cli.py`.

Start-up stays light: a package's command module is imported only when one of its commands is asked for, and heavy
libraries only inside the handlers.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__

#: Command name -> (module whose `register(subparsers)` adds it, one-line help).
COMMANDS: dict[str, tuple[str, str]] = {
    "agent": ("sanderling.agent.cli", "the daemon on a device: run it, ask how it is"),
    "server": ("sanderling.server.cli", "the server that the fleet reports to"),
    "model": ("sanderling.server.client_cli", "models and releases on a server: push, list, show"),
    "fleet": ("sanderling.server.client_cli", "the devices of a fleet: status, devices, show"),
    "train": ("sanderling.engine.cli", "fine-tune an ONNX model inside a memory limit"),
    "plan": ("sanderling.engine.cli", "show how training fits into a memory limit"),
    "pack": ("sanderling.codec.cli", "compress a model or arrays, losslessly"),
    "unpack": ("sanderling.codec.cli", "restore a packed file, bit for bit"),
    "inspect": ("sanderling.codec.cli", "show what a model or a coded file consists of, tensor by tensor"),
    "diff": ("sanderling.codec.cli", "what changed between two versions of a model, as a small file"),
    "apply": ("sanderling.codec.cli", "make the new version of a model from the old one and what changed"),
    "demo": ("sanderling.demo.cli", "the whole loop on this machine, on real wrist motions"),
}


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the full options of `command` only; the others are listed with their one line."""
    parser = argparse.ArgumentParser(
        prog="sanderling",
        description="Small models that keep learning on small devices, and the fleet they learn in.",
    )
    parser.add_argument("--version", action="version", version=f"sanderling {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if command in COMMANDS:
        importlib.import_module(COMMANDS[command][0]).register(subparsers)
    for name, (_, text) in COMMANDS.items():
        if name not in subparsers.choices:
            subparsers.add_parser(name, help=text, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if not word.startswith("-")), None)
    options = build_parser(command).parse_args(arguments)
    try:
        status: int = options.handler(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has left: nothing is wrong
        sys.stderr.close()
        return 0
    return status
