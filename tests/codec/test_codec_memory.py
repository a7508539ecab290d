"""Resident memory of whole processes: a small multiple of the largest group, whatever the blob."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sanderling.codec.limits import WORK_BYTES_PER_ELEMENT

#: What numpy and the interpreter may take in passing, bytes.
CONSTANT = 24 << 20
GROUP = 1 << 20

CHILD = """
import resource, sys
from collections.abc import Mapping
import numpy as np
from sanderling.codec import accumulate, iterate_delta
from sanderling.codec.delta import encode_each

action, path, count, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

class Lazy(Mapping):
    def __getitem__(self, name):
        generator = np.random.default_rng(int(name[1:]))
        return generator.standard_normal((rows, 500), np.float32) * generator.random((rows, 1), np.float32)
    def __iter__(self):
        return (f"w{index}" for index in range(count))
    def __len__(self):
        return count

blob = b"" if action == "encode" else open(path, "rb").read()
into = {} if action != "accumulate" else {name: np.ones((rows, 500), np.float32) for name in Lazy()}
warm = np.ones(1 << 16).cumsum()
statm = open("/proc/self/statm").read().split()
before = int(statm[1]) * resource.getpagesize()
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
if action == "encode":
    blob = encode_each(Lazy(), 0.9)
    open(path, "wb").write(blob)
elif action == "iterate":
    for name, tensor in iterate_delta(blob):
        pass
else:
    accumulate(blob, into, 0.5)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(1024 * peak - before)
"""


def peak(action: str, path: Path, count: int, rows: int) -> int:
    """Bytes of resident memory that an action takes on top of what the process had."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, action, str(path), str(count), str(rows)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.system
@pytest.mark.parametrize(("count", "rows"), [(1, 8000), (40, 1000)])
def test_resident_memory_is_that_of_the_largest_group(tmp_path: Path, count: int, rows: int) -> None:
    path = tmp_path / "delta.sndl"
    elements = max(GROUP, rows * 500)
    tensor = 4 * rows * 500
    for action, per_element in (("encode", 64), ("iterate", WORK_BYTES_PER_ELEMENT), ("accumulate", 32)):
        found = peak(action, path, count, rows)
        blob = path.stat().st_size
        assert found < per_element * elements + 2 * tensor + 2 * blob + CONSTANT, (action, found)
    if count > 1:  # a fifth of what all levels would take as 64-bit integers
        assert peak("accumulate", path, count, rows) < 8 * count * rows * 500 // 5 + CONSTANT
    assert np.prod((count, rows)) >= 8000
