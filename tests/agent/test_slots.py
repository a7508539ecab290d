"""Slots on a real disk: resume, verification, switch, and what a kill in between leaves behind."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from sanderling.agent.errors import StorageFullError
from sanderling.agent.slots import DamagedFileError, Slots
from sanderling.codec.release import CHUNK_SIZE, Release, Target, cut

MODEL = random.Random(2).randbytes(CHUNK_SIZE * 4 + 5)
ANCHOR = MODEL[: CHUNK_SIZE * 2] + b"end"  # shares two chunks with the model


def make(version: int, model: bytes = MODEL) -> tuple[Release, str, dict[str, bytes]]:
    first, pieces = cut(model)
    second, more = cut(ANCHOR)
    targets = {"model.onnx": first, "anchor.npz": second}
    release = Release(fleet="birds", model="gait", version=version, created=0.0, targets=targets)
    return release, f"{version:x}".rjust(64, "a"), pieces | more


def install(slots: Slots, version: int) -> None:
    release, digest, pieces = make(version)
    for chunk in slots.stage(release, digest, b"signed"):
        slots.store(chunk, pieces[chunk])
    slots.switch(slots.assemble())


def test_install_and_read_back(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    assert slots.current() is None
    install(slots, 1)
    current = slots.current()
    assert current is not None
    assert (current.version, current.model.read_bytes()) == (1, MODEL)
    assert current.anchor is not None
    assert current.anchor.read_bytes() == ANCHOR
    assert not (tmp_path / "staging").exists()


def test_every_stored_chunk_survives_a_kill(tmp_path: Path) -> None:
    release, digest, pieces = make(1)
    left = list(Slots(tmp_path).stage(release, digest, b"signed"))
    assert left == list(pieces)
    while left:  # a new object each time: as after a kill
        slots = Slots(tmp_path)
        assert list(slots.stage(release, digest, b"signed")) == left
        slots.store(left[0], pieces[left[0]])
        left.pop(0)
    slots = Slots(tmp_path)
    assert slots.stage(release, digest, b"signed") == ()
    assert slots.assemble().model.read_bytes() == MODEL


def test_kill_at_every_step_between_verifying_and_switching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(Slots(tmp_path), 1)
    release, digest, pieces = make(2, MODEL[::-1])
    slots = Slots(tmp_path)
    for chunk in slots.stage(release, digest, b"signed"):
        slots.store(chunk, pieces[chunk])

    class Killed(BaseException):
        pass

    real = os.replace
    for step in range(1, 10):
        calls = 0

        def stop(source: str, target: str, step: int = step) -> None:
            nonlocal calls
            calls += 1
            if calls == step:
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", stop)
        again = Slots(tmp_path)
        try:
            assert again.stage(release, digest, b"signed") == ()
            again.switch(again.assemble())
        except Killed:
            monkeypatch.setattr(os, "replace", real)
            now = Slots(tmp_path).current()
            assert now is not None
            assert now.version == 1
            continue
        break
    assert step > 2  # the renames were really interrupted
    now = Slots(tmp_path).current()
    assert now is not None
    assert (now.version, now.model.read_bytes()) == (2, MODEL[::-1])


def test_file_that_contradicts_the_manifest(tmp_path: Path) -> None:
    target, pieces = cut(MODEL)
    wrong = Target(length=target.length, sha256="0" * 64, chunks=target.chunks)
    release = Release(fleet="birds", model="gait", version=1, created=0.0, targets={"model.onnx": wrong})
    slots = Slots(tmp_path)
    for chunk in slots.stage(release, "b" * 64, b"signed"):
        slots.store(chunk, pieces[chunk])
    with pytest.raises(DamagedFileError, match=r"model\.onnx: SHA-256"):
        slots.assemble()
    slots.discard()
    assert list(tmp_path.iterdir()) == []


def test_another_release_starts_afresh(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    release, digest, pieces = make(1)
    chunk = slots.stage(release, digest, b"signed")[0]
    slots.store(chunk, pieces[chunk])
    other, other_digest, _ = make(2, MODEL[::-1])
    assert len(slots.stage(other, other_digest, b"signed")) == len(make(2, MODEL[::-1])[2])


def test_older_releases_are_kept_and_pruned(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    for version in (1, 2, 3, 4):
        install(slots, version)
    slots.prune(2)
    assert [slot.version for slot in slots.installed()] == [4, 3, 2]
    slots.switch(slots.installed()[1])
    assert slots.current() == slots.installed()[1]


def test_full_disk_is_named_and_keeps_the_present_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(Slots(tmp_path), 1)
    slots = Slots(tmp_path)
    release, digest, pieces = make(2, MODEL[::-1])
    chunk, *_ = slots.stage(release, digest, b"signed")

    def full(_handle: int, _data: bytes, _offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageFullError, match="disk is full"):
            slots.store(chunk, pieces[chunk])
    assert chunk in Slots(tmp_path).stage(release, digest, b"signed")  # not counted as stored
    current = slots.current()
    assert current is not None
    assert current.version == 1
