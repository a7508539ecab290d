"""The wheel that users install: built from the sdist, whole, and with nothing generic in site-packages."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from sanderling.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
PACKAGES = ("agent", "engine", "server", "codec", "host", "demo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist as an index would get it."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*build, "--sdist", str(ROOT)], check=True, capture_output=True)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        # by attribute, since the argument is newer than the Python 3.11 of Debian 12
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(out / "sdist")
    subprocess.run([*build, "--wheel", str(next((out / "sdist").iterdir()))], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_from_sdist_has_every_module_and_nothing_generic(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"sanderling/{path.relative_to(ROOT)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert len(expected) > 50
    assert expected <= names
    assert {"sanderling/__init__.py", "sanderling/cli.py", "sanderling/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sanderling"}
    assert any(name.startswith("sanderling/server/web/static/") and name.endswith(".html") for name in names)


def test_bare_names_are_never_imported() -> None:
    code = (
        "import sys, sanderling.cli, sanderling.agent, sanderling.engine, sanderling.server, sanderling.codec\n"
        f"print([name for name in {PACKAGES!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_command_line_is_light_and_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; from sanderling.cli import build_parser\n"
        "for command in (None, 'agent', 'server', 'model', 'fleet', 'train', 'plan', 'pack', 'unpack', 'demo'):\n"
        "    build_parser(command)\n"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'starlette', 'sqlite_utils', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_unknown_command_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fly"])
    assert ended.value.code == 2
    assert "agent" in capsys.readouterr().err
