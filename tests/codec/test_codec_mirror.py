"""Lines that are even or odd about their middle: found, worth it, and exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sanderling.codec import decode_integers, encode_integers
from sanderling.codec.coding import mirror

Integers = npt.NDArray[np.signedinteger[Any]]

HOWS = (mirror.EVEN, mirror.ODD, mirror.PERIOD_EVEN, mirror.PERIOD_ODD)


def mirrored(how: int, lines: int, length: int) -> Integers:
    """Random lines (lines, length) that are mirrored exactly."""
    values = np.random.default_rng(how).normal(0, 20, (lines, length)).round().astype(np.int32)
    period = how in (mirror.PERIOD_EVEN, mirror.PERIOD_ODD)
    for place in range(length):
        image = length - place if period else length - 1 - place
        if image < place:
            values[:, place] = values[:, image] * (1 if how in (mirror.EVEN, mirror.PERIOD_EVEN) else -1)
    return values


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("length", [8, 9, 64, 65])
def test_finds_how_lines_are_mirrored_and_takes_their_right_sides_away(how: int, length: int) -> None:
    values = mirrored(how, 12, length)
    assert mirror.find(values, 1) == how
    left = mirror.subtract(values, 1, how)
    assert np.count_nonzero(left[:, length // 2 + 1 :]) == 0
    assert np.array_equal(mirror.add(left, 1, how), values)


@pytest.mark.parametrize("how", HOWS)
def test_a_mirrored_filter_bank_takes_little_more_than_its_half(how: int) -> None:
    bank = mirrored(how, 36, 256).astype(np.int8).reshape(36, 1, 1, 256)
    whole, half = encode_integers({"w": bank}), encode_integers({"w": bank[..., :129]})
    assert len(whole) < 1.05 * len(half)
    assert np.array_equal(decode_integers(whole)["w"], bank)


def test_the_taps_of_each_channel_are_a_line() -> None:
    kernels = mirrored(mirror.EVEN, 8 * 16, 9).reshape(8, 16, 3, 3)
    assert mirror.find(kernels.reshape(8, 144), 9) == mirror.EVEN
    assert np.array_equal(decode_integers(encode_integers({"w": kernels}))["w"], kernels)


@pytest.mark.parametrize("center", [0, 100])
def test_what_is_not_mirrored_is_left_alone(center: int) -> None:
    source = np.random.default_rng(1)
    values = source.normal(center, 20, (50, 64)).round().astype(np.int32)
    assert mirror.find(values, 1) == mirror.NOT
    assert mirror.find(values * source.choice([-1, 1], (50, 1)).astype(np.int32), 1) == mirror.NOT
    assert mirror.find(mirrored(mirror.EVEN, 12, 7), 1) == mirror.NOT
    assert mirror.find(mirrored(mirror.EVEN, 12, 64).astype(np.int64), 1) == mirror.NOT


@pytest.mark.parametrize("peak", [2**29 - 1, 2**31 - 1, 2**62])
def test_large_values_come_back(peak: int) -> None:
    values = np.sign(mirrored(mirror.ODD, 20, 40).astype(np.int64)) * peak
    assert np.array_equal(decode_integers(encode_integers({"w": values}))["w"], values)
