"""Training that is killed at any moment goes on from its last save as if nothing had happened.

A child process trains and saves all the time; it is killed (SIGKILL) at random moments, and another one takes over
from the file. In the end every number of the trainer must be the one of a run that was left alone.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sanderling.engine import PlanError, Trainer, TrainingPlan, compile, load_plan, models
from sanderling.engine.graph import Array
from sanderling.engine.memory import LEAN_ENVIRONMENT
from tests.support.quantized import quantize

STEPS = 60
CHILD = """
import os, sys
from pathlib import Path
import numpy as np
from sanderling.engine import Trainer, load_plan
from sanderling.engine.schedules import OneCycle

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
saved = folder / "trainer"
if saved.exists():
    trainer = Trainer.load(saved)
else:
    trainer = Trainer(load_plan(folder / "plan"), OneCycle(0.02, steps), clip_norm=1.0, decay="matrices",
                      weight_decay=0.01, seed=5)
rng = np.random.default_rng(0)
x = rng.standard_normal((steps, 12, 64)).astype(np.float32)
y = rng.integers(0, 10, (steps, 12))
print("ready", flush=True)
while trainer.steps < steps:
    at = trainer.steps
    if at % 3 == 0:
        trainer.step(x[at], y[at])
    else:  # a step in two halves, saved between them
        half = slice(0, 5) if trainer.collected == 0 else slice(5, 12)
        trainer.accumulate(x[at, half], y[at, half])
        if half.start:
            trainer.apply()
    trainer.save(saved)
"""


def _noise(samples: int) -> Array:
    return np.random.default_rng(1).standard_normal((samples, 64)).astype(np.float32)


CASES: dict[str, Callable[[], TrainingPlan]] = {
    "8-bit state, adapters, two segments": lambda: compile(
        models.mlp(64, [512, 64], 10), batch=8, segments=2, optimizer_state="dynamic8",
        adapters={"rank": 10}, trainable=["hidden1.*"],
    ),
    "integer weights": lambda: compile(quantize(models.mlp(64, [96], 10), [_noise(32)]), batch=6),
}  # fmt: skip


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(STEPS)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip


def finish(child: subprocess.Popen[str]) -> None:
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors


def content(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_moment(case: str, tmp_path: Path) -> None:
    plan = CASES[case]()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        plan.save(folder / "plan")
    finish(start(whole))
    moments = random.Random(7)
    kills, seen = 0, set()
    for _ in range(40):
        child = start(broken)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(moments.uniform(0, 0.12))
        child.kill()
        child.communicate(timeout=60)
        kills += child.returncode < 0
        if (broken / "trainer").exists():
            seen.add(Trainer.load(broken / "trainer").steps)
        if kills >= 5 and len(seen) >= 3:
            break
    assert kills >= 5 and len(seen) >= 3, (kills, seen)
    finish(start(broken))
    assert sorted(p.name for p in broken.iterdir()) == ["plan", "trainer"]  # nothing of the killed ones is left
    assert content(broken / "trainer") == content(whole / "trainer")


def test_damage_to_a_trainer_file_is_noticed(tmp_path: Path) -> None:
    trainer = Trainer(compile(models.mlp(64, [70], 3), optimizer_state="dynamic8"), learning_rate=0.01)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 64)).astype(np.float32), rng.integers(0, 3, 8)
    trainer.accumulate(x, y)
    trainer.save(tmp_path / "t")
    data = (tmp_path / "t").read_bytes()
    wanted = content(tmp_path / "t")
    for position in [*rng.integers(0, len(data), 60), len(data) - 3]:
        changed = bytearray(data)
        changed[position] ^= 0x55
        (tmp_path / "bad").write_bytes(changed)
        try:
            again = Trainer.load(tmp_path / "bad")
        except PlanError:
            continue
        # what the archive does not protect (time stamps) must not matter
        again.save(tmp_path / "again")
        assert content(tmp_path / "again") == wanted
    for junk in (b"", data[: len(data) // 2], b"junk" * 100, (tmp_path / "t").read_bytes()[:-30]):
        (tmp_path / "bad").write_bytes(junk)
        with pytest.raises(PlanError, match="bad"):
            Trainer.load(tmp_path / "bad")
    compile(models.mlp(64, [70], 3)).save(tmp_path / "plan")
    assert load_plan(tmp_path / "plan").segments == 1
    with pytest.raises(PlanError, match="plan: is not a saved trainer"):
        Trainer.load(tmp_path / "plan")
