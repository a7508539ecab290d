"""The tables of a plan say what the plan is, fit 80 columns, and agree with the figures."""

from __future__ import annotations

import json

import msgspec
import pytest

from sanderling.engine import TrainingPlan, compile, models
from sanderling.engine.describe import clean, figures, segments, text
from sanderling.engine.exchange import bytes_of


@pytest.fixture(scope="module")
def cut() -> TrainingPlan:
    return compile(models.depthwise_cnn_1d(), batch=8, segments=3, precision="int8", memory_limit=2**30, trial=False)


def test_segments_cover_the_model(cut: TrainingPlan) -> None:
    found = segments(cut.info)
    assert [s.number for s in found] == [1, 2, 3]
    assert sum(s.operators for s in found) == cut.info.nodes
    assert sum(s.time for s in found) == pytest.approx(1)
    assert [s.recomputed for s in found] == [True, True, False] and all(s.differentiated for s in found)
    repeated = sum(s.operators for s in found if s.recomputed) / cut.info.nodes
    assert repeated == pytest.approx(cut.recompute_ratio)


def test_what_is_stored_is_what_later_sessions_read_again(cut: TrainingPlan) -> None:
    found = segments(cut.info)
    assert found[-1].stored == ()
    for s in found[:-1]:
        assert s.stored_bytes > 0
        assert not any(name.endswith((".q", ".s")) for name in s.stored)
    kinds = {t.name: t for t in cut.info.tensors}
    for s in found:
        exact = sum(bytes_of(kinds[n].dtype, kinds[n].shape) for n in s.stored)
        assert s.stored_bytes < exact / 3.5 if s.in_8_bits else s.stored_bytes == exact
    assert any(s.in_8_bits for s in found)
    plain = compile(models.depthwise_cnn_1d(), batch=8, segments=3, precision="float32")
    assert not any(s.in_8_bits for s in segments(plain.info))


def test_a_segment_that_no_backward_pass_reaches_runs_once(cut: TrainingPlan) -> None:
    steps = tuple(s for s in cut.info.steps if (s.kind, s.segment) != ("backward", 0))
    info = msgspec.structs.replace(cut.info, steps=steps, trainable=("head.weight", "head.bias"))
    assert [(s.differentiated, s.recomputed) for s in segments(info)] == [(False, False), (True, True), (True, False)]
    assert "no backward pass reaches it" in text(info) and "head.weight, head.bias" in text(info)
    plan = compile(models.depthwise_cnn_1d(), segments=3, trainable="last")
    found = segments(plan.info)
    assert plan.recompute_ratio == pytest.approx(sum(s.operators for s in found if s.recomputed) / plan.info.nodes)


@pytest.mark.parametrize("segments", [1, 3])
def test_the_text_fits_a_terminal(segments: int) -> None:
    plan = compile(models.depthwise_cnn_1d(), batch=8, segments=segments, memory_limit=2**30, trial=False)
    lines = plan.describe().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line != line.rstrip() for line in lines)
    for name, count in plan.info.footprint.rows():
        assert any(line.startswith(name) and f" {count / 2**20:.1f}" in line for line in lines), name


def test_long_and_hostile_names_are_tamed(cut: TrainingPlan) -> None:
    name = "deep/" * 40 + "\x1b[31mred"
    first = cut.info.tensors[0].name
    swapped = msgspec.json.encode(cut.info).decode().replace(json.dumps(first), json.dumps(name))
    info = msgspec.json.decode(swapped, type=type(cut.info))
    shown = text(info)
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= 80
    assert clean("ä b") == "ä b"


def test_figures_are_json_and_complete(cut: TrainingPlan) -> None:
    found = json.loads(json.dumps(figures(cut.info)))
    assert found["peak_bytes"] == sum(found["footprint"].values()) == cut.peak_bytes
    assert len(found["segment_list"]) == found["segments"] == 3
    assert len(found["sessions"]) == len(cut.info.steps)
    assert found["stored_tensors"] == "int8" and found["optimizer_state"] == "dynamic8"
    assert found["weights"] >= found["trained_weights"] > 0
