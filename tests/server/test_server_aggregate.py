"""Aggregation against the formula written out, and the rules that choose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanderling.codec import CodecLimits, decode_delta, encode_delta
from sanderling.server.aggregate import Contribution, Partial, StalenessAverage, interpolate
from sanderling.server.choose import Candidate, choose
from sanderling.server.config import MergeSection
from sanderling.server.ensemble import Ensemble, soften
from sanderling.server.errors import MergeError
from sanderling.server.policy import Situation, due

LIMITS = CodecLimits()
CURRENT = {"w": np.array([[1, 2, 3], [4, 5, 6]], np.float32), "b": np.array([0, 1], np.float32)}


def change(seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    return encode_delta({n: generator.normal(size=a.shape).astype(np.float32) for n, a in CURRENT.items()})[0]


def contribution(device: str, samples: int = 10, staleness: int = 0) -> Contribution:
    return Contribution(device=device, base_version=1, samples=samples, staleness=staleness)


def test_weighted_mean_is_the_formula_written_out() -> None:
    strategy = StalenessAverage(staleness_exponent=0.5, learning_rate=0.7)
    members = [(contribution("a", 10, 0), [1, 2]), (contribution("b", 30, 3), [3]), (contribution("c", 20, 1), [4])]
    partial = Partial.zero(CURRENT)
    for who, seeds in members:
        partial.take(who, [change(s) for s in seeds], strategy.weight(who), LIMITS)
    new = strategy.apply(CURRENT, partial)
    weights = [10.0, 30 / 4**0.5, 20 / 2**0.5]
    for name, current in CURRENT.items():
        sums = [np.sum([decode_delta(change(s))[name] for s in seeds], axis=0) for _, seeds in members]
        mean = sum(w * s for w, s in zip(weights, sums, strict=True)) / sum(weights)
        np.testing.assert_allclose(new[name], current + 0.7 * mean, rtol=1e-6)
        assert new[name].dtype == np.float32


def test_partial_sums_add_up_in_any_grouping() -> None:
    strategy = StalenessAverage()

    def part(*seeds: int) -> Partial:
        partial = Partial.zero(CURRENT)
        for seed in seeds:
            who = contribution(str(seed), samples=seed)
            partial.take(who, [change(seed)], strategy.weight(who), LIMITS)
        return partial

    whole, left, right = part(1, 2, 3, 4), part(1), part(2, 3)
    right.add(part(4))
    left.add(right)
    for name in CURRENT:
        np.testing.assert_allclose(whole.total[name], left.total[name], rtol=1e-12, atol=1e-12)
    assert whole.weight == left.weight
    assert len(left.contributions) == 4


def test_nothing_and_nonsense_are_refused() -> None:
    with pytest.raises(MergeError):
        StalenessAverage().apply(CURRENT, Partial.zero(CURRENT))
    partial = Partial.zero(CURRENT)
    partial.weight = 1.0
    partial.total["w"][0, 0] = 1e60
    with pytest.raises(MergeError, match="'w'"), np.errstate(over="ignore"):
        StalenessAverage().apply(CURRENT, partial)


@given(st.floats(0, 1))
def test_interpolation_stays_between(t: float) -> None:
    other = {name: array + 2 for name, array in CURRENT.items()}
    between = interpolate(CURRENT, other, t)
    for name, array in between.items():
        assert np.all(array >= CURRENT[name] - 1e-6)
        assert np.all(array <= other[name] + 1e-6)


def test_who_has_never_seen_a_class_does_not_talk_others_out_of_it() -> None:
    ensemble = Ensemble(samples=1, classes=2, temperature=1.0)
    ensemble.ask(np.array([[4, 0]], np.float32), [500, 0])  # sure of class 0, the only one that it has ever seen
    ensemble.ask(np.array([[0, 2]], np.float32), [500, 500])  # knows both, and says 1
    assert ensemble.plain().argmax() == 0
    assert ensemble.histogram_weighted().argmax() == 1
    for mixed in (ensemble.plain(), ensemble.histogram_weighted()):
        np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-6)


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.floats(0.5, 5))
def test_ensemble_as_logits_has_its_probabilities_as_softmax(row: list[float], temperature: float) -> None:
    ensemble = Ensemble(samples=1, classes=3, temperature=temperature)
    ensemble.ask(np.array([row], np.float32), [1, 1, 1])
    back = soften(ensemble.as_logits(ensemble.plain()), temperature)
    np.testing.assert_allclose(back, ensemble.plain(), atol=1e-5)


def test_choice_refuses_a_fall_and_takes_the_best_of_the_rest() -> None:
    forgetful = Candidate(name="forgetful", accuracy=0.70, agreement=1.0)
    dull = Candidate(name="dull", accuracy=0.90, agreement=0.6)
    good = Candidate(name="good", accuracy=0.86, agreement=0.9)
    assert choose([forgetful, dull, good], 0.9, 0.05).candidate == good
    assert choose([forgetful, dull, good], 0.9, 0.01).candidate == dull
    refused = choose([forgetful], 0.9, 0.05)
    assert refused.candidate is None
    assert "0.900" in refused.reason
    assert choose([forgetful], None, 0.05).candidate == forgetful, "without validation data nothing is refused"
    timid = Candidate(name="timid", accuracy=0.9, agreement=1.0, fallback=True)
    assert choose([timid, good], 0.9, 0.05).candidate == good
    assert choose([timid, good], 0.9, 0.01).candidate == timid
    assert choose([Candidate(name="a"), Candidate(name="b")], None, 0.05).candidate == Candidate(name="a")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"devices": 2}, False),
        ({"devices": 1, "oldest": 800.0}, True),
        ({"devices": 0, "oldest": None}, False),
        ({"released": 995.0}, False),
        ({"released": 2000.0}, True),
        ({"merged_releases": 5}, False),
    ],
)
def test_when_a_merge_is_due(changed: dict[str, float | None], expected: bool) -> None:
    section = MergeSection(min_devices=3, max_wait_seconds=100, min_interval_seconds=10, max_releases=5)
    usual = {"now": 1000.0, "devices": 3, "oldest": 990.0, "released": 900.0, "merged_releases": 0}
    assert due(Situation(**{**usual, **changed}), section) is expected  # type: ignore[arg-type]
    assert not due(Situation(**{**usual, **changed}), MergeSection(enabled=False))  # type: ignore[arg-type]
