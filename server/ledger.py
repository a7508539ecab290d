"""What changes deltas, releases and jobs: each function is one step of the accounting, inside the caller's transaction.

The life of a delta, by its columns (`status`, `job`, `merged_into`)::

    received ──► rejected                                      does not fit its base; the reason is kept
        └──────► accepted, NULL, NULL ──► accepted, job, NULL  a merge has begun with it
                     ▲                        │
                     └── superseded or given back ┤  another release came first
                                              ├──► accepted, job, version   merged into that version, for ever
                                              └──► accepted, job, NULL      the job was refused or failed: set aside
    accepted, 0, NULL: set aside because a pushed model has other weights

A delta set aside is not merged again (a fleet must not be stuck on one bad delta), but stays part of its device's model
when that is a teacher. Only `begin_job` sets `job`, only where it is NULL: so no delta is in two merges.
"""

from __future__ import annotations

import json
import time

from sqlite_utils import Database

from .errors import ConflictError
from .store import Row, count, decoded, note


def next_version(db: Database, model: str) -> int:
    """The version that the next release of `model` gets: one more than any there has been."""
    (last,) = db.execute("SELECT max(version) FROM releases WHERE model = ?", [model]).fetchone()
    return int(last or 0) + 1


def add_release(db: Database, release: Row, *, actor: str) -> None:
    """Record a signed release and make it the current one.

    Raises `ConflictError` if its version is no longer the next one. Pending deltas that do not fit its weights are set
    aside.
    """
    model, version = release["model"], release["version"]
    if version != next_version(db, model):
        raise ConflictError(f"version {version} of {model} was released meanwhile", "try again")
    row = {key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in release.items()}
    db.table("releases").insert(row)
    db.execute(
        "INSERT INTO models (name, created, current_version) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET current_version = excluded.current_version",
        [model, release["created"], version],
    )
    fitting = [
        v for v, w in db.execute("SELECT version, weights FROM releases WHERE model = ?", [model])
        if json.loads(w) == release["weights"]
    ]  # fmt: skip
    marks = ",".join("?" * len(fitting))
    aside = db.execute(
        "UPDATE deltas SET job = 0, reason = ? WHERE model = ? AND status = 'accepted' AND job IS NULL"
        f" AND base_version NOT IN ({marks})",
        [f"version {version} has other weights", model, *fitting],
    ).rowcount
    if aside:
        count(db, "deltas_set_aside", aside)
    count(db, "releases")
    note(db, actor, "release", f"{model} {version}", {"source": release["source"], "digest": release["digest"]})


def begin_job(db: Database, model: str, settings: Row, most_deltas: int) -> int | None:
    """Start a merge of everything that is pending for `model`; returns the job's id, or None if nothing is."""
    ids = [
        i
        for (i,) in db.execute(
            "SELECT id FROM deltas WHERE model = ? AND status = 'accepted' AND job IS NULL ORDER BY id LIMIT ?",
            [model, most_deltas],
        )
    ]
    (current,) = db.execute("SELECT current_version FROM models WHERE name = ?", [model]).fetchone()
    if not ids:
        return None
    now = time.time()
    cursor = db.execute(
        "INSERT INTO jobs (kind, model, state, created, started, attempts, from_version, settings, reason)"
        " VALUES ('merge', ?, 'running', ?, ?, 0, ?, ?, '')",
        [model, now, now, current, json.dumps(settings)],
    )
    job = int(cursor.lastrowid or 0)
    db.execute(f"UPDATE deltas SET job = ? WHERE job IS NULL AND id IN ({','.join('?' * len(ids))})", [job, *ids])
    return job


def count_attempt(db: Database, job: int) -> int:
    """One more try of a job; returns how many there have been, this one included."""
    db.execute("UPDATE jobs SET attempts = attempts + 1, started = ? WHERE id = ?", [time.time(), job])
    (attempts,) = db.execute("SELECT attempts FROM jobs WHERE id = ?", [job]).fetchone()
    return int(attempts)


def finish_merged(db: Database, job: int, version: int, result: Row) -> int:
    """The job's deltas are in `version` from now on; returns how many."""
    _end(db, job, "done", "", result, version)
    merged = db.execute(
        "UPDATE deltas SET merged_into = ? WHERE job = ? AND merged_into IS NULL", [version, job]
    ).rowcount
    count(db, "deltas_merged", merged)
    return merged


def finish_aside(db: Database, job: int, state: str, reason: str, result: Row) -> None:
    """The job ends "refused" or "failed"; its deltas are set aside."""
    _end(db, job, state, reason, result, None)
    aside = db.execute("UPDATE deltas SET reason = ? WHERE job = ?", [f"merge {state}: {reason}"[:500], job]).rowcount
    count(db, f"jobs_{state}")
    count(db, "deltas_set_aside", aside)
    note(db, "server", f"merge {state}", f"job {job}", {"reason": reason, "deltas": aside})


def give_back(db: Database, job: int, reason: str) -> None:
    """The job ends "superseded"; its deltas are pending again."""
    _end(db, job, "superseded", reason, {}, None)
    db.execute("UPDATE deltas SET job = NULL WHERE job = ? AND merged_into IS NULL", [job])


def running_jobs(db: Database) -> list[Row]:
    """Jobs that have begun and not ended: at a start, those that a stop interrupted."""
    return decoded(db.execute("SELECT * FROM jobs WHERE state = 'running' ORDER BY id"))


def _end(db: Database, job: int, state: str, reason: str, result: Row, version: int | None) -> None:
    changed = db.execute(
        "UPDATE jobs SET state = ?, reason = ?, result = ?, version = ?, finished = ?"
        " WHERE id = ? AND state = 'running'",
        [state, reason, json.dumps(result), version, time.time(), job],
    ).rowcount
    if changed != 1:
        raise ConflictError(f"job {job} has ended already", "nothing to do: it is counted once")
