"""Durable writes: the old file or the new one, also when the disk refuses or the process is killed in the middle."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sanderling.host.files import open_durably, point_durably, write_durably

# A file size limit makes write(2) fail in the middle as a full disk does, without needing a disk to fill.
REFUSED = """
import resource, signal, sys
from pathlib import Path
from sanderling.host.files import write_durably
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_durably(Path(sys.argv[1]), b"new" * 10000)
except OSError as error:
    print(error.strerror)
"""

FOREVER = """
import itertools, sys
from pathlib import Path
from sanderling.host.files import write_durably
for count in itertools.count():
    write_durably(Path(sys.argv[1]), str(count % 10).encode() * 200_000)
"""


def test_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_durably(path, b"old", mode=0o600)
    write_durably(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_refused_write_keeps_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", REFUSED, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "File too large"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_writer_never_leaves_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for delay in (0.2, 0.25, 0.31, 0.4):
        writer = subprocess.Popen([sys.executable, "-c", FOREVER, str(path)])
        time.sleep(delay)
        writer.kill()
        writer.wait()
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 200_000
            assert len(set(content)) == 1


SLOW = """
import sys, time
from pathlib import Path
from sanderling.host.files import open_durably
with open_durably(Path(sys.argv[1])) as file:
    file.write(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    path = tmp_path / "f"
    writers = [subprocess.Popen([sys.executable, "-c", SLOW, str(path)], stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    assert len(list(tmp_path.iterdir())) == 2
    writers[0].kill()
    writers[0].communicate()
    for count in (2, 2):  # the new file, and what the other writer holds
        with open_durably(path) as file:
            file.write(b"new")
        assert len(list(tmp_path.iterdir())) == count
    writers[1].kill()
    writers[1].communicate()
    with open_durably(path) as file:
        file.write(b"newer")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"newer"


def test_link_moves_in_one_step(tmp_path: Path) -> None:
    link = tmp_path / "current"
    point_durably(link, "a")
    point_durably(link, "b")
    assert str(link.readlink()) == "b"
    assert list(tmp_path.iterdir()) == [link]


CHILD = """
import sys, time
from sanderling.host.children import die_with_parent
die_with_parent(int(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_child_dies_with_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while _alive(child):
        if time.monotonic() > deadline:
            pytest.fail("the child outlived its parent")
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
