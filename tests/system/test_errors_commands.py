"""Commands given something that cannot work: one message with what, where and the remedy; nothing written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sanderling.agent.checking import PATIENCE
from sanderling.codec.release import generate_key
from sanderling.engine.models import depthwise_cnn_1d
from tests.support.brokers import free_port
from tests.support.fleets import RunningAgent, until

pytestmark = pytest.mark.system


def command(folder: Path, *words: str) -> tuple[int, str]:
    """(exit status, standard error) of `sanderling WORDS` in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "sanderling", *words], cwd=folder, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, good data, and data with every fault there is."""
    folder = tmp_path_factory.mktemp("commands")
    model = depthwise_cnn_1d(channels=2, length=16, classes=3, widths=(4, 4), kernel=3, seed=0)
    (folder / "m.onnx").write_bytes(model)
    (folder / "cut.onnx").write_bytes(model[: len(model) // 2])
    x = np.random.default_rng(0).normal(size=(8, 2, 16)).astype(np.float32)
    y = np.arange(8) % 3
    np.savez(folder / "good.npz", x=x, y=y)
    np.savez(folder / "labels.npz", x=x, y=y + 1)
    np.savez(folder / "nan.npz", x=np.where(x > 1, np.nan, x), y=y)
    np.savez(folder / "none.npz", x=x[:0], y=y[:0])
    np.save(folder / "bare.npy", x)
    (folder / "text.npz").write_text("no archive at all")
    (folder / "folder").mkdir()
    return folder


#: Words after `train m.onnx`, and what the message must say.
REFUSALS = [
    (("--data", "absent.npz", "--out", "new.onnx"), ("absent.npz", "check")),
    (("--data", "bare.npy", "--out", "new.onnx"), ("bare.npy", "numpy.savez")),
    (("--data", "text.npz", "--out", "new.onnx"), ("text.npz",)),
    (("--data", "nan.npz", "--out", "new.onnx"), ("nan.npz", "NaN", "remove")),
    (("--data", "none.npz", "--out", "new.onnx"), ("none.npz", "no samples")),
    (("--data", "labels.npz", "--out", "new.onnx"), ("labels must be 0 to 2",)),
    (("--data", "good.npz", "--out", "absent/new.onnx"), ("--out absent/new.onnx", "no directory")),
    (("--data", "good.npz", "--out", "folder"), ("--out folder", "is a directory")),
    (("--data", "good.npz", "--out", "new.onnx", "--epochs", "0"), ("--epochs", "at least 1")),
    (("--data", "good.npz", "--out", "new.onnx", "--memory-limit", "9MiB"), ("MiB at least", "raise the limit")),
]


@pytest.mark.parametrize(("words", "said"), REFUSALS, ids=lambda value: " ".join(value[:4:3]))
def test_train(folder: Path, words: tuple[str, ...], said: tuple[str, ...]) -> None:
    status, errors = command(folder, "train", "m.onnx", *words)
    assert status in (1, 2)
    assert "Traceback" not in errors
    for part in said:
        assert part in errors
    assert not (folder / "new.onnx").exists()


def test_plan_of_a_model_that_was_cut_short(folder: Path) -> None:
    status, errors = command(folder, "plan", "cut.onnx")
    assert status == 1
    assert errors.startswith("sanderling plan: cut.onnx: is not an ONNX model")


def test_a_broker_that_wants_a_password(tmp_path: Path) -> None:
    """`agent check` says which settings are missing."""
    mosquitto, passwords = shutil.which("mosquitto", path="/usr/sbin:/usr/bin"), shutil.which("mosquitto_passwd")
    if mosquitto is None or passwords is None:
        pytest.skip("mosquitto and mosquitto_passwd are needed for a broker with a password")
    port, known = free_port(), tmp_path / "passwords"
    subprocess.run([passwords, "-b", "-c", str(known), "someone", "secret"], check=True, capture_output=True)
    config = tmp_path / "mosquitto.conf"
    # as root it would drop its rights and not reach the file; for others the first line has no effect
    config.write_text(f"user root\nlistener {port} 127.0.0.1\nallow_anonymous false\npassword_file {known}\n")
    with (tmp_path / "broker.log").open("wb") as log:
        broker = subprocess.Popen([mosquitto, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        key = generate_key()[1]
        stranger = RunningAgent(tmp_path / "a", port, key)
        friend = RunningAgent(tmp_path / "b", port, key, broker={"username": "someone", "password": "secret"})
        until(lambda: subprocess.run(friend.command("check"), capture_output=True).returncode == 0, PATIENCE)
        found = subprocess.run(stranger.command("check"), capture_output=True, text=True)
        assert found.returncode == 1
        assert "set broker.username and broker.password" in found.stdout
    finally:
        broker.terminate()
        broker.wait(10)
