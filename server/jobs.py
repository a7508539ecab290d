"""Merges from begin to end: decide, start the child, take its result over; again, if anything stopped it.

The life of a job, by its column `state`::

    running ──► done         its model is the next release; its deltas are merged into it, in one transaction
       │  ├───► refused      no candidate was good enough; deltas set aside
       │  ├───► failed       the child failed `merge_attempts` times; deltas set aside
       │  └───► superseded   another release came first; deltas pending again
       └── the server was killed: it finds the row when it starts, and goes on from the result file or from the start

Attempts are counted only when the child fails by itself: a server that is killed often, or a disk that is full or has
lost a file, costs time, not deltas.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from . import ledger
from .errors import ConflictError, MergeError, StorageError
from .merge_settings import DISK_FAILED, JobSettings
from .policy import Situation, due
from .service import Service
from .store import Row

log = logging.getLogger(__name__)

#: Seconds between looks at the clock (deltas that arrive are looked at once), and after a failure.
LOOK, PAUSE = 0.5, 3.0


class Merges:
    """Runs the merges of `service`, one at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        self._directory = service.settings.data / "jobs"
        self._arrived = asyncio.Event()

    def look(self) -> None:
        """Something was committed: there may be enough for a merge."""
        self._arrived.set()

    async def run(self) -> None:
        """Finish what was begun before, then merge whenever it is due, until cancelled."""
        await asyncio.to_thread(self._sweep)
        complaint = ""
        while True:
            try:
                for job in self._service.store.rows("SELECT * FROM jobs WHERE state = 'running' ORDER BY id"):
                    await self._complete(job)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), LOOK)
                self._arrived.clear()
                for row in self._service.store.models():
                    if self._due(row):
                        await asyncio.to_thread(self._begin, row["name"])
                complaint = ""
            except (StorageError, OSError) as error:
                if str(error) != complaint:
                    log.error("merging waits for the disk: %s", error)
                complaint = str(error)
                await asyncio.sleep(PAUSE)

    def _due(self, model: Row) -> bool:
        store, name = self._service.store, model["name"]
        pending = store.pending(name)
        (past,) = store.rows(
            "SELECT max(created) AS released, coalesce(sum(source = 'merge'), 0) AS merged FROM releases"
            " WHERE model = ?",
            [name],
        )
        situation = Situation(
            now=time.time(),
            devices=pending["devices"],
            oldest=pending["oldest"],
            released=past["released"],
            merged_releases=past["merged"],
        )
        return due(situation, self._settings.merge)

    def _begin(self, model: str) -> None:
        settings = JobSettings(merge=self._settings.merge, distill=self._settings.distill, limits=self._settings.limits)
        with self._service.store.writing() as db:
            job = ledger.begin_job(
                db, model, msgspec.to_builtins(settings), self._settings.limits.most_deltas_per_merge
            )
        self._service.told("job", str(job))

    async def _complete(self, job: Row) -> None:
        """Bring a running job to its end."""
        out = self._directory / str(job["id"])
        log.info("merge %d of %s from version %d", job["id"], job["model"], job["from_version"])
        try:
            result = await asyncio.to_thread(_read_result, out)
            if result is None:
                await self._compute(job["id"], out)
                result = await asyncio.to_thread(_read_result, out)
            if result is None:
                raise MergeError("the merge left no result", "see the server's log")
            async with self._service.releasing:
                await asyncio.to_thread(self._take_over, job, result, out)
        except MergeError as error:
            await self._failed(job, error)
        if await asyncio.to_thread(self._ended, job["id"]):
            await asyncio.to_thread(shutil.rmtree, out, True)
        self._service.told("job", str(job["id"]))

    def _sweep(self) -> None:
        """Remove results of jobs that ended just before a stop."""
        for out in self._directory.glob("*"):
            if out.name.isdigit() and self._ended(int(out.name)):
                shutil.rmtree(out, ignore_errors=True)

    def _ended(self, job: int) -> bool:
        return not self._service.store.rows("SELECT 1 FROM jobs WHERE id = ? AND state = 'running'", [job])

    async def _compute(self, job: int, out: Path) -> None:
        """Run the child. Raises `MergeError` (or `StorageError`: not its fault) with the last thing it said."""
        out.mkdir(parents=True, exist_ok=True)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sanderling.server.merge", "--parent", str(os.getpid()),
            "--data", str(self._settings.data), "--job", str(job), "--out", str(out),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            _, said = await asyncio.wait_for(child.communicate(), self._settings.limits.merge_seconds)
        except TimeoutError as error:
            seconds = self._settings.limits.merge_seconds
            raise MergeError(f"took over {seconds} s", "raise limits.merge_seconds, or train fewer epochs") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode != 0:
            lines = said.decode(errors="replace").strip().splitlines()
            why = lines[-1][:1000] if lines else f"ended with status {child.returncode}"
            raise StorageError(why) if child.returncode == DISK_FAILED else MergeError(why)

    async def _failed(self, job: Row, error: MergeError) -> None:
        def record() -> int:
            with self._service.store.writing() as db:
                attempts = ledger.count_attempt(db, job["id"])
                if attempts >= self._settings.limits.merge_attempts:
                    ledger.finish_aside(db, job["id"], "failed", str(error), {})
            return attempts

        attempts = await asyncio.to_thread(record)
        log.error("merge %d, attempt %d: %s", job["id"], attempts, error)
        if attempts < self._settings.limits.merge_attempts:
            await asyncio.sleep(PAUSE)

    def _take_over(self, job: Row, result: dict[str, Any], out: Path) -> None:
        """Make the result the next release, or say why not: one transaction either way."""
        service, store = self._service, self._service.store
        current = store.current(job["model"])
        if current is None or current["version"] != job["from_version"]:
            with store.writing() as db:
                ledger.give_back(db, job["id"], "another release came first")
            return
        if result["outcome"] == "refused":
            with store.writing() as db:
                ledger.finish_aside(db, job["id"], "refused", result["reason"], result["lineage"])
            log.warning("merge %d refused: %s", job["id"], result["reason"])
            return
        model = (out / "model.onnx").read_bytes()
        if hashlib.sha256(model).hexdigest() != result["sha256"]:
            shutil.rmtree(out)
            raise MergeError("the merged model on the disk is damaged", "it is computed again; check the disk")
        service.files.add(model)
        kept = {name: row for name, row in current["files"].items() if name != "model.onnx"}
        files = {"model.onnx": model, **{name: service.files.read(row["sha256"]) for name, row in kept.items()}}
        try:
            with store.writing() as db:
                version = ledger.next_version(db, job["model"])
                release = service.signer.release(
                    model=job["model"], version=version, files=files, weights=current["weights"],
                    labels=current["labels"], notes=_notes(result), source="merge", metrics=result["metrics"],
                    lineage=result["lineage"],
                )  # fmt: skip
                ledger.add_release(db, release, actor="server")
                merged = ledger.finish_merged(db, job["id"], version, result["lineage"])
        except ConflictError as error:
            raise MergeError(str(error)) from error
        log.info("released %s version %d from %d deltas", job["model"], version, merged)
        service.told("release", job["model"])


def _read_result(out: Path) -> dict[str, Any] | None:
    """The child's result, or None if it did not get that far."""
    try:
        result: dict[str, Any] = json.loads((out / "result.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return result


def _notes(result: dict[str, Any]) -> dict[str, str | int | float]:
    """What people may read on a device: the figures, flat."""
    notes = {key: value for key, value in result["metrics"].items() if isinstance(value, str | int | float)}
    lineage = result["lineage"]
    return {
        **notes,
        "devices": len(lineage["devices"]),
        "deltas": lineage["deltas"],
        "from_version": lineage["from_version"],
    }
