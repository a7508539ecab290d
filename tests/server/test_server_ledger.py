"""The accounting of deltas: whatever happens in whatever order, none is merged twice and none disappears."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.codec import encode_delta
from sanderling.server import housekeeping, ledger
from sanderling.server.errors import ConflictError, StorageError
from sanderling.server.intake import Intake, Received
from sanderling.server.limits import Limits
from sanderling.server.store import Store
from tests.support.servers import delta_message
from tests.support.web import add_release, make_service

BLOB = encode_delta({"w": np.array([0.5, -0.25, 0.0], np.float32)})[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["receive", "begin", "merge", "refuse", "give back", "push", "clean"]), max_size=25))
def test_each_delta_is_in_one_place(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        service = make_service(Path(directory))
        version = add_release(service, weights={"w": [3]})
        intake = Intake(service.store, Limits())
        sent = 0
        merged_before: dict[int, int] = {}
        running: int | None = None
        for step in steps:
            if step == "receive":
                sent += 1
                payload = delta_message(BLOB, base=version, sequence=sent)
                intake.commit([Received("d1", "delta", payload), Received("d1", "delta", payload)])
            elif step == "push":
                version = add_release(service, weights={"w": [3]})
            elif step == "clean":
                housekeeping.clean(service.store, Limits(largest_staleness=1), 0.0)
            elif step == "begin" and running is None:
                with service.store.writing() as db:
                    running = ledger.begin_job(db, "wrist", {}, 100)
            elif running is not None and step in ("merge", "refuse", "give back"):
                if step == "merge":
                    version = add_release(service, weights={"w": [3]}, source="merge")
                with service.store.writing() as db:
                    if step == "merge":
                        ledger.finish_merged(db, running, version, {})
                    elif step == "refuse":
                        ledger.finish_aside(db, running, "refused", "worse", {})
                    else:
                        ledger.give_back(db, running, "another came first")
                running = None
            rows = service.store.deltas(limit=1000)
            assert len(rows) == sent
            merged = {row["id"]: row["merged_into"] for row in rows if row["merged_into"] is not None}
            assert merged.items() >= merged_before.items(), "a merged delta stays merged into what it was merged into"
            merged_before = merged
            assert all(row["job"] for row in rows if row["merged_into"])
        service.close()


def test_a_job_ends_once(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    add_release(service, weights={"w": [3]})
    Intake(service.store, Limits()).commit([Received("d1", "delta", delta_message(BLOB))])
    with service.store.writing() as db:
        job = ledger.begin_job(db, "wrist", {}, 100)
        assert job is not None
        assert ledger.begin_job(db, "wrist", {}, 100) is None
    version = add_release(service, weights={"w": [3]}, source="merge")
    with service.store.writing() as db:
        assert ledger.finish_merged(db, job, version, {}) == 1
    with pytest.raises(ConflictError), service.store.writing() as db:
        ledger.finish_merged(db, job, version, {})
    with pytest.raises(ConflictError), service.store.writing() as db:
        ledger.give_back(db, job, "late")
    assert service.store.deltas()[0]["merged_into"] == version
    service.close()


def test_versions_only_grow(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    add_release(service, weights={"w": [3]})
    release = dict(service.store.release("wrist", 1))
    with pytest.raises(ConflictError), service.store.writing() as db:
        ledger.add_release(db, release, actor="test")
    assert service.store.models()[0]["current_version"] == 1
    service.close()


def test_a_transaction_is_whole_or_absent(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    with pytest.raises(RuntimeError), store.writing() as db:
        db.execute("INSERT INTO counters (name, value) VALUES ('x', 1)")
        raise RuntimeError
    assert store.counters() == {}
    store.close()


def test_a_newer_schema_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    Store(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match="schema 99"):
        Store(tmp_path / "db")
    (tmp_path / "broken").write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="backup"):
        Store(tmp_path / "broken")
