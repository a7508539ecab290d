"""What can go wrong in the agent, whose fault it is, and the remedy.

::

    AgentError
    ├── SettingsError           the operator: the configuration is wrong; the message names file, key and remedy
    ├── ControlError            the operator: a command does not fit the agent's state (e.g. nothing to go back to)
    ├── StorageError            the machine: the state directory cannot be read or written
    │   └── StorageFullError    the disk is full: nothing was half-written; free space, the agent goes on by itself
    ├── ServingError            the model: a runtime cannot load or run it
    ├── TrainingError           the model, the limit or the samples: no training with these; predictions are untouched
    └── RequestError            the application: an HTTP request that cannot be answered (carries the status code)
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


class AgentError(Exception):
    """Everything that this package raises on purpose."""


class SettingsError(AgentError):
    """The configuration cannot be used. Nothing was started."""


class ControlError(AgentError):
    """A command cannot be carried out in the agent's present state. Nothing was changed."""


class StorageError(AgentError):
    """The state directory cannot be read or written."""


class StorageFullError(StorageError):
    """There is no room on the disk. What was to be written was not written at all."""


class ServingError(AgentError):
    """A runtime cannot load or run a model."""


class TrainingError(AgentError):
    """Training is not possible; `permanent` when trying again with the same model and settings cannot help."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class RequestError(AgentError):
    """An HTTP request is refused; `status` is the answer's status code (RFC 9110)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


_LOOK = "look at the state directory's disk and permissions"
_DAMAGED = "the file is damaged: restore it, or move the state directory away to start afresh"
_DIRECTORY = "set device.state_directory to a directory of the agent's own"
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Translate what disk and SQLite raise, in one place; `what` says what was being done, for the message."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StorageFullError(_full(what)) from error
        remedy = _DAMAGED if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) else _LOOK
        raise StorageError(f"{what} failed: {error}; {remedy}") from error
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(_full(what)) from error
        if isinstance(error, FileExistsError | NotADirectoryError):
            raise StorageError(f"{what} failed: {error.filename} is a file; {_DIRECTORY}") from error
        raise StorageError(f"{what} failed: {error}; {_LOOK}") from error


def _full(what: str) -> str:
    return f"{what} failed: the disk is full; free space or lower learn.store_bytes (nothing was half-written)"
