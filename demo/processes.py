"""Keeps the demo's processes running, as systemd would: whatever ends without being told to is started again.

That is what makes `kill -9` of any of them during the demo a thing to try.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

#: Seconds before a process that ended is started again.
RESTART_AFTER = 0.5


@dataclass
class _Kept:
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes]
    restarts: int = 0


@dataclass
class Processes:
    """Named processes with a log file and a `<name>.pid` file each, restarted when they end; a context manager.

    `told(text)` is called for each restart.
    """

    directory: Path
    told: Callable[[str], None]
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Processes:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._watch, name="keep running", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, command: list[str]) -> None:
        """Start a process and keep it running."""
        log = self.directory / f"{name}.log"
        with self._lock:
            self._kept[name] = _Kept(command, log, self._spawn(name, command, log))

    def restarts(self) -> dict[str, int]:
        """How often each process had to be started again."""
        with self._lock:
            return {name: kept.restarts for name, kept in self._kept.items()}

    def log_of(self, name: str) -> Path:
        """Where a process writes what it has to say."""
        return self._kept[name].log

    def stop(self) -> None:
        """End all, agents first and the broker last, each by SIGTERM and after ten seconds by SIGKILL."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for kept in reversed(self._kept.values()):
            kept.process.terminate()
        for kept in reversed(self._kept.values()):
            try:
                kept.process.wait(10)
            except subprocess.TimeoutExpired:
                kept.process.kill()
                kept.process.wait()

    def _spawn(self, name: str, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        (self.directory / f"{name}.pid").write_text(f"{process.pid}\n")
        return process

    def _watch(self) -> None:
        while not self._stopping.wait(0.1):
            with self._lock:
                ended = [(name, kept) for name, kept in self._kept.items() if kept.process.poll() is not None]
            for name, kept in ended:
                self.told(f"{name} ended ({_how(kept.process.returncode)}): started again")
                time.sleep(RESTART_AFTER)
                with self._lock:
                    kept.restarts += 1
                    kept.process = self._spawn(name, kept.command, kept.log)


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"status {code}"
