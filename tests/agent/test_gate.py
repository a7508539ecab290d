"""The gate's decisions, one by one."""

from __future__ import annotations

import math

import pytest

from sanderling.agent.gate import Evaluation, Score, judge, serves

Pair = tuple[float, float]


def found(fleet: Pair, personal: Pair, count: int = 30, anchor: Pair | None = None) -> Evaluation:
    before, after = anchor if anchor else (None, None)
    return Evaluation(Score(*fleet, count), Score(*personal, count), before, after)


@pytest.mark.parametrize(
    ("evaluation", "serve", "send"),
    [
        (found((0.7, 1.0), (0.9, 0.5)), True, True),
        (found((0.9, 0.5), (0.7, 0.1)), False, False),
        (found((0.9, 0.5), (0.9, 0.4)), True, True),  # equal accuracy: the loss decides
        (found((0.9, 0.5), (0.9, 0.5)), False, True),
        (found((0.9, 0.5), (0.9, 0.6)), False, True),
        (found((0.0, 9.0), (1.0, 0.0), count=3), False, False),  # too few to know
        (found((0.7, 1.0), (0.9, 0.5), anchor=(0.95, 0.86)), True, True),
        (found((0.7, 1.0), (0.9, 0.5), anchor=(0.95, 0.84)), False, True),
        (found((0.7, 1.0), (0.9, math.nan)), False, False),
    ],
)
def test_verdicts(evaluation: Evaluation, serve: bool, send: bool) -> None:
    verdict = judge(evaluation, 0.1)
    assert (verdict.serve, verdict.send) == (serve, send), verdict.reason
    assert verdict.reason


def test_policy() -> None:
    assert [serves(policy, True, True) for policy in ("best", "fleet", "personal")] == ["personal", "fleet", "personal"]
    assert [serves(policy, False, True) for policy in ("best", "fleet", "personal")] == ["fleet", "fleet", "personal"]
    assert serves("personal", False, False) == "fleet"
