"""Commands to a running agent over a Unix socket in its state directory: one JSON line in, one out.

Only the owner of the state directory can reach it. While no agent runs, the command line takes the lock and does the
work itself, so that both ways end in the same code.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from .errors import AgentError, ControlError, SettingsError, storage_errors
from .layout import Layout
from .limits import LIMITS


class Command(msgspec.Struct, frozen=True):
    """What is asked. `release`: go back a release even when a personal model could be withdrawn."""

    do: Literal["status", "rollback"]
    release: bool = False


class Reply(msgspec.Struct, frozen=True):
    """The answer as JSON, or what was wrong."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""


@contextmanager
def only_one(layout: Layout) -> Iterator[bool]:
    """Hold the state directory's lock; False when another agent has it."""
    with storage_errors(f"locking {layout.lock}"):
        handle = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


class ControlServer:
    """Answers commands inside the running agent."""

    def __init__(self, path: Path, act: Callable[[Command], Awaitable[bytes]]) -> None:
        self._path, self._act = path, act
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen; raises `SettingsError` when the path cannot be a socket."""
        self._path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=4096)
        except OSError as error:
            raise SettingsError(
                f"device.state_directory: cannot listen on {self._path}: {error}; choose a shorter or writable path"
            ) from error
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, ValueError):
            async with asyncio.timeout(30):
                try:
                    command = msgspec.json.decode(await reader.readline(), type=Command)
                    reply = Reply(msgspec.Raw(await self._act(command)))
                except (AgentError, msgspec.DecodeError) as error:
                    reply = Reply(error=str(error))
                writer.write(msgspec.json.encode(reply) + b"\n")
                await writer.drain()
        writer.close()


def ask(path: Path, command: Command) -> bytes:
    """A running agent's answer to a command, as JSON; raises `ControlError`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30)
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(command) + b"\n")
            with connection.makefile("rb") as file:
                reply = msgspec.json.decode(file.readline(LIMITS.child_output), type=Reply)
    except (OSError, msgspec.DecodeError) as error:
        remedy = "start it, or run this as its user"
        raise ControlError(f"the agent does not answer at {path}: {error}; {remedy}") from error
    if reply.error:
        raise ControlError(reply.error)
    return bytes(reply.result)
