"""`sanderling plan`: how training fits into a memory limit, as tables, as JSON and as a picture."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from .cli_planning import add_sizes, add_wishes, check_target, guarded, make_plan, report

#: Terminal codes around headings.
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def register(subparsers: Any) -> None:
    """Add the command."""
    plan = subparsers.add_parser("plan", help="show how training fits into a memory limit")
    add_wishes(plan)
    add_sizes(plan)
    plan.add_argument("--save", type=Path, metavar="PATH", help="also write the plan as a file")
    plan.add_argument(
        "--picture", type=Path, metavar="PATH", help="draw the memory over one step, measured beside computed (PNG)"
    )
    plan.set_defaults(handler=guarded(_plan))


def _plan(options: argparse.Namespace) -> int:
    from .describe import figures, text

    for option in ("save", "json", "picture"):
        check_target(f"--{option}", getattr(options, option))
    if options.picture is not None:
        from .picture import check_library

        check_library()
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(options, folder, sizes=dict(options.sizes))
        if options.save is not None:
            plan.save(options.save)
    found = figures(plan.info)
    if options.picture is not None:
        from .picture import draw, measure

        measured = measure(plan)
        draw(plan.info, measured, options.picture)
        found["curve"] = measured.curve
    colour = sys.stdout.isatty()
    report(options, found, text(plan.info, (lambda line: f"{_DIM}{line}{_PLAIN}") if colour else str))
    if options.picture is not None and str(options.json) != "-":
        print(f"\nwritten      {options.picture}")
    return 0
