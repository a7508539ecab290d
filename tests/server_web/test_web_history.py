"""Accuracy over time: thinned out without losing ends, the mean over all devices, bounded whatever is asked."""

from __future__ import annotations

import time

import pytest

from sanderling.server.errors import NotFoundError
from sanderling.server.service import Service
from sanderling.server.web import history as module
from sanderling.server.web.history import FIELDS, Shared, history
from tests.support.web import add_device, add_report, add_reports


def held(value: float) -> dict[str, float]:
    """An accuracy on 40 samples."""
    return {"value": value, "count": 40}


def test_points_are_thinned_and_the_newest_stays(service: Service) -> None:
    add_device(service, "a")
    begin = time.time() - 300
    add_reports(service, [("a", begin + step, {"held_out_fleet": held(step / 1000)}) for step in range(300)])
    answer = history(service, points=10)
    line = answer["devices"]["a"]
    assert 9 <= len(line) <= 11
    assert line[-1][FIELDS.index("held_out")] == 0.299
    assert [point[0] for point in line] == sorted(point[0] for point in line)
    assert all(len(point) == len(FIELDS) for point in line)


def test_the_mean_carries_each_device_forward(service: Service) -> None:
    begin = time.time() - 100
    for name in "ab":
        add_device(service, name)
    add_report(service, "a", begin, held_out_fleet=held(0.5), prequential=None)
    add_report(service, "b", begin + 40, held_out_fleet=held(0.7), prequential=held(0.9))
    add_report(service, "a", begin + 80, serving="personal", held_out_personal=held(0.9))
    fleet = history(service, points=100)["fleet"]
    assert [(held_out, live) for _, held_out, live in fleet] == [
        (0.5, None), (pytest.approx(0.6), 0.9), (pytest.approx(0.8), pytest.approx(0.825)),
    ]  # fmt: skip


def test_one_device_since_a_time(service: Service) -> None:
    begin = time.time() - 100
    for name in "ab":
        add_device(service, name)
        for step in range(10):
            add_report(service, name, begin + 10 * step)
    answer = history(service, device="b", since=begin + 45)
    assert list(answer["devices"]) == ["b"] and len(answer["devices"]["b"]) == 5
    with pytest.raises(NotFoundError):
        history(service, device="c")
    assert history(service, since=time.time() + 1000)["devices"] == {}


def test_a_large_fleet_has_bounded_lines_and_all_in_the_mean(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LINES", 3)
    begin = time.time() - 50
    for n in range(5):
        add_device(service, f"d{n}")
        add_report(service, f"d{n}", begin + n, held_out_fleet=held(n / 10))
    answer = history(service)
    assert list(answer["devices"]) == ["d2", "d3", "d4"] and answer["left_out"] == 2
    assert answer["fleet"][-1][1] == pytest.approx(0.2)


def test_rows_of_an_answer_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 40)
    begin = time.time() - 400
    for n in range(4):
        add_device(service, f"d{n}")
        add_reports(service, [(f"d{n}", begin + 4 * step, {}) for step in range(100)])
    answer = history(service, points=1000)
    assert sum(map(len, answer["devices"].values())) <= 44


def test_an_answer_that_took_long_is_shared(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def slow(_: Service, *, since: float, points: int) -> dict[str, float]:
        asked.append(since)
        time.sleep(0.05)
        return {"asked": len(asked)}

    monkeypatch.setattr(module, "history", slow)
    shared = Shared(service)
    assert [shared.history(0.0, 10)["asked"] for _ in range(5)] == [1] * 5
    assert shared.history(7.0, 10)["asked"] == 2
    time.sleep(0.4)
    assert shared.history(0.0, 10)["asked"] == 3
    for since in range(20):
        shared.history(100.0 + since, 10)
    assert len(shared._kept) == Shared.MOST
