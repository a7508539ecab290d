"""Shows the story while it happens: milestones as lines, the devices' streams as bars where there is a terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from .wearer import Wearer


class Screen:
    """The `story.Teller` of the command line; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:>3.0f} of {task.total:.0f} windows"),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def say(self, text: str) -> None:
        """A line with the seconds that have passed."""
        line = Text.assemble((f"{time.monotonic() - self._began:4.0f} s  ", "dim"), text)
        self._console.print(line, soft_wrap=True)

    def progress(self, wearers: list[Wearer]) -> None:
        """Move the bars."""
        if not self._bars:
            self._bars = {w.name: self._progress.add_task(w.name, total=len(w.person.seen), state="") for w in wearers}
            self._progress.start()
        for wearer in wearers:
            state = f"v{wearer.curve[-1][2]}  {100 * wearer.curve[-1][1]:.1f} %" if wearer.curve else ""
            self._progress.update(self._bars[wearer.name], completed=wearer.streamed, state=state)

    def close(self) -> None:
        """Take the bars away."""
        self._progress.stop()
