"""The same bytes under the oldest numpy that is supported and under the one installed here."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLDEST = "1.26.4"


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the oldest numpy."""
    if sys.version_info >= (3, 13):
        pytest.skip(f"numpy {OLDEST} has no wheel for this Python")
    folder = tmp_path_factory.mktemp("oldest")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    done = subprocess.run([*pip, f"numpy=={OLDEST}", "msgspec"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"numpy {OLDEST} cannot be installed here: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return python


def run(python: str | Path, script: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(python), str(ROOT / script), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.system
def test_golden_blobs_under_the_oldest_numpy(oldest: Path) -> None:
    run(oldest, "tests/vectors/generate.py", "--verify")


@pytest.mark.system
def test_larger_blobs_are_the_same_under_both(oldest: Path) -> None:
    here, there = run(sys.executable, "tests/codec/digests.py"), run(oldest, "tests/codec/digests.py")
    assert len(here.splitlines()) == 33
    assert here == there
