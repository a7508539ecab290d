"""`sanderling demo`: tells the story, shows it while it happens, and leaves a table, a picture and a JSON document."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="the whole loop on this machine, on real wrist motions",
        description="A fleet of devices that learn, sync, and receive better models: five people's wrists, two to "
        "three minutes, real processes and a real broker. Ends with a table and a picture.",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures here")
    parser.add_argument("--picture", type=Path, metavar="PATH", default=Path("demo.png"), help="default: %(default)s")
    parser.add_argument("--directory", type=Path, help="keep databases, models and logs in this (new) folder")
    parser.add_argument("--broker", choices=("auto", "mosquitto", "amqtt"), default="auto", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=0, help="of the live page; default: any free one")
    parser.add_argument("--live", action="store_true", help="afterwards keep everything running until Ctrl-C")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Tell the story; 1 if it could not be told to its end."""
    # whoever ends the demo politely ends its processes with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(options)
    except ImportError as error:
        print(f"sanderling demo: {error}\nThe demo needs its extra: pip install 'sanderling[demo]'", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from .application import AgentError
    from .installation import DemoError, Installation
    from .processes import Processes
    from .report import draw, show
    from .screen import Screen
    from .story import STREAM_SECONDS, Story

    console = Console()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="sanderling-"))
    try:
        installation = Installation.make(directory, options.port)
        with Screen(console) as screen, Processes(installation.directory / "processes", screen.say) as processes:
            story = Story(installation, processes, screen, options.broker)
            outcome = story.tell()
            screen.close()
            show(outcome, console)
            if options.json is not None:
                outcome.write_json(options.json)
                console.print(f"figures: {options.json}")
            draw(outcome, options.picture)
            console.print(f"picture: {options.picture}")
            if options.live:
                console.print(f"\nStill running: {installation.address}   (Ctrl-C ends it)")
                for wearer in story.wearers:
                    wearer.live(STREAM_SECONDS, again=True)
                threading.Event().wait()
    except (DemoError, AgentError, OSError) as error:
        console.print(f"sanderling demo: {error}", style="red", markup=False, highlight=False)
        if options.directory is None:
            console.print(f"Databases and logs are kept in {directory}.", markup=False)
            options.directory = directory
        return 1
    except KeyboardInterrupt:
        console.print("ended")
        return 0 if options.live else 130
    finally:
        if options.directory is None:
            shutil.rmtree(directory, ignore_errors=True)
    return 0
