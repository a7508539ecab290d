"""Deltas: quality is kept, nothing is lost, zero stays zero, and both ends agree to the last bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sanderling.codec import CodecError, accumulate, decode_delta, decode_integers, encode_delta, encode_integers

F32 = npt.NDArray[np.float32]

FLOATS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=8),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def network(seed: int, scale: float = 1e-3) -> dict[str, F32]:
    """Normal deltas in the shapes of a small depthwise-separable network of 12 k weights."""
    generator = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"stem.weight": (24, 6, 5), "stem.bias": (24,)}
    for index, (narrow, wide, kernel) in enumerate([(24, 32, 9), (32, 48, 7), (48, 64, 5), (64, 64, 5)]):
        shapes |= {f"blocks.{index}.depthwise.weight": (narrow, 1, kernel), f"blocks.{index}.depthwise.bias": (narrow,)}
        shapes |= {f"blocks.{index}.pointwise.weight": (wide, narrow, 1), f"blocks.{index}.pointwise.bias": (wide,)}
    shapes |= {"head.weight": (7, 64), "head.bias": (7,)}
    return {name: (scale * generator.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def energy(tensor: F32) -> float:
    return float(np.square(tensor.astype(np.float64)).sum())


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abc.12", max_size=8), FLOATS, max_size=4), st.floats(0.01, 0.999))
def test_decoded_and_residual_are_the_delta_exactly(delta: dict[str, F32], quality: float) -> None:
    blob, residual = encode_delta(delta, quality=quality)
    decoded = decode_delta(blob)
    assert list(decoded) == list(residual) == list(delta)
    for name, tensor in delta.items():
        assert decoded[name].dtype == residual[name].dtype == np.float32
        assert decoded[name].shape == residual[name].shape == tensor.shape
        assert np.array_equal(decoded[name] + residual[name], tensor)
        assert np.array_equal(tensor - decoded[name], residual[name])
        assert not decoded[name][tensor == 0].any()
    assert encode_delta(delta, quality=quality)[0] == blob


@pytest.mark.parametrize("quality", [0.1, 0.5, 0.9, 0.95, 0.99, 0.999])
def test_quality_is_the_share_of_energy_that_arrives(quality: float) -> None:
    delta = network(1)
    residual = encode_delta(delta, quality=quality)[1]
    sizes = [len(encode_delta(delta, quality=q)[0]) for q in (quality * 0.7, quality)]
    assert sizes[0] < sizes[1]
    lost = sum(map(energy, residual.values())) / sum(map(energy, delta.values()))
    assert lost <= 1 - quality
    assert lost > 0.85 * (1 - quality)  # nor is more sent than was asked for


def test_nothing_is_lost_over_many_rounds() -> None:
    # Multiples of 2**-20 below 2**-4 add up exactly in float32, so the identity must hold exactly too.
    generator = np.random.default_rng(5)
    shapes = {"w": (30, 20), "b": (20,)}
    told = {name: np.zeros(shape, np.float64) for name, shape in shapes.items()}
    received = {name: np.zeros(shape, np.float64) for name, shape in shapes.items()}
    residual: dict[str, F32] | None = None
    for _ in range(20):
        delta = {n: (generator.integers(-999, 1000, s) * 2.0**-20).astype(np.float32) for n, s in shapes.items()}
        blob, residual = encode_delta(delta, residual, quality=0.6)
        accumulate(blob, received)
        for name in told:
            told[name] += delta[name]
    assert residual is not None
    for name, tensor in told.items():
        assert np.array_equal(received[name] + residual[name], tensor)


def test_a_constant_push_gets_through_however_small() -> None:
    """What one round rounds to zero adds up in the residual until it is sent."""
    push = np.array([1.0, 1e-2, -1e-3] + [0.0] * 5, np.float32)
    received = {"w": np.zeros(8)}
    residual: dict[str, F32] | None = None
    for _ in range(150):
        blob, residual = encode_delta({"w": push}, residual, quality=0.5)
        accumulate(blob, received)
    assert np.allclose(received["w"] / 150, push, atol=2 / 150)
    assert received["w"][1] > 0


def test_a_dense_delta_of_the_demo_takes_a_twelfth_at_most() -> None:
    delta = network(2)  # normal values are the hardest to compress at a given energy
    float32 = sum(tensor.nbytes for tensor in delta.values())
    blob = encode_delta(delta)[0]
    assert len(blob) * 12 <= float32
    heavy = {name: (tensor**3 * 1e6).astype(np.float32) for name, tensor in delta.items()}
    assert len(encode_delta(heavy)[0]) * 20 <= float32


def test_zero_deltas_and_no_tensors() -> None:
    delta = {"w": np.zeros((50, 50), np.float32), "b": np.zeros(0, np.float32)}
    blob, residual = encode_delta(delta)
    assert len(blob) < 30
    assert not decode_delta(blob)["w"].any() and not residual["w"].any()
    assert decode_delta(encode_delta({})[0]) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    with pytest.raises(CodecError, match=r"'w'.*diverged"):
        encode_delta({"w": np.array([0, value], np.float32)})
    with pytest.raises(CodecError, match=r"'w'.*diverged"):
        encode_delta({"w": np.zeros(2, np.float32)}, {"w": np.array([0, value], np.float32)})


def test_wrong_arguments_are_refused() -> None:
    delta = {"w": np.ones((2, 3), np.float32)}
    for quality in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(CodecError, match="quality"):
            encode_delta(delta, quality=quality)
    with pytest.raises(CodecError, match="float64"):
        encode_delta({"w": np.ones(3)})  # type: ignore[dict-item]
    with pytest.raises(CodecError, match="start with None"):
        encode_delta(delta, {"v": delta["w"]})
    with pytest.raises(CodecError, match="start with None"):
        encode_delta(delta, {"w": np.ones((3, 2), np.float32)})
    with pytest.raises(CodecError, match="integers"):
        decode_delta(encode_integers({"w": [1]}))
    with pytest.raises(CodecError, match="delta"):
        decode_integers(encode_delta(delta)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_accumulate_adds_in_place_with_a_weight(dtype: type[np.floating]) -> None:
    delta = network(3)
    blob, _ = encode_delta(delta)
    decoded = decode_delta(blob)
    into = {name: np.ones(tensor.shape, dtype) for name, tensor in delta.items()} | {"other": np.zeros(2, dtype)}
    same = dict(into)
    accumulate(blob, into, 0.25)
    for name, tensor in decoded.items():
        assert into[name] is same[name] and into[name].dtype == dtype
        assert np.array_equal(into[name], 1 + dtype(0.25) * tensor)
    assert not into["other"].any()


def test_accumulate_changes_nothing_if_anything_is_wrong() -> None:
    blob, _ = encode_delta({"a": np.ones(4, np.float32), "b": np.ones((2, 2), np.float32)})
    for other in ({"a": np.zeros(4)}, {"a": np.zeros(4), "b": np.zeros(4)}):
        with pytest.raises(CodecError, match="another model"):
            accumulate(blob, other)
        assert not other["a"].any()
    damaged = {"a": np.zeros(4), "b": np.zeros((2, 2))}
    with pytest.raises(CodecError):
        accumulate(blob[:-1], damaged)
    assert not damaged["a"].any()
