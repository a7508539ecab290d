"""Damaged blobs by the million against every decoder: only values or `CodecError`, in bounded memory and time. JSON.

    python benchmarks/fuzz.py [--count 1000000] [--processes 1] [--seed 0] [--seconds S] [--save FOLDER]

Blobs of every kind (`tests/support/blobs.py`: integers, deltas, packed files of several formats, patches; 8 bytes to
about 5 KB) are damaged (`tests/support/damage.py`: bit flips, truncation, splices of two, random bytes, and more; the
checksum is right again in 15 of 16), and each is given to every decoder under small `CodecLimits`.

- `failures`: inputs on which a decoder raised anything but `CodecError`, or gave a value beyond its limits.
- `memory`: the hard limit on the process's data (RLIMIT_DATA) is what it has after a warm-up plus twice what
  `CodecLimits.memory_bytes` declares for the largest blob, so a decoder that takes more fails, whatever the input. The
  exact peak is traced on one input in `--trace-every` and on all golden blobs.
- `slowest_ms`: processor time of one decoder, since others use this machine as well; above 50 ms it is taken as the
  fastest of three. `slower_than_50_ms` must be 0.

Exit status 1 if anything of this failed. `--save` writes such inputs to files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.blobs import blobs  # after the path is set
from tests.support.damage import LIMITS, Case, Cases, DamageError, Verdict, judge

#: Milliseconds of one decoder at most, for blobs of 10 KB and less.
SLOW_MS = 50.0
#: Inputs of a part; parts are handed to processes.
PART = 2000
#: What a part reports as the worst, at most.
WORST = 5


def guard() -> None:
    """Limit this process's data to what it has now and twice what the limits declare."""
    lines = Path("/proc/self/status").read_text().splitlines()
    data = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (data + 2 * LIMITS.memory_bytes(LIMITS.blob_bytes), hard))


def unguard() -> None:
    """What the harness itself needs between parts is nobody's fault."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


@cache
def cases_of(seed: int) -> Cases:
    """Made once in a process: encoding takes longer than a thousand cases."""
    return Cases(blobs(seed), seed)


def part(work: tuple[int, int, int, int]) -> dict[str, Any]:
    """Judge some cases; called in a child."""
    seed, first, count, trace_every = work
    cases = cases_of(seed)
    for number in range(first, first + 50):  # tables that are made once, and those of the tracing
        timed(cases[number])
    traced(cases[first])
    guard()
    taken: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    damages: Counter[str] = Counter()
    slow: list[tuple[float, str]] = []
    large: list[tuple[int, str]] = []
    failures: list[tuple[str, str]] = []
    for number in range(first, first + count):
        case = cases[number]
        kinds[case.source.split(",")[0]] += 1
        damages.update(case.damage.split("+"))
        try:
            verdict = timed(case)
            if number % trace_every == 0:
                large.append((traced(case), told(case)))
        except DamageError as error:
            failures.append((str(error), f"{told(case)} {case.blob.hex()}"))
            continue
        taken.update(verdict.taken)
        reasons.update("".join(c for c in reason if not c.isdigit())[:60] for reason in verdict.refused)
        slow.append((1e3 * verdict.seconds, f"{verdict.slowest}, {told(case)}"))
    unguard()
    return {
        "count": count, "taken": taken, "reasons": reasons, "kinds": kinds, "damages": damages,
        "slow": sorted(slow)[-WORST:], "large": sorted(large)[-WORST:], "failures": failures,
        "slower": sum(ms > SLOW_MS for ms, _ in slow),
    }  # fmt: skip


def told(case: Case) -> str:
    """A case in words: how to get it again."""
    return f"case {case.number} ({case.source}; {case.damage}; {len(case.blob)} bytes)"


def timed(case: Case) -> Verdict:
    """The verdict; the fastest of three if it was slow."""
    verdict = judge(case.blob)
    if 1e3 * verdict.seconds > SLOW_MS:
        verdict = min(verdict, judge(case.blob), judge(case.blob), key=lambda found: found.seconds)
    return verdict


def traced(case: Case) -> int:
    """The peak of memory, in bytes."""
    tracemalloc.start()
    try:
        return judge(case.blob).peak
    finally:
        tracemalloc.stop()


def _in_turn(pool: Any, parts: Iterator[Any], processes: int) -> Iterator[dict[str, Any]]:
    waiting = deque(pool.apply_async(part, (work,)) for work in islice(parts, processes + 1))
    while waiting:
        yield waiting.popleft().get()
        waiting.extend(pool.apply_async(part, (work,)) for work in islice(parts, 1))


def main() -> int:
    """Hand out parts, add up, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this many, whatever the count")
    parser.add_argument("--trace-every", type=int, default=100)
    parser.add_argument("--save", type=Path, help="folder for inputs that failed")
    options = parser.parse_args()
    began = time.monotonic()
    parts = (
        (options.seed, first, min(PART, options.count - first), options.trace_every)
        for first in range(0, options.count, PART)
        if time.monotonic() - began < options.seconds
    )
    sums: dict[str, Counter[str]] = {name: Counter() for name in ("taken", "reasons", "kinds", "damages")}
    count = slower = 0
    slow: list[tuple[float, str]] = []
    large: list[tuple[int, str]] = []
    failures: list[tuple[str, str]] = []
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        # apply, not map: parts are drawn when a process is free, so that the time limit is heeded
        for found in _in_turn(pool, parts, options.processes):
            count += found["count"]
            slower += found["slower"]
            for name, total in sums.items():
                total.update(found[name])
            slow, large = sorted(slow + found["slow"])[-WORST:], sorted(large + found["large"])[-WORST:]
            failures += found["failures"]
    declared = LIMITS.memory_bytes(LIMITS.blob_bytes)
    report = {
        "count": count,
        "seconds": round(time.monotonic() - began, 1),
        "failures": len(failures),
        "slower_than_50_ms": slower,
        "slowest_ms": [[round(ms, 2), what] for ms, what in reversed(slow)],
        "memory": {
            "declared_bytes": declared,
            "hard_limit": "twice that, on every input",
            "largest_traced_bytes": [list(item) for item in reversed(large)],
        },
        "accepted": dict(sums["taken"]),
        "by_kind": dict(sums["kinds"]),
        "by_damage": dict(sums["damages"]),
        "reasons": dict(sums["reasons"].most_common(40)),
        "first_failures": [list(item) for item in failures[:10]],
    }
    print(json.dumps(report, indent=2, ensure_ascii=False))
    if options.save and failures:
        options.save.mkdir(parents=True, exist_ok=True)
        for number, (_, what) in enumerate(failures):
            (options.save / f"{number}.sndl").write_bytes(bytes.fromhex(what.rsplit(" ", 1)[1]))
    return int(bool(failures or slower or (large and large[-1][0] > 2 * declared)))


if __name__ == "__main__":
    sys.exit(main())
