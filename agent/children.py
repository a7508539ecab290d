"""Short-lived children of the supervisor: one JSON job in, one JSON result out, all bounded.

A child is an ordinary process of this interpreter (`python -P -m module`), so what it imports is given back when it
ends and what it does cannot take the supervisor down. It dies with the supervisor. How it ended is data, not an
exception: the caller decides what a crash means.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import TypeVar

import msgspec

from sanderling.host.children import die_with_parent

from .errors import AgentError, TrainingError
from .limits import LIMITS

J = TypeVar("J", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)


class Failure(msgspec.Struct, frozen=True):
    """Why a child has no result. `permanent`: the same job would fail again."""

    reason: str
    permanent: bool = False


class _Answer(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw(b"")
    failure: Failure | None = None


@dataclass(slots=True)
class Running:
    """A child under way: its process id, for its figures and for ending it."""

    pid: int = 0


def command(module: str) -> list[str]:
    """The command line that runs a module of this package. `-P`: the working directory is no place for imports."""
    return [sys.executable, "-P", "-m", f"sanderling.agent.{module}"]


async def run(
    module: str, job: msgspec.Struct, kind: type[R], seconds: float, running: Running | None = None
) -> R | Failure:
    """The result of `python -m sanderling.agent.<module>` for a job, or why there is none."""
    process = await asyncio.create_subprocess_exec(
        *command(module), str(os.getpid()), stdin=-1, stdout=-1, stderr=-1, limit=LIMITS.child_output
    )
    if running is not None:
        running.pid = process.pid
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate(msgspec.json.encode(job))
    except TimeoutError:
        return Failure(f"{module} took longer than {seconds:.0f} s and was ended")
    finally:
        if running is not None:
            running.pid = 0
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return _read(module, kind, process.returncode or 0, output, errors[-LIMITS.child_errors :])


def _read(module: str, kind: type[R], status: int, output: bytes, errors: bytes) -> R | Failure:
    if status < 0:
        return Failure(f"{module} was killed by {Signals(-status).name}")
    try:
        answer = msgspec.json.decode(output, type=_Answer)
        if answer.failure is not None:
            return answer.failure
        if bytes(answer.result):
            return msgspec.json.decode(answer.result, type=kind)
    except msgspec.DecodeError:
        pass  # it ended before it could answer; what it wrote as an error is the best there is
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return Failure(f"{module} ended with status {status}: {lines[-1] if lines else 'no message'}"[:2000])


def receive(kind: type[J]) -> J:
    """In a child, first thing: tie its life to the parent named on the command line, and read the job."""
    die_with_parent(int(sys.argv[1]))
    return msgspec.json.decode(sys.stdin.buffer.read(), type=kind)


def answer(result: msgspec.Struct | Failure) -> None:
    """In a child, last thing: give the result."""
    key = "failure" if isinstance(result, Failure) else "result"
    sys.stdout.buffer.write(msgspec.json.encode({key: result}))
    sys.stdout.buffer.flush()


def yield_to_others() -> None:
    """For children that work in the background: low priority, and the first to go when memory runs out."""
    os.nice(10)
    with contextlib.suppress(OSError):  # a kernel without it, or a container that forbids it
        Path("/proc/self/oom_score_adj").write_text("1000")


def work(kind: type[J], function: Callable[[J], msgspec.Struct]) -> None:
    """A child's whole life: read the job, do it, answer with the result or with why there is none."""
    job = receive(kind)
    try:
        answer(function(job))
    except TrainingError as error:
        answer(Failure(str(error), error.permanent))
    except AgentError as error:
        answer(Failure(str(error)))
    except MemoryError:
        answer(Failure("the memory limit was reached; raise learn.memory_limit or lower learn.batch"))


def memory_of(pid: int) -> int:
    """Resident bytes of a process, 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS:")), 0)
