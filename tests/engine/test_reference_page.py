"""Every block of docs/reference/engine.md runs, in order, and its tables name what there is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sanderling.engine import Trainer, compile, errors, models
from sanderling.engine.cli_planning import FORMATS, LOSSES
from sanderling.engine.graph import Builder, TensorType
from sanderling.engine.losses import LOSSES as ALL_LOSSES
from sanderling.engine.onnxio import to_bytes
from sanderling.engine.optimizers import STATE_FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "engine.md").read_text()
#: What the page takes for granted.
SETTING = """
import numpy as np
rng = np.random.default_rng(0)
x, y = rng.standard_normal((8, 6), np.float32), rng.integers(0, 3, 8)
batches = [(x, y)] * 3
"""


def smooth() -> bytes:
    """A model without kinks."""
    b = Builder("s")
    w = b.constant(np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32))
    b.op("Tanh", b.op("MatMul", "x", w), name="y")
    return to_bytes(b.nodes, {"x": TensorType("float32", (8, 6))}, {"y": None}, b.constants, 18)


def test_the_blocks_run(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(models.mlp(6, [16], 3))
    (tmp_path / "smooth.onnx").write_bytes(smooth())
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) >= 6
    # a process of its own, since the limit stays
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SETTING + "\n".join(blocks)], cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "at most at once" in done.stdout


def rows(title: str) -> dict[str, str]:
    """{first cell: second cell} of the first table under a heading."""
    part = PAGE[PAGE.index(f"\n## {title}\n") + 1 :]
    table = re.search(r"(?:^\|.*\n)+", part, re.M)
    assert table is not None
    cells = [re.split(r"(?<!\\)\|", line)[1:3] for line in table[0].splitlines()[2:]]
    return {first.strip(): second.strip() for first, second in cells}


def test_every_argument_of_compile_is_there_with_its_default() -> None:
    table = {name.strip("`"): default for name, default in rows("compile").items()}
    parameters = {n: p for n, p in inspect.signature(compile).parameters.items() if n != "model"}
    assert table.keys() == parameters.keys()
    for name, shown in table.items():
        default = parameters[name].default
        words = {None: "none", False: "false"} if not isinstance(default, int) or default is False else {}
        assert shown == words.get(default, f'`"{default}"`' if isinstance(default, str) else str(default)), name


def test_every_public_name_of_a_trainer_is_there() -> None:
    shown = set(re.findall(r"`(?:Trainer\.)?(\w+)[`(]", "".join(rows("Trainer"))))
    public = {n for n in vars(Trainer) if not n.startswith("_") and n != "watch"}
    assert shown == public


def test_every_error_is_there() -> None:
    shown = {re.findall(r"`(\w+)`", cell)[0] for cell in rows("Errors")}
    public = {n for n, v in vars(errors).items() if inspect.isclass(v) and v.__module__ == errors.__name__}
    assert shown == public - {"EngineError"}


@pytest.mark.parametrize("command", ["plan", "train"])
def test_the_command_line_has_an_option_for_every_argument(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sanderling", command, "--help"], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert set(LOSSES) == set(ALL_LOSSES) and set(FORMATS) == set(STATE_FORMATS)
    own = {"model", "samples", "reserve", "trial", "cache", "adapters", "loss_options", "sizes"}
    for name in set(inspect.signature(compile).parameters) - own:
        assert f"--{name.replace('_', '-')}" in done.stdout, name
    for option in re.findall(r"--[a-z][a-z-]*", PAGE[PAGE.index("## Command line") :]):
        if command == "train" and option not in ("--json", "--picture"):
            assert option in done.stdout, option
