"""`sanderling train` and `sanderling plan`: the commands of this package, each in a module of its own."""

from __future__ import annotations

from typing import Any

from . import cli_plan, cli_train


def register(subparsers: Any) -> None:
    """Add the commands of this package."""
    cli_train.register(subparsers)
    cli_plan.register(subparsers)
