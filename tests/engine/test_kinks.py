"""Slopes exactly at kinks and beside them: piecewise rules are written as products with masks, which must be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sanderling.engine import onnxio
from sanderling.engine.checker import pull_back
from sanderling.engine.graph import Builder, TensorType

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the cross-checks need it")
F = torch.nn.functional

KINKS = [-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0]
TINY = float(np.finfo(np.float32).tiny)
POINTS = np.array(
    sorted(
        {
            *(float(np.nextafter(np.float32(k), np.float32(way))) for k in KINKS if k for way in (-99, 99)),
            *KINKS, TINY, -TINY, 1e-30, -1e-30, 0.5, -0.5, 2.0, -2.0, 1e30, -1e30,
        }
    ),
    np.float32,
)  # fmt: skip


def slopes(op: str, *constants: float | None, points: Any = POINTS, **attributes: Any) -> Any:
    """The gradient that the rule gives at the points."""
    b = Builder("h")
    extra = ["" if c is None else b.constant(np.array(c, np.float32)) for c in constants]
    b.op(op, "x", *extra, name="y", **attributes)
    model = onnxio.to_bytes(b.nodes, {"x": TensorType("float32", points.shape)}, {"y": None}, b.constants, 20)
    graph = onnxio.to_graph(onnxio.load_model(model)[0], None, frozenset(), op)
    ones = np.ones(graph.types["y"].shape, np.float32)
    return pull_back(graph, {"x": points}, {"y": ones}, ["x"])["x"]


def reference(function: Callable[..., Any], points: Any = POINTS) -> Any:
    x = torch.tensor(points, requires_grad=True)
    function(x).sum().backward()
    return x.grad.numpy()


@pytest.mark.parametrize(
    ("op", "constants", "attributes", "function"),
    [
        ("Relu", (), {}, torch.relu),
        ("Clip", (0.0, 6.0), {}, F.relu6),
        ("Clip", (-1.0, 1.0), {}, F.hardtanh),
        ("LeakyRelu", (), {"alpha": 0.1}, lambda x: F.leaky_relu(x, 0.1)),
        ("LeakyRelu", (), {"alpha": 1.5}, lambda x: F.leaky_relu(x, 1.5)),
        ("Elu", (), {}, F.elu),
        ("Elu", (), {"alpha": 0.5}, lambda x: F.elu(x, 0.5)),
    ],
)
def test_slopes_at_kinks_are_pytorch_s(
    op: str, constants: tuple[float, ...], attributes: dict[str, Any], function: Callable[..., Any]
) -> None:
    np.testing.assert_allclose(slopes(op, *constants, **attributes), reference(function), rtol=1e-6, atol=1e-7)


def test_hardsigmoid_beside_its_kinks() -> None:
    # the last number before 3 is clipped already: the line rounds to 1 there
    apart = POINTS[(np.abs(np.abs(POINTS) - 3) > 1e-6) | (np.abs(POINTS) == 3)]
    np.testing.assert_allclose(slopes("HardSigmoid", points=apart, alpha=1 / 6), reference(F.hardsigmoid, apart), 1e-6)


def test_hardswish_beside_its_kinks() -> None:
    # at -3 and 3 themselves the slope is the flat side's
    beside = POINTS[np.abs(POINTS) != 3]
    np.testing.assert_allclose(slopes("HardSwish", points=beside), reference(F.hardswish, beside), rtol=1e-6, atol=1e-6)
    ends = np.array([-3, 3], np.float32)
    np.testing.assert_array_equal(slopes("HardSwish", points=ends), [0, 1])


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (None, 1.0), (1.0, None), (None, None)])
def test_clip_with_odd_bounds(bounds: tuple[float | None, float | None]) -> None:
    low, high = (-np.inf if bounds[0] is None else bounds[0]), (np.inf if bounds[1] is None else bounds[1])
    x = POINTS.copy()
    np.testing.assert_array_equal(slopes("Clip", *bounds, points=x), (x > low) & (x < high))


@pytest.mark.parametrize("size", [2, 3])
def test_of_equal_maxima_the_first_takes_the_gradient(size: int) -> None:
    points = np.random.default_rng(0).integers(0, 3, (2, 4, 7, 8)).astype(np.float32)
    given = slopes("MaxPool", points=points, kernel_shape=[size, size], strides=[size, size])
    np.testing.assert_array_equal(given, reference(lambda x: F.max_pool2d(x, size), points))
