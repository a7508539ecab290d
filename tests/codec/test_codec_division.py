"""Structure of rows and columns is found and worth its bits; what is done to signs and rows can be undone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sanderling.codec.coding import arrays, template
from sanderling.codec.coding.signs import Signs, find
from sanderling.codec.limits import DEFAULT_LIMITS

Integers = npt.NDArray[np.signedinteger[Any]]
MATRICES = hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-5, 5))


def size(*values: Integers) -> int:
    """Bytes of arrays in one group, after they came back."""
    blob = arrays.encode(values)
    decoded = arrays.decode(blob, [value.shape for value in values], DEFAULT_LIMITS)
    assert all(np.array_equal(a, b) for a, b in zip(decoded, values, strict=True))
    return len(blob)


def product(seed: int, rows: int, columns: int, scale: float) -> Integers:
    """Laplacian values of scales that are a product."""
    source = np.random.default_rng(seed)
    row, column = (2.0 ** source.normal(0, 1.5, count) for count in (rows, columns))
    return np.rint(np.multiply.outer(row, column) * source.laplace(0, scale, (rows, columns))).astype(np.int64)


@pytest.mark.parametrize("scale", [0.2, 3.0])
def test_scales_of_rows_and_columns_pay(scale: float) -> None:
    values = product(1, 200, 150, scale)
    shuffled = np.random.default_rng(2).permutation(values.reshape(-1)).reshape(values.shape)
    assert size(values) < 0.9 * size(shuffled)


def test_lines_of_nothing_cost_next_to_nothing() -> None:
    values = np.random.default_rng(3).integers(-2, 3, (100, 80))
    spread = np.zeros((400, 320), np.int64)
    spread[::4, ::4] = values
    assert size(spread) < size(values) + 720 // 8 + 40
    assert size(np.zeros((500, 500), np.int64)) < 10


def test_signs_of_products_cost_less_than_a_bit_each() -> None:
    source = np.random.default_rng(4)
    signs = np.multiply.outer(source.choice([-1, 1], 120), source.choice([-1, 1], 100))
    values = signs * source.integers(1, 4, (120, 100)) * source.choice([1, 1, 1, 1, 1, 1, 1, 1, 1, -1], (120, 100))
    assert size(values) < size(np.abs(values)) + 0.6 * values.size / 8


def test_rows_that_are_alike_share_a_template() -> None:
    source = np.random.default_rng(5)
    row = source.integers(-100, 100, 300)
    values = np.multiply.outer(source.random(200) < 0.8, row) + (source.random((200, 300)) < 0.01)
    assert size(values) < 200 * 300 // 50


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int64, hnp.array_shapes(max_dims=4, max_side=8), elements=st.integers(-9, 9)), st.integers(1, 40))
def test_shape_never_costs_much(values: Integers, repeat: int) -> None:
    shaped = np.concatenate([values] * repeat)
    assert size(shaped) <= size(shaped.reshape(-1)) + 24


@given(MATRICES, st.data())
def test_signs_are_restored(matrix: Integers, data: st.DataObject) -> None:
    rows, columns = (np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for n in matrix.shape)
    for signs in (Signs(rows, columns), Signs(None, columns, True), Signs(chained=True), find(matrix)):
        assert np.array_equal(signs.restore(signs.apply(matrix.copy()).copy()), matrix)


@given(MATRICES)
def test_templates_are_added_again(matrix: Integers) -> None:
    found = template.find(matrix)
    if found is not None:
        assert np.array_equal(found.add(found.subtract(matrix)), matrix)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (1, 1, 1, 1), (3, 0, 2), (7,), (40, 3, 3, 3), (3, 3, 8, 40)])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_extremes_of_all_shapes_come_back(shape: tuple[int, ...], dtype: type) -> None:
    limits = np.iinfo(dtype)
    source = np.random.default_rng(6)
    size(source.choice(np.array([limits.min, 0, limits.max, 1], dtype), shape))
    size(np.full(shape, limits.max, dtype), np.full(shape, limits.min, dtype))
