"""Plans kept by model and wishes: found again, made anew when damaged, bounded in number and bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.engine import Trainer, compile, models, search
from sanderling.engine.plancache import PlanCache, circumstances, default_folder, key


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every plan that is really made."""
    calls: list[int] = []
    choose = search.Search.choose

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return choose(*arguments)

    monkeypatch.setattr(search.Search, "choose", counted)
    return calls


def test_the_same_wishes_find_the_same_plan(tmp_path: Path, made: list[int]) -> None:
    model = models.mlp(4, [8], 3)
    first = compile(model, batch=4, cache=tmp_path)
    again = compile(model, batch=4, cache=tmp_path)
    assert len(made) == 1
    assert again.info == first.info and again.models == first.models and again.model == first.model
    loss = Trainer(again).step(np.ones((4, 4), np.float32), np.zeros(4, np.int64))
    assert loss == Trainer(first).step(np.ones((4, 4), np.float32), np.zeros(4, np.int64))


@pytest.mark.parametrize(
    "other", [{"batch": 5}, {"memory_limit": 2**30, "trial": False}, {"optimizer": "sgd"}, {"trainable": ["*weight"]},
              {"loss_options": {"label_smoothing": 0.1}}, {"precision": "int8"}],
)  # fmt: skip
def test_other_wishes_are_other_plans(tmp_path: Path, made: list[int], other: dict[str, Any]) -> None:
    model = models.mlp(4, [8], 3)
    compile(model, batch=4, cache=tmp_path)
    plan = compile(model, **{"batch": 4, "cache": tmp_path, **other})
    assert len(made) == 2
    assert len(list(tmp_path.glob("*.plan"))) == 2
    without = compile(model, **{"batch": 4, **other})
    assert plan.info == without.info


def test_samples_count_by_their_content() -> None:
    x = np.zeros((5000, 4), np.float32)
    other = x.copy()
    other[2500, 2] = 1  # where no printout would show it
    first = key(b"", {"samples": (x, np.zeros(5000, np.int64))})
    assert first == key(b"", {"samples": (x.copy(), np.zeros(5000, np.int64))})
    assert first != key(b"", {"samples": (other, np.zeros(5000, np.int64))})
    assert key(b"", {"samples": None}) != first


def test_another_model_is_another_plan(tmp_path: Path, made: list[int]) -> None:
    compile(models.mlp(4, [8], 3), cache=tmp_path)
    assert compile(models.mlp(4, [8], 2), cache=tmp_path).info.classes == 2
    assert len(made) == 2


def test_the_name_of_the_model_is_the_present_one(tmp_path: Path, made: list[int]) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(models.mlp(4, [8], 3))
        assert compile(tmp_path / name, cache=tmp_path / "plans").info.source == str(tmp_path / name)
    assert len(made) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_plan_is_made_anew(tmp_path: Path, made: list[int], damage: str) -> None:
    model = models.mlp(4, [8], 3)
    plan = compile(model, cache=tmp_path)
    (path,) = tmp_path.glob("*.plan")
    data = bytearray(path.read_bytes())
    at = data.index(b"step0000.onnx") + 60
    data[at] ^= 1
    path.write_bytes({"cut": bytes(data[:-30]), "flip": bytes(data), "empty": b""}[damage])
    assert compile(model, cache=tmp_path).info == plan.info
    assert len(made) == 2
    compile(model, cache=tmp_path)
    assert len(made) == 2


def test_other_circumstances_are_another_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(b"model", {"batch": 1})
    assert key(b"model", {"batch": 1}) == before
    circumstances.cache_clear()
    monkeypatch.setattr("sanderling.engine.plancache._version", lambda name: "99")
    assert key(b"model", {"batch": 1}) != before
    monkeypatch.undo()
    circumstances.cache_clear()
    monkeypatch.setattr("sanderling.engine.plancache._processor", lambda: ["another"])
    assert key(b"model", {"batch": 1}) != before
    circumstances.cache_clear()


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    plan = compile(models.mlp(4, [8], 3))
    cache = PlanCache(tmp_path, most=3)
    for index, name in enumerate("abc"):
        assert cache.keep(name, plan)
        os.utime(cache.path(name), (index, index))
    assert cache.find("a") is not None  # so b is the oldest
    assert cache.keep("d", plan)
    assert sorted(p.stem for p in tmp_path.glob("*.plan")) == ["a", "c", "d"]


def test_the_bytes_of_a_folder_are_bounded(tmp_path: Path) -> None:
    plan = compile(models.mlp(4, [8], 3))
    plan.save(tmp_path / "size")
    cache = PlanCache(tmp_path, most_bytes=2 * (tmp_path / "size").stat().st_size)
    for name in "abcd":
        assert cache.keep(name, plan)
    assert len(list(tmp_path.glob("*.plan"))) == 2 and cache.find("d") is not None
    assert not PlanCache(tmp_path, most_bytes=10).keep("e", plan)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plan = compile(models.mlp(4, [8], 3), cache=tmp_path / "file")
    assert plan.info.batch == 8


def test_the_folder_of_the_command_line_follows_the_standard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "sanderling" / "plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the standard
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "sanderling" / "plans"
