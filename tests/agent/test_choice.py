"""Which model answers, and going back, on a real state directory without any process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sanderling.agent.choice import Choice
from sanderling.agent.config import parse
from sanderling.agent.errors import ControlError
from sanderling.agent.gate import Evaluation, Score
from sanderling.agent.layout import Layout
from sanderling.agent.ledger import Ledger
from sanderling.codec.release import Release, cut

EVALUATION = Evaluation(Score(0.5, 1.0, 10), Score(0.9, 0.2, 10))


class Device:
    """A state directory, opened anew as often as wanted (as after a kill)."""

    def __init__(self, root: Path, policy: str) -> None:
        self.layout = Layout(root)
        self.layout.create()
        self.settings = parse(
            f"""
            [device]
            name = "d1"
            fleet = "birds"
            [release]
            trusted_keys = ["{"ab" * 32}"]
            [model]
            name = "gait"
            [serve]
            policy = "{policy}"
            """.encode()
        )
        self.ledger = Ledger(self.layout.database)

    def open(self) -> Choice:
        self.ledger.close()
        self.ledger = Ledger(self.layout.database)
        return Choice(self.settings, self.layout, self.ledger)

    def install(self, choice: Choice, version: int) -> None:
        data = bytes([version]) * 100
        target, pieces = cut(data)
        release = Release(fleet="birds", model="gait", version=version, created=0.0, targets={"model.onnx": target})
        for chunk in choice.slots.stage(release, f"{version}" * 64, b"signed"):
            choice.slots.store(chunk, pieces[chunk])
        slot = choice.slots.assemble()
        choice.slots.switch(slot)
        choice.note_installed(slot)

    def learn(self, choice: Choice, version: int, file: str, adopted: bool) -> None:
        for suffix in (".onnx", ".weights"):
            (self.layout.personal / f"{file}{suffix}").write_bytes(b"model")
        choice.versions.record(version, f"{version}" * 64, file, adopted, EVALUATION)

    def events(self) -> list[tuple[str, int]]:
        rows: list[Any] = self.ledger.rows("SELECT base_version, payload FROM outbox WHERE kind = 'event'")
        return [(str(payload), version) for version, payload in rows]


@pytest.fixture
def device(tmp_path: Path) -> Any:
    device = Device(tmp_path, "best")
    yield device
    device.ledger.close()


def test_nothing_then_fleet_then_personal_then_a_new_base(device: Device) -> None:
    choice = device.open()
    assert choice.serving().which == "none"
    device.install(choice, 1)
    assert (choice.serving().version, choice.serving().which) == (1, "fleet")
    device.learn(choice, 1, "not-good-enough", adopted=False)
    assert choice.serving().which == "fleet"
    device.learn(choice, 1, "good", adopted=True)
    device.learn(choice, 1, "later-but-not-good-enough", adopted=False)
    assert choice.serving().path.endswith("/good.onnx")
    device.install(choice, 2)
    assert (choice.serving().version, choice.serving().which) == (2, "fleet")


@pytest.mark.parametrize(("policy", "which"), [("fleet", "fleet"), ("personal", "personal"), ("best", "fleet")])
def test_policy_decides(tmp_path: Path, policy: str, which: str) -> None:
    device = Device(tmp_path, policy)
    choice = device.open()
    device.install(choice, 1)
    device.learn(choice, 1, "not-adopted", adopted=False)
    assert choice.serving().which == which
    device.ledger.close()


def test_personal_models_come_back_one_by_one(device: Device) -> None:
    choice = device.open()
    device.install(choice, 1)
    for file in ("first", "second"):
        device.learn(choice, 1, file, adopted=True)
    assert "/second" in choice.serving().path
    choice.withdraw_personal("a test")
    assert "/first" in device.open().serving().path
    device.open().withdraw_personal("a test")
    choice = device.open()
    assert choice.serving().which == "fleet"
    with pytest.raises(ControlError, match="--release"):
        choice.withdraw_personal("a test")


def test_release_comes_back_and_the_bad_one_stays_away(device: Device) -> None:
    choice = device.open()
    device.install(choice, 1)
    with pytest.raises(ControlError, match="no older release"):
        choice.withdraw_release("a test")
    device.install(choice, 2)
    assert choice.withdraw_release("a test") == "went back from version 2 to 1"
    choice = device.open()
    assert choice.serving().version == 1
    assert device.ledger.refused() == {"2" * 64}
    assert len(device.events()) == 3  # two installations and going back; the return is no installation


def test_rollback_interrupted_before_the_switch_is_finished_at_the_next_start(device: Device) -> None:
    choice = device.open()
    device.install(choice, 1)
    device.install(choice, 2)
    device.ledger.refuse("2" * 64, 2, "decided, then killed")
    assert device.open().serving().version == 1


def test_installation_is_reported_once_wherever_the_kill_fell(device: Device) -> None:
    choice = device.open()
    device.install(choice, 1)
    device.ledger.run("UPDATE facts SET value = '' WHERE name = 'installed'")  # as if killed after the switch
    device.ledger.run("DELETE FROM outbox")
    device.open()
    device.open()
    assert len(device.events()) == 1


def test_sweep_keeps_what_is_in_use(device: Device) -> None:
    choice = device.open()
    for version in range(1, 7):
        device.install(choice, version)
    device.learn(choice, 6, "in-use", adopted=True)
    for number in range(8):
        device.learn(choice, 6, f"later-{number}", adopted=False)
    (device.layout.personal / "leftover.onnx").write_bytes(b"killed before its record")
    for number in range(40):
        (device.layout.plans / f"{number}.plan").write_bytes(b"")
    choice.sweep()
    files = {path.stem for path in device.layout.personal.iterdir()}
    assert files == {"in-use", "later-5", "later-6", "later-7"}
    assert choice.serving().path.endswith("/in-use.onnx")
    assert [slot.version for slot in choice.slots.installed()] == [6, 5, 4, 3]
    assert len(list(device.layout.plans.iterdir())) == 12
