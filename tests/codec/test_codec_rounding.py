"""Rounding by error and bits: promises hold for any finite tensors, bytes are kept to, and it pays."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sanderling.codec import CodecError, decode_delta, encode_delta, encode_integers
from sanderling.codec.delta import encode_each
from sanderling.codec.quantize import keep
from sanderling.codec.steps import dequantize

F32 = npt.NDArray[np.float32]

#: Any magnitude that a float32 tensor of a delta may have, in one tensor at once.
WILD = st.one_of(
    st.floats(-(2.0**119), 2.0**119, width=32),
    st.floats(-(2.0**-126), 2.0**-126, width=32, allow_subnormal=True),
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, 1e-3]),
)
TENSORS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9), elements=WILD)
QUALITIES = st.one_of(st.floats(0.001, 0.9999), st.sampled_from([0.5, 0.9, 0.99]))


def outer(seed: int, rows: int, columns: int, spread: float = 1.0) -> F32:
    """A delta like that of a layer: normal values, rows and columns of different sizes."""
    generator = np.random.default_rng(seed)
    sizes = [np.exp(spread * generator.standard_normal(shape)) for shape in ((rows, 1), (1, columns))]
    return (1e-3 * sizes[0] * sizes[1] * generator.standard_normal((rows, columns))).astype(np.float32)


def energy(tensor: npt.NDArray[np.floating]) -> float:
    return float(np.square(tensor.astype(np.float64)).sum())


def exact(tensor: F32) -> Fraction:
    return sum((Fraction(float(value)) ** 2 for value in tensor.reshape(-1)), Fraction(0))


@settings(max_examples=80, deadline=None)
@given(st.lists(TENSORS, min_size=1, max_size=4), QUALITIES)
def test_the_promise_holds_for_any_finite_tensors(tensors: list[F32], quality: float) -> None:
    # The promise is about energy on a scale of 20 bits, which is what the slack is for.
    results = list(keep(tensors, quality))
    lost = sum((exact(found.residual) for found in results), Fraction(0))
    assert lost <= sum(map(exact, tensors), Fraction(0)) * Fraction(1 - quality) * (1 + Fraction(1, 1 << 14))
    for tensor, found in zip(tensors, results, strict=True):
        assert found.levels.shape == tensor.shape
        decoded = np.zeros(tensor.shape, np.float32) if found.step is None else dequantize(found.levels, found.step)
        assert np.array_equal(decoded + found.residual, tensor)
        assert np.array_equal(tensor - decoded, found.residual)
        assert not found.levels[tensor == 0].any()
        assert np.abs(found.levels).max(initial=0) < 1 << 18


@pytest.mark.parametrize("quality", [0.3, 0.9, 0.999, 0.9999])
@pytest.mark.parametrize("kind", ["constant", "two values", "outlier", "one row", "ramp", "heavy", "large"])
def test_shapes_of_distributions(kind: str, quality: float) -> None:
    generator = np.random.default_rng(3)
    made: dict[str, Callable[[], npt.NDArray[np.floating]]] = {
        "constant": lambda: np.full((40, 50), 0.3),
        "two values": lambda: np.where(generator.random((40, 50)) < 0.1, 1.0, -1e-3),
        "outlier": lambda: np.append(generator.standard_normal(4999) * 1e-4, 1.0).reshape(100, 50),
        "one row": lambda: np.concatenate([generator.standard_normal((1, 200)), np.zeros((99, 200))]),
        "ramp": lambda: np.linspace(-1, 1, 4097),
        "heavy": lambda: generator.standard_cauchy((80, 60)),
        "large": lambda: outer(4, 700, 801),
    }
    tensor = made[kind]().astype(np.float32)
    [found] = keep([tensor], quality)
    lost = energy(found.residual) / energy(tensor)
    assert lost <= (1 - quality) * (1 + 1e-4)
    if kind == "large" and quality < 0.9999:
        assert lost > 0.75 * (1 - quality)  # nor is more sent than was asked for


def nearest(delta: dict[str, F32], error: float) -> int:
    """Bytes of rounding to the nearest with one step that makes this error."""
    low, high = 0.0, max(float(np.abs(value).max()) for value in delta.values())
    for _ in range(40):
        step = (low + high) / 2
        made = sum(energy(value - np.rint(value / step) * step) for value in delta.values())
        low, high = (step, high) if made <= error else (low, step)
    return len(encode_integers({n: np.rint(value / low).astype(np.int32) for n, value in delta.items()}))


@pytest.mark.parametrize("quality", [0.4, 0.7])
def test_it_takes_a_tenth_less_than_rounding_to_the_nearest_at_equal_error(quality: float) -> None:
    delta = {"w": outer(1, 300, 200, 0.5)}
    blob, residual = encode_delta(delta, quality=quality)
    assert len(blob) < 0.9 * nearest(delta, energy(residual["w"]))


@pytest.mark.parametrize("target", [2100, 4000, 12_000, 25_000])
def test_target_bytes_are_kept_to_and_nearly_used(target: int) -> None:
    delta = {"a": outer(1, 100, 200), "b": 0.1 * outer(2, 50, 64), "c": outer(3, 1, 500), "z": np.zeros(9, np.float32)}
    previous = {name: 0.1 * value for name, value in delta.items()}
    blob, residual = encode_delta(delta, previous, target_bytes=target)
    assert 0.96 * target <= len(blob) <= target
    decoded = decode_delta(blob)
    assert list(residual) == list(decoded) == list(delta)
    for name, value in delta.items():
        assert np.array_equal(decoded[name] + residual[name], value + previous[name])


def test_more_bytes_leave_less_error() -> None:
    delta = {"a": outer(5, 64, 120), "b": outer(6, 30, 30)}
    errors = []
    for target in range(200, 6500, 600):
        blob, residual = encode_delta(delta, target_bytes=target)
        assert len(blob) <= target
        errors.append(sum(map(energy, residual.values())))
    assert all(after < before for before, after in itertools.pairwise(errors))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text("ab.1", max_size=5), TENSORS, max_size=3), st.integers(1, 600))
def test_target_bytes_are_never_exceeded(delta: dict[str, F32], target: int) -> None:
    try:
        blob, residual = encode_delta(delta, target_bytes=target)
    except CodecError as error:
        smallest = int(str(error).split(" takes ")[1].split()[0])
        assert target < smallest == len(encode_delta(delta, target_bytes=smallest)[0])
        return
    assert len(blob) <= target
    for name, decoded in decode_delta(blob).items():
        assert np.array_equal(decoded + residual[name], delta[name])


def test_bytes_go_where_they_do_most() -> None:
    delta = {"strong": outer(7, 100, 100), "weak": 0.01 * outer(8, 100, 100)}
    for residual in (encode_delta(delta, quality=0.7)[1], encode_delta(delta, target_bytes=800)[1]):
        assert energy(residual["strong"]) < 0.4 * energy(delta["strong"])
        assert np.array_equal(residual["weak"], delta["weak"])  # its turn comes when its residual has grown


def test_each_tensor_may_keep_its_own_quality() -> None:
    delta = {"strong": outer(7, 100, 100), "weak": 0.01 * outer(8, 100, 100), "none": np.zeros((0, 3), np.float32)}
    decoded = decode_delta(encode_each(delta, 0.8))
    assert list(decoded) == list(delta)
    for name in ("strong", "weak"):
        assert 0.75 < 1 - energy(delta[name] - decoded[name]) / energy(delta[name]) < 0.85


def test_a_target_that_is_more_than_enough() -> None:
    delta = {"w": outer(9, 20, 20)}
    blob, residual = encode_delta(delta, target_bytes=1 << 20)
    assert len(blob) < 4 * 400
    assert energy(residual["w"]) < 1e-8 * energy(delta["w"])


def test_what_cannot_be_met_says_what_can() -> None:
    delta = {"layer.weight": outer(1, 30, 30)}
    with pytest.raises(CodecError, match="even if nothing is sent, this delta takes"):
        encode_delta(delta, target_bytes=5)


def test_levels_are_the_same_everywhere() -> None:
    """Inputs from whole numbers, and a digest that no platform and no version of numpy may change."""
    numbers = np.arange(1, 60_001, dtype=np.int64)
    mixed = (numbers * 2_654_435_761 >> 3) % 65_537 - 32_768
    shapes = {"a": (100, 200), "b": (200, 25, 3, 2), "c": (9_000,), "d": (30, 33)}
    digest, start = hashlib.sha256(), 0
    for quality in (0.3, 0.9, 0.99):
        tensors = []
        for shape in shapes.values():
            size = int(np.prod(shape))
            values = mixed[start : start + size].reshape(shape)
            scale = 2.0 ** -(numbers[: shape[0]] % 7).reshape(-1, *[1] * (len(shape) - 1))
            tensors.append((values**3 * 2.0**-60 * scale).astype(np.float32))
        for found in keep(tensors, quality):
            digest.update(found.levels.astype("<i4").tobytes() + str(found.step).encode())
    assert digest.hexdigest() == "993505f20e3ea3da0710b5dad8257583b90ad9938b7b04f63ae2cca4a5162f00"
