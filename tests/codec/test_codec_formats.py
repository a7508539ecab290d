"""Number formats: what holds for every one of them, and the casts against other implementations."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.codec import CodecError
from sanderling.codec.formats import BLOCK, E4M3, E5M2, FORMATS, Fixed, Float8, number_format
from sanderling.codec.formats.blocks import F32, TINY
from sanderling.codec.formats.dynamic import magnitudes
from sanderling.codec.formats.fixed import adapted, overflow_rates

finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, st.integers(0, 3 * BLOCK + 5), elements=finite)
names = st.sampled_from(FORMATS)


def spread(count: int, seed: int = 0) -> F32:
    """Numbers of all sizes and both signs."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(count) * 10.0 ** rng.uniform(-9, 3, count)).astype(np.float32)


def of_kind(name: str, values: F32) -> F32:
    return np.abs(values) if name.endswith("u") else values


@given(names, arrays)
@settings(max_examples=300, deadline=None)
def test_errors_are_within_the_bound_and_packing_again_changes_nothing(name: str, values: F32) -> None:
    kind, values = number_format(name), of_kind(name, values)
    packed = kind.pack(values)
    assert packed.nbytes == kind.nbytes(values.size)
    given_back = kind.unpack(packed)
    assert (np.abs(given_back.astype(float) - values) <= kind.bound(values)).all()
    assert (given_back[values == 0] == 0).all()
    assert np.array_equal(kind.unpack(kind.pack(given_back)), given_back)


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_of_all_sizes(name: str) -> None:
    kind = number_format(name)
    values = of_kind(name, spread(40 * BLOCK + 77))
    packed = kind.pack(values)
    given_back = kind.unpack(packed)
    assert (np.abs(given_back.astype(float) - values) <= kind.bound(values)).all()
    assert np.array_equal(kind.unpack(kind.pack(given_back)), given_back)
    # order is kept inside a block
    for start in range(0, values.size, BLOCK):
        order = np.argsort(values[start : start + BLOCK], kind="stable")
        assert (np.diff(given_back[start : start + BLOCK][order]) >= 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_are_independent_and_may_be_rewritten_in_place(name: str) -> None:
    kind = number_format(name)
    values = of_kind(name, spread(4 * BLOCK + 9))
    packed = kind.pack(values)
    kind.write(packed, 2 * BLOCK, values[:BLOCK])
    kind.write(packed, 4 * BLOCK, values[:9])
    expected = np.concatenate([values[: 2 * BLOCK], values[:BLOCK], values[3 * BLOCK : 4 * BLOCK], values[:9]])
    assert np.array_equal(kind.unpack(packed), kind.unpack(kind.pack(expected)))
    part = np.empty(BLOCK, np.float32)
    kind.read(packed, 2 * BLOCK, part)
    assert np.array_equal(part, kind.unpack(kind.pack(values[:BLOCK])))


@pytest.mark.parametrize("name", FORMATS)
def test_what_has_no_place(name: str) -> None:
    kind = number_format(name)
    for bad in (np.nan, np.inf):
        with pytest.raises(CodecError, match="NaN or infinity"):
            kind.pack(np.array([1, bad, 2], np.float32))
    assert kind.unpack(kind.pack(np.array([], np.float32))).size == 0
    assert kind.nbytes(0) == 0
    zeros = kind.pack(np.zeros(300, np.float32))
    assert not zeros.scales.any() and not kind.unpack(zeros).any()
    small = np.full(3, TINY / 2, np.float32)
    assert not kind.unpack(kind.pack(small)).any()
    huge = np.array([1.99 * 2.0**126, 0, 1], np.float32)
    assert np.isfinite(kind.unpack(kind.pack(huge))).all()
    with pytest.raises(CodecError, match="2\\^127"):
        kind.pack(np.array([2.0**127], np.float32))
    with pytest.raises(CodecError, match="no number format 'int3'"):
        number_format("int3")


def test_signs_and_extremes_of_the_dynamic_map() -> None:
    kind = number_format("dynamic8")
    values = np.array([-3, 0, 3e-6, 1.5], np.float32)
    back = kind.unpack(kind.pack(values))
    assert back[0] == -3 and back[1] == 0 and 0 < back[2] < 1e-5
    assert np.array_equal(kind.unpack(kind.pack(-values)), -back)
    assert len(magnitudes(True)) == 128 and len(magnitudes(False)) == 256
    # the map as published, without its last magnitude: middles of 2^k intervals in decade k
    theirs = [10.0 ** (k - 6) * (0.1 + 0.9 * (i + 0.5) / 2**k) for k in range(7) for i in range(2**k)]
    np.testing.assert_allclose(magnitudes(True)[1:-1], theirs[:-1], rtol=1e-6)


def test_a_positive_value_never_becomes_zero_without_signs() -> None:
    kind = number_format("dynamic8u")
    values = np.array([1, 1e-30, 1e-12, 0], np.float32)
    assert (kind.unpack(kind.pack(values)) > 0).tolist() == [True, True, True, False]
    assert kind.unpack(kind.pack(np.array([-1, 1], np.float32))).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("kind", "theirs"), [(E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2)], ids=lambda k: str(k)
)
def test_casts_are_those_of_ml_dtypes(kind: Float8, theirs: type) -> None:
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(kind.table, codes.view(theirs).astype(np.float32))
    bits = np.concatenate([np.arange(0, 2**32, 40009, dtype=np.uint64).astype(np.uint32), np.arange(0, 2**32, 2**19,
                           dtype=np.uint64).astype(np.uint32)])  # fmt: skip
    values = bits.view(np.float32)
    inside = np.clip(values, -kind.largest, kind.largest)  # saturation is ours; theirs overflows
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = inside.astype(theirs).view(np.uint8)
    given_codes = kind.cast(values)
    numbers = ~np.isnan(values)
    assert np.array_equal(given_codes[numbers], wanted[numbers])
    assert np.isnan(kind.value(given_codes[~numbers])).all()
    middles = (kind.table[:100] + kind.table[1:101]) / 2  # ties go to the even code
    assert (kind.cast(middles.astype(np.float32)) % 2 == 0).all()


@given(hnp.arrays(np.float32, (3, 64), elements=finite), st.sampled_from([0.0, 1 / 64, 0.1]))
@settings(max_examples=100, deadline=None)
def test_adapting_by_overflow_ends_where_the_format_begins(values: F32, rate: float) -> None:
    kind = Fixed(rate)
    steps = kind.scales(values)
    at_work = steps > 2.0**-60
    exponents = np.full(3, 3, np.int32)
    for _ in range(240):
        exponents = adapted(values, exponents, rate)
    rates = overflow_rates(values, exponents)
    assert (rates <= rate).all()
    sparse = (np.abs(values) >= TINY).sum(axis=1) <= rate * 64  # there the format keeps the few, the rule drops them
    kept = at_work & ~sparse
    assert np.array_equal(np.ldexp(np.float32(1), exponents)[kept], steps[kept])


def test_fixed_point_may_cut_off_a_few_to_make_the_rest_finer() -> None:
    values = np.linspace(-1, 1, BLOCK, dtype=np.float32)
    values[7] = 1000
    strict, loose = Fixed(), Fixed(2 / BLOCK)
    rest = np.arange(BLOCK) != 7
    errors = [np.abs(k.unpack(k.pack(values)) - values) for k in (strict, loose)]
    assert errors[1][rest].max() < errors[0][rest].max() / 100
    assert (errors[1] <= loose.bound(values)).all()
    with pytest.raises(CodecError, match="overflow rate"):
        Fixed(1.0)
