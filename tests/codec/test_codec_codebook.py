"""Codebooks: nearest values, an exact zero, a small error, and the same for everybody."""

from __future__ import annotations

import hashlib

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.codec import CodecError
from sanderling.codec.formats import Codebook
from sanderling.codec.formats.blocks import F32

FINITE = st.one_of(st.floats(-(2.0**126), 2.0**126, width=32), st.floats(-1, 1, width=32), st.just(0.0))
WEIGHTS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12), elements=FINITE)


def bell(count: int, seed: int = 0) -> F32:
    return (0.05 * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.integers(2, 40))
def test_every_weight_becomes_the_nearest_value(weights: F32, size: int) -> None:
    book = Codebook.fit(weights, size)
    assert 1 <= len(book.values) <= size and (np.diff(book.values) > 0).all() and (book.values == 0).any()
    codes = book.encode(weights)
    back = book.decode(codes)
    assert codes.shape == back.shape == weights.shape and back.dtype == np.float32
    moved = np.abs(back.astype(np.float64) - weights)
    nearest = np.abs(weights.astype(np.float64)[..., None] - book.values).min(axis=-1)
    assert np.array_equal(moved, nearest)
    assert (moved <= book.bound(weights)).all()
    assert not back[weights == 0].any()
    assert np.array_equal(book.encode(back), codes)


@given(st.lists(st.sampled_from([-2.5, -1.0, 0.125, 3.0, 1e-30, 1e30]), max_size=50))
def test_few_different_values_are_kept_exactly(values: list[float]) -> None:
    weights = np.array(values, np.float32)
    book = Codebook.fit(weights, 7)
    assert np.array_equal(book.decode(book.encode(weights)), weights)


@pytest.mark.parametrize(("size", "published"), [(4, 0.1175), (8, 0.03454), (16, 0.009497), (32, 0.002499)])
def test_normal_weights_come_near_the_best_error_there_is(size: int, published: float) -> None:
    # Max, "Quantizing for minimum distortion" (1960), table I. Zero takes one value from the even, symmetric optimum.
    weights = bell(100_000)
    book = Codebook.fit(weights, size)
    error = np.square(book.decode(book.encode(weights)) - weights).mean() / np.square(weights).mean()
    assert error < published * (1.7 if size == 4 else 1.25)


def test_pruned_weights_stay_pruned_and_the_others_do_not_vanish() -> None:
    weights = bell(20_000, 2)
    weights[np.abs(weights) < 0.08] = 0
    book = Codebook.fit(weights, 32)
    back = book.decode(book.encode(weights))
    assert np.array_equal(back == 0, weights == 0)
    assert np.square(back - weights).sum() < 2e-3 * np.square(weights).sum()


def test_outliers_do_not_cost_the_rest_its_values() -> None:
    weights = bell(10_000, 3)
    weights[:2] = 5, -7
    book = Codebook.fit(weights, 32)
    assert {-7.0, 5.0} <= set(book.values.tolist())
    rest = weights[2:]
    assert np.square(book.decode(book.encode(rest)) - rest).mean() < 0.05 * np.square(rest).mean()


def test_what_has_no_place() -> None:
    for bad in (np.nan, np.inf, -(2.0**127)):
        with pytest.raises(CodecError, match="NaN or infinity"):
            Codebook.fit(np.array([1, bad, 2], np.float32), 4)
    for size in (1, 257):
        with pytest.raises(CodecError, match="2 to 256"):
            Codebook.fit(np.ones(3, np.float32), size)
    with pytest.raises(CodecError, match="beyond a codebook of 3"):
        Codebook(np.array([-1, 0, 1], np.float32)).decode(np.array([3], np.uint8))
    assert Codebook.fit(np.zeros(0, np.float32), 4).values.tolist() == [0.0]


def test_the_same_everywhere() -> None:
    numbers = np.arange(1, 20_001, dtype=np.int64) * 2_654_435_761 % 65_537 - 32_768
    weights = (numbers**3 * 2.0**-40).astype(np.float32)
    book = Codebook.fit(weights, 24)
    found = hashlib.sha256(book.values.astype("<f4").tobytes() + book.encode(weights).tobytes()).hexdigest()
    assert found == "7ba4d7bec21cda1e3444c9b8d28e22926df219fd06ef824a23295c51f01b59cc"
