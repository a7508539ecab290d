"""Keeps the inference worker: starts it when somebody knocks, lets it go when idle, restarts it after a crash.

The listening sockets live here, in the supervisor, and are handed to each worker. While none runs, a connection waits
in the backlog; that the socket becomes readable is the knock. So no prediction is refused because a worker is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from . import pipe
from .backoff import Backoff
from .children import command
from .config import Serve
from .errors import SettingsError
from .limits import LIMITS

log = logging.getLogger(__name__)
#: Seconds of life after which a worker's crash is no longer counted together with the one before.
HEALTHY_SECONDS = 60.0


def listen(settings: Serve) -> list[socket.socket]:
    """The listening sockets; raises `SettingsError` naming the key to change."""
    path = Path(settings.socket)
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            path.unlink()  # left by an agent that was killed; a running one holds the state directory's lock
        local.bind(str(path))
        path.chmod(0o660)
        local.listen(1024)
    except OSError as error:
        local.close()
        raise SettingsError(f"serve.socket: cannot listen on {path}: {error.strerror}; choose another path") from error
    if not settings.tcp_port:
        return [local]
    loopback = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        loopback.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        loopback.bind(("127.0.0.1", settings.tcp_port))
        loopback.listen(1024)
    except OSError as error:
        loopback.close()
        local.close()
        taken = "is taken by another program" if error.errno == errno.EADDRINUSE else f"failed: {error.strerror}"
        raise SettingsError(f"serve.tcp_port: port {settings.tcp_port} {taken}; choose another or 0") from error
    return [local, loopback]


class Keeper:
    """One worker at most; `on_message` gets what it says, `on_crash(reason, in a row)` how it ended."""

    def __init__(
        self,
        sockets: list[socket.socket],
        start: pipe.Start,
        on_message: Callable[[pipe.FromWorker], None],
        on_crash: Callable[[str, int], None],
    ) -> None:
        self._sockets, self._start = sockets, start
        self._on_message, self._on_crash = on_message, on_crash
        self._model = pipe.Serve("", 0, "none")
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._knock = asyncio.Event()
        self._backoff = Backoff(LIMITS.first_backoff, LIMITS.longest_backoff)

    @property
    def pid(self) -> int:
        """The worker's process id, 0 when none runs."""
        return self._process.pid if self._process is not None else 0

    def serve(self, model: pipe.Serve) -> None:
        """Answer with this model from now on."""
        if model != self._model:
            self._model = model
            self.tell(model)

    def tell(self, message: pipe.ToWorker) -> None:
        """A line to the worker, if one runs."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(ConnectionError, RuntimeError):  # it is just ending; the next one is told at start
                self._process.stdin.write(pipe.line(message))

    def start(self) -> None:
        """Begin to wait for connections."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="keeper")

    async def stop(self) -> None:
        """End the worker (it finishes what it is answering) and close the sockets."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for listener in self._sockets:
            listener.close()

    async def _run(self) -> None:
        while True:
            await self._someone_knocks()
            born = time.monotonic()
            status = await self._live()
            if status == 0:  # idle, or asked to end
                self._backoff.reset()
                continue
            if time.monotonic() - born > HEALTHY_SECONDS:
                self._backoff.reset()
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            wait = self._backoff.next()
            self._on_crash(how, self._backoff.failures)
            await asyncio.sleep(wait)

    async def _someone_knocks(self) -> None:
        loop = asyncio.get_running_loop()
        self._knock.clear()
        for listener in self._sockets:
            loop.add_reader(listener.fileno(), self._knock.set)
        try:
            await self._knock.wait()
        finally:
            for listener in self._sockets:
                loop.remove_reader(listener.fileno())

    async def _live(self) -> int:
        """One worker's life; its exit status."""
        handles = [listener.fileno() for listener in self._sockets]
        words = ["--parent", str(os.getpid()), "--listen", ",".join(map(str, handles))]
        process = self._process = await asyncio.create_subprocess_exec(
            *command("worker"), *words, stdin=-1, stdout=-1, pass_fds=handles, limit=LIMITS.child_output
        )
        try:
            self.tell(self._start)
            self.tell(self._model)
            assert process.stdout is not None
            while text := await process.stdout.readline():
                try:
                    self._on_message(pipe.read_from_worker(text))
                except msgspec.DecodeError:
                    log.warning("the worker said something unknown: %r", text[:200])
            return await process.wait()
        finally:
            await self._end(process)
            self._process = None

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(8):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
