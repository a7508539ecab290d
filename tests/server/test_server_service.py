"""What people may ask: releases of real files, and a reason for everything that is refused."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sanderling.codec import release as wire
from sanderling.server import service as service_module
from sanderling.server.errors import ConfigurationError, NotFoundError, RequestError
from sanderling.server.inspection import Findings
from sanderling.server.limits import Limits
from sanderling.server.service import Service
from sanderling.server.setup import initialize
from tests.support.servers import small_model, windows


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(initialize(tmp_path / "server", "wrists"))
    yield service
    service.close()


def npz(x: object, y: object = None) -> bytes:
    file = io.BytesIO()
    if y is None:
        np.savez(file, x=np.asarray(x))
    else:
        np.savez(file, x=np.asarray(x), y=np.asarray(y))
    return file.getvalue()


def test_release_then_rollback(service: Service) -> None:
    x, y = windows(30)

    async def story() -> None:
        service.put_file("wrist", "model.onnx", small_model(0))
        service.put_file("wrist", "proxy.npz", npz(x, y))
        service.put_file("wrist", "anchor.npz", npz(x, y))
        assert await service.release("wrist", ["a", "b", "c", "d"], {"from": "the lab"}) == 1
        service.put_file("wrist", "model.onnx", small_model(1))
        assert await service.release("wrist") == 2
        assert await service.rollback("wrist", 1) == 3

    asyncio.run(story())
    first, second, third = (service.store.release("wrist", v) for v in (1, 2, 3))
    assert service.file("wrist", 2, "model.onnx") == small_model(1)
    assert second["labels"] == ["a", "b", "c", "d"], "what is not given anew is kept"
    assert second["files"]["proxy.npz"] == first["files"]["proxy.npz"]
    assert third["files"] == first["files"]
    assert third["source"] == "rollback"
    assert set(first["weights"]) == set(second["weights"])
    assert first["metrics"]["trainable"] is True
    assert 0 <= first["metrics"]["anchor_accuracy"] <= 1
    opened = wire.verify(third["manifest"], [service.signer.public])
    assert (opened.version, set(opened.targets)) == (3, {"model.onnx", "anchor.npz"}), "proxy data stays on the server"
    assert service.models()[0]["current_version"] == 3
    assert [entry["action"] for entry in service.audit()].count("release") == 3


def test_unlabelled_proxy_is_taken(service: Service) -> None:
    service.put_file("wrist", "model.onnx", small_model())
    service.put_file("wrist", "proxy.npz", npz(windows(10)[0]))
    assert asyncio.run(service.release("wrist")) == 1
    assert "proxy_accuracy" not in service.store.release("wrist", 1)["metrics"]


def test_a_file_pushed_during_a_release_waits_for_the_next(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow_look(files: dict[str, Path], limits: Limits) -> Findings:
        service.put_file("wrist", "model.onnx", b"second")
        return Findings()

    monkeypatch.setattr(service_module, "inspect", slow_look)
    service.put_file("wrist", "model.onnx", b"first")
    assert asyncio.run(service.release("wrist")) == 1
    assert service.file("wrist", 1, "model.onnx") == b"first"
    assert asyncio.run(service.release("wrist")) == 2
    assert service.file("wrist", 2, "model.onnx") == b"second"


@pytest.mark.parametrize(
    ("files", "labels", "said"),
    [
        ({}, [], "no model.onnx"),
        ({"model.onnx": b"not a model"}, [], "model.onnx"),
        ({"model.onnx": small_model(), "proxy.npz": b"PK no archive"}, [], "proxy.npz"),
        ({"model.onnx": small_model(), "proxy.npz": npz(np.zeros((5, 9, 9), np.float32), [0] * 5)}, [], "proxy.npz"),
        ({"model.onnx": small_model(), "anchor.npz": npz(windows(3)[0], [0, 1, 77])}, [], "anchor.npz.*0 to 77"),
        ({"model.onnx": small_model(), "anchor.npz": npz(windows(3)[0], [0, 1, 2])}, ["a", "b"], "2 labels"),
        ({"model.onnx": small_model()}, ["a", "a"], "different"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(
    service: Service, files: dict[str, bytes], labels: list[str], said: str
) -> None:
    for name, data in files.items():
        service.put_file("wrist", name, data)
    with pytest.raises(RequestError, match=said) as caught:
        asyncio.run(service.release("wrist", labels))
    assert caught.value.remedy
    assert service.models() == []


def test_a_model_that_runs_but_cannot_be_trained_is_released_with_the_reason(service: Service) -> None:
    graph = helper.make_graph(
        [helper.make_node("Mod", ["x", "two"], ["output"], fmod=1)],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    service.put_file("odd", "model.onnx", model.SerializeToString())
    assert asyncio.run(service.release("odd")) == 1
    metrics = service.store.release("odd", 1)["metrics"]
    assert metrics["trainable"] is False
    assert metrics["not_trainable_because"]


def test_unknown_things_are_not_found(service: Service) -> None:
    for ask in (
        lambda: service.device("nobody"),
        lambda: service.releases("nothing"),
        lambda: service.file("nothing", 1, "model.onnx"),
        lambda: service.history("nobody"),
    ):
        with pytest.raises(NotFoundError):
            ask()
    with pytest.raises(NotFoundError):
        asyncio.run(service.rollback("nothing", 1))
    for name, file in (("../x", "model.onnx"), ("wrist", "../key"), ("wrist", "model.exe")):
        with pytest.raises(RequestError):
            service.put_file(name, file, b"x")
    with pytest.raises(RequestError, match="empty"):
        service.put_file("wrist", "model.onnx", b"")


def test_init_never_overwrites_and_keys_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    initialize(directory, "wrists")
    for name in ("release.key", "api.token"):
        assert (directory / name).stat().st_mode & 0o777 == 0o600
    key = (directory / "release.key").read_text()
    with pytest.raises(ConfigurationError, match="already"):
        initialize(directory, "wrists")
    assert (directory / "release.key").read_text() == key
    with pytest.raises(ConfigurationError, match="fleet"):
        initialize(tmp_path / "other", "two words")


def test_a_slow_viewer_misses_changes_and_is_told_so(service: Service) -> None:
    async def story() -> list[str]:
        viewer = service.subscribe()
        first = asyncio.ensure_future(anext(viewer))
        await asyncio.sleep(0)
        for number in range(1000):
            service.changes.tell("device", f"d{number}")
        kinds: list[str] = [(await first).kind]
        async with asyncio.timeout(5):
            while kinds[-1] != "missed":
                kinds.append((await anext(viewer)).kind)
        service.changes.close()
        assert [change async for change in viewer] == []
        return kinds

    kinds = asyncio.run(story())
    assert len(kinds) <= service.settings.limits.subscriber_changes + 1
