"""One SQLite connection as the agent wants it: durable, waiting for its neighbours, and with its own errors.

Several processes write the same file (supervisor, worker, trainer), so transactions begin with the write lock in hand
(`BEGIN IMMEDIATE`) and wait for it; readers never wait (write-ahead log). `durable` says whether a commit must survive
a power cut (outbox) or only a killed process (samples).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import StorageError, storage_errors

#: Seconds that a writer waits for another one.
PATIENCE = 20.0


class Database:
    """A connection with a schema. `migrations[n]` takes a file from schema version n to n + 1 (PRAGMA user_version)."""

    def __init__(self, path: Path, migrations: tuple[str, ...], *, durable: bool) -> None:
        self.path = path
        with storage_errors(f"opening {path}"):
            self._connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, cached_statements=64)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._connection.execute("PRAGMA cache_size=-512")  # KiB: the supervisor's memory is a headline figure
            self._connection.execute("PRAGMA journal_size_limit=1048576")
        self._migrate(migrations)

    def _migrate(self, migrations: tuple[str, ...]) -> None:
        if self._version() == len(migrations):
            return
        with self.transaction(f"preparing {self.path}"):
            found = self._version()
            if found > len(migrations):
                raise StorageError(
                    f"{self.path} was written by a newer agent (schema {found}, this one knows {len(migrations)}); "
                    "install that agent again, or move the state directory away to start afresh"
                )
            for script in migrations[found:]:
                for statement in script.split(";\n"):
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version={len(migrations)}")

    def _version(self) -> int:
        with storage_errors(f"reading {self.path}"):
            return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def transaction(self, what: str) -> Iterator[None]:
        """All or nothing; `what` names the undertaking in errors. Inside another transaction it joins that one."""
        if self._connection.in_transaction:
            yield
            return
        with storage_errors(what):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def run(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Execute one statement; its own transaction unless inside `transaction`."""
        with storage_errors(f"writing {self.path.name}"):
            return self._connection.execute(sql, values)

    def rows(self, sql: str, *values: Any) -> list[Any]:
        """All rows of a query."""
        with storage_errors(f"reading {self.path.name}"):
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> Any:
        """The first row of a query, or None."""
        with storage_errors(f"reading {self.path.name}"):
            return self._connection.execute(sql, values).fetchone()

    def close(self) -> None:
        """Close; the file stays as it is."""
        self._connection.close()
