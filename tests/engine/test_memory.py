"""Memory: sizes, planning under a limit, the hard limit; every measurement in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sanderling.engine import (
    MemoryLimitError,
    Trainer,
    compile,
    models,
    parse_size,
    peak_resident_bytes,
    resident_bytes,
)
from sanderling.engine.memory import LEAN_ENVIRONMENT
from sanderling.engine.trial import measure_peak

MIB = 2**20


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip


def wide_cnn() -> bytes:
    """A model whose activations dominate: 48 channels over 6,000 samples in six layers."""
    return models.depthwise_cnn_1d(length=6000, widths=(48, 48, 48, 48, 48, 48))


@pytest.mark.parametrize(
    ("text", "count"), [("1KiB", 1024), ("1kB", 1000), ("1.5 MiB", 1536 * 1024), ("2G", 2**31), (" 77 ", 77), ("3B", 3)]
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "12 apples", "1e9", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="128MiB"):
        parse_size(text)


def test_the_peak_is_at_least_what_is_resident() -> None:
    assert MIB < resident_bytes() <= peak_resident_bytes()


def test_a_smaller_limit_is_met_by_other_means_with_the_same_gradients() -> None:
    model = wide_cnn()
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 6, 6000)).astype(np.float32), rng.integers(0, 7, 8)
    free = compile(model, batch=8, trial=True)
    tight = compile(model, batch=8, memory_limit=(free.peak_bytes + free.info.baseline_bytes) // 2)
    assert tight.micro_batch < free.micro_batch or tight.segments > free.segments
    assert tight.peak_bytes < free.peak_bytes
    _, wanted = Trainer(free).gradients(x, y)
    _, given = Trainer(tight).gradients(x, y)
    for name, value in wanted.items():
        np.testing.assert_allclose(given[name], value, rtol=1e-3, atol=1e-5 * float(np.abs(value).max()))


def test_segments_lower_the_measured_peak() -> None:
    model = wide_cnn()
    one = compile(model, batch=16, micro_batch=16, segments=1)
    three = compile(model, batch=16, micro_batch=16, segments=3)
    assert measure_peak(three) < measure_peak(one) - 5 * MIB


def test_a_limit_that_cannot_be_met_names_one_that_can() -> None:
    model = models.depthwise_cnn_1d()
    with pytest.raises(MemoryLimitError, match="at least") as caught:
        compile(model, batch=16, memory_limit=20 * MIB)
    assert compile(model, batch=16, memory_limit=caught.value.smallest).peak_bytes <= caught.value.smallest


TRAIN = """
import sys, numpy as np, numpy.random  # all that is to be loaded is, before the limit is set
from sanderling.engine import Trainer, load_plan, enforce_limit, peak_resident_bytes
assert "onnx" not in sys.modules
plan = load_plan(sys.argv[1])
limit = int(sys.argv[2])
if limit:
    enforce_limit(limit)
trainer = Trainer(plan)
shape = plan.info.inputs[0].shape[1:]
rng = np.random.default_rng(0)
for _ in range(5):
    trainer.step(rng.standard_normal((plan.info.batch, *shape), np.float32), rng.integers(0, 7, plan.info.batch))
trainer.export(sys.argv[3])
assert "onnx" not in sys.modules, "training must not import onnx"
print(peak_resident_bytes())
"""


@pytest.mark.parametrize("limit", [80 * MIB, 128 * MIB])
def test_training_stays_under_its_limit(tmp_path: Path, limit: int) -> None:
    plan = compile(models.depthwise_cnn_1d(), batch=16, memory_limit=limit)
    plan.save(tmp_path / "plan")
    done = run(TRAIN, str(tmp_path / "plan"), str(limit), str(tmp_path / "new.onnx"))
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout)
    assert measured <= limit
    assert abs(measured - plan.peak_bytes) < 8 * MIB


def test_exceeding_the_hard_limit_is_an_error_and_never_a_larger_process(tmp_path: Path) -> None:
    plan = compile(wide_cnn(), batch=32, micro_batch=32, segments=1)
    plan.save(tmp_path / "plan")
    code = TRAIN.replace("trainer =", "import atexit; atexit.register(lambda: print(peak_resident_bytes()))\ntrainer =")
    done = run(code, str(tmp_path / "plan"), str(100 * MIB), str(tmp_path / "new.onnx"))
    assert done.returncode == 1
    assert "MemoryLimitError: memory ran out" in done.stderr or "MemoryError" in done.stderr
    assert int(done.stdout) <= 100 * MIB


def test_numpy_meets_the_hard_limit_too() -> None:
    done = run(
        "import numpy as np; from sanderling.engine import enforce_limit, peak_resident_bytes as peak\n"
        "enforce_limit(64 * 2**20)\nkept = []\n"
        "try:\n    while True: kept.append(np.ones(2**18))\nexcept MemoryError: print(peak())"
    )
    assert done.returncode == 0, done.stderr
    assert 40 * MIB < int(done.stdout) <= 64 * MIB


def test_a_limit_below_what_is_resident_is_refused() -> None:
    done = run("from sanderling.engine import enforce_limit\nenforce_limit(2**20)")
    assert "MemoryLimitError" in done.stderr and "allow at least" in done.stderr


def test_the_package_is_light() -> None:
    done = run(
        "import sys, json, sanderling.engine\nfrom sanderling.engine import cli, errors, memory\n"
        "print(json.dumps([m for m in ('numpy', 'onnx', 'onnxruntime', 'rich') if m in sys.modules]))"
    )
    assert json.loads(done.stdout) == []
