"""Integers come back as they went in, at sizes that one can reason about."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sanderling.codec import CodecError, CodecLimits, decode_integers, encode_integers
from sanderling.codec.coding import plan, ways
from sanderling.codec.coding.division import Shape
from sanderling.codec.coding.modes import RUNS, TUPLES

Arrays = dict[str, npt.NDArray[np.generic]]

DTYPES = st.one_of(
    hnp.integer_dtypes(endianness="?"), hnp.unsigned_integer_dtypes(endianness="?"), hnp.boolean_dtypes()
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


def check(arrays: Arrays) -> bytes:
    blob = encode_integers(arrays)
    found = decode_integers(blob)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)
        assert found[name].flags.writeable
    assert encode_integers(arrays) == blob
    return blob


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20), hnp.arrays(DTYPES, SHAPES), max_size=6
    )
)
def test_any_arrays_come_back(arrays: Arrays) -> None:
    check(arrays)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.003, 0.05, 0.3, 0.6, 1.0]),
    st.sampled_from([1, 2, 9, 300, 10**6, 2**60]),
    st.integers(1, 20_000),
    st.sampled_from([0, -7, 2**62]),
)
def test_distributions_of_all_kinds_come_back(seed: int, density: float, scale: int, count: int, base: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(-scale, scale, count, endpoint=True) * (generator.random(count) < density) + base
    check({"w": values.astype(np.int64), "first": values[:5].copy()})


@pytest.mark.parametrize("count", [1, 2, 3, 2047, 2048, 2049, 4096, 6145])
@pytest.mark.parametrize("zeros", [0.0, 0.6, 0.97])
def test_lane_and_tuple_boundaries(count: int, zeros: float) -> None:
    generator = np.random.default_rng(count)
    check({"w": generator.integers(-2, 3, count) * (generator.random(count) >= zeros)})


def test_slices_and_transposes_are_taken_in_c_order() -> None:
    matrix = np.arange(60).reshape(6, 10)
    check({"t": matrix.T, "s": matrix[::2, ::-3]})


@pytest.mark.parametrize(("one_in", "above_entropy"), [(2, 1.06), (5, 1.06), (20, 1.06), (100, 1.08), (1000, 1.25)])
def test_the_one_bit_floor_does_not_bite(one_in: int, above_entropy: float) -> None:
    generator = np.random.default_rng(one_in)
    values = generator.choice([-2, -1, 1, 2], 100_000, p=[0.1, 0.4, 0.4, 0.1]) * (
        generator.random(100_000) < 1 / one_in
    )
    counts = np.unique(values, return_counts=True)[1]
    entropy = float(-(counts * np.log2(counts / counts.sum())).sum()) / 8
    assert len(check({"w": values})) < above_entropy * entropy + 60


def test_constant_arrays_cost_next_to_nothing() -> None:
    assert len(check({"w": np.full((1000, 1000), -5, np.int8)})) < 30


def test_incompressible_bytes_grow_little() -> None:
    values = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8)
    assert len(check({"w": values})) < 101_000


def test_names_and_shapes_of_a_network_take_few_bytes_each() -> None:
    arrays: Arrays = {}
    for block in range(12):
        for part, shape in {"depthwise": (64, 1, 5), "pointwise": (64, 64, 1)}.items():
            arrays[f"blocks.{block}.{part}.weight"] = np.zeros(shape, np.int8)
            arrays[f"blocks.{block}.{part}.bias"] = np.zeros(64, np.int8)
    assert len(check(arrays)) < 5 * len(arrays)


def test_more_sequences_than_arrays_differ_are_never_made() -> None:
    alike = [np.random.default_rng(i).integers(-3, 4, 200) for i in range(8)]
    other = np.random.default_rng(9).integers(-1000, 1000, 5000)
    planned, total = plan.plan([(Shape.of(a.shape), a) for a in (*alike, other)])
    assert total == 2
    assert len({each.code for each in planned[:8]}) == 1
    assert planned[8].code != planned[0].code


def test_each_mode_is_used_where_it_is_best() -> None:
    generator = np.random.default_rng(3)
    dense, _ = ways.choose(generator.integers(-100, 100, 20_000))
    middling, _ = ways.choose(np.rint(generator.laplace(0, 0.8, 20_000)).astype(np.int64))
    rare, _ = ways.choose(generator.integers(-1, 2, 20_000) * (generator.random(20_000) < 0.02))
    assert (dense.way.mode, dense.way.extent) == (TUPLES, 1)
    assert middling.way.mode == TUPLES and middling.way.extent > 1
    assert rare.way.mode == RUNS


@pytest.mark.parametrize("value", [np.zeros(3, np.float32), np.array(["a"]), np.array([None]), np.zeros(2, complex)])
def test_other_types_are_refused_by_name(value: npt.NDArray[np.generic]) -> None:
    with pytest.raises(CodecError, match=r"'layer'.*not integers"):
        encode_integers({"layer": value})


def test_limits_are_checked_on_both_sides() -> None:
    arrays: Arrays = {"a": np.zeros(1000, np.int32), "b": np.zeros(10, np.int8)}
    blob = encode_integers(arrays)
    for limits in (
        CodecLimits(elements=1009), CodecLimits(decoded_bytes=4009), CodecLimits(arrays=1), CodecLimits(dimensions=0),
        CodecLimits(name_bytes=0), CodecLimits(names_bytes=1),
    ):  # fmt: skip
        with pytest.raises(CodecError):
            decode_integers(blob, limits=limits)
        with pytest.raises(CodecError):
            encode_integers(arrays, limits=limits)
    with pytest.raises(CodecError, match="at most 9 are read"):
        decode_integers(blob, limits=CodecLimits(blob_bytes=9))
    with pytest.raises(CodecError, match="Unicode"):
        encode_integers({"\ud800": np.zeros(1, np.int8)})


def test_topics_and_messages_do_not_load_numpy() -> None:
    modules = ", ".join(f"sanderling.codec{name}" for name in ("", ".cli", ".topics", ".messages", ".limits"))
    code = f"import sys, {modules}; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
