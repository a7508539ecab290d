"""The golden blobs: what was written once is read for ever, and is still written byte for byte."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

GENERATOR = runpy.run_path(str(Path(__file__).parent.parent / "vectors" / "generate.py"))
BLOBS: dict[str, bytes] = dict(GENERATOR["blobs"]())


@pytest.mark.parametrize("name", BLOBS)
def test_the_encoder_still_writes_these_bytes(name: str) -> None:
    assert (GENERATOR["HERE"] / name).read_bytes() == BLOBS[name]


def test_no_blob_is_left_unchecked() -> None:
    assert {path.name for path in GENERATOR["HERE"].glob("*.sndl")} == {*BLOBS, "file-v2.sndl", "patch-v2.sndl"}


def test_the_packed_file_and_the_patch_still_give_their_files() -> None:
    GENERATOR["check_packed"]()
