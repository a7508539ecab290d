"""Saving and exporting need hardly more memory than training does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sanderling.engine import compile, models
from sanderling.engine.memory import LEAN_ENVIRONMENT

CODE = """
import json, sys
import numpy as np
from sanderling.engine import Trainer, load_plan, peak_resident_bytes
folder = sys.argv[1]
trainer = Trainer(load_plan(folder + "/plan"))
for _ in range(2):
    trainer.step(np.zeros((4, 500), np.float32), np.zeros(4, int))
peaks = [peak_resident_bytes()]
trainer.save(folder + "/trainer")
peaks.append(peak_resident_bytes())
trainer.export(folder + "/model.onnx")
peaks.append(peak_resident_bytes())
print(json.dumps(peaks))
"""


def test_saving_and_exporting_copy_nothing_large(tmp_path: Path) -> None:
    plan = compile(models.mlp(500, [2000, 2000], 10), batch=4)
    plan.save(tmp_path / "plan")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    step, save, export = json.loads(done.stdout)
    weights = 4 * 5_000_000
    assert (tmp_path / "model.onnx").stat().st_size > weights
    assert save - step < weights / 8
    assert export - save < weights / 8
