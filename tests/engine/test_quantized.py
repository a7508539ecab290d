"""Quantized models: gradients against PyTorch's fake quantization, integer weights, training, exports, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sanderling.engine import UnsupportedOperatorError, onnxio, read_weights
from sanderling.engine.checker import pull_back
from sanderling.engine.graph import Array, Builder, TensorType
from sanderling.engine.passes import lower
from sanderling.engine.plan import Quantization
from sanderling.engine.quantized import dequantize, kept_range, move, quantize, scale_at
from sanderling.engine.rules.quantize import interval
from sanderling.engine.runtime import run_once

torch = pytest.importorskip("torch", reason="PyTorch is not installed: its fake quantization is the reference")

#: Element type -> (scale, zero point) of one scale for all; the zero points make every kind of end: odd, even, zero.
TENSOR = {
    "int8": [(0.02, 0), (0.013, -128), (0.5, 17)],
    "uint8": [(0.02, 128), (0.017, 0), (1e-3, 31)],
    "int16": [(1e-4, 0), (3.1e-5, -7)],
    "uint16": [(1e-4, 32768)],
}


def pair(kind: str, shape: tuple[int, ...], scale: Any, zero: Any, opset: int = 21, **attributes: int) -> bytes:
    """x -> QuantizeLinear -> DequantizeLinear -> y"""
    b = Builder("h")
    extra = (b.constant(np.asarray(scale, np.float32)), b.constant(np.asarray(zero, kind)))
    q = b.op("QuantizeLinear", "x", *extra, name="q", **attributes)
    b.op("DequantizeLinear", q, *extra, name="y", **attributes)
    return onnxio.to_bytes(b.nodes, {"x": TensorType("float32", shape)}, {"y": None}, b.constants, opset)


def ends(kind: str, scale: Array, zero: Array) -> Array:
    """Values around both ends of the range, with their neighbours, and ties to even inside."""
    limits = np.iinfo(kind)
    steps = np.array([limits.min, limits.min, limits.max, limits.max, 0, 0], np.float64)[:, None] - zero
    steps += np.array([-0.5, 0.5, 0.5, -0.5, 0.5, 1.5])[:, None]
    middle = (steps * scale).astype(np.float32)
    rows = [middle]
    for direction in (-np.inf, np.inf):
        value = middle
        for _ in range(6):
            value = np.nextafter(value, np.float32(direction))
            rows.append(value)
    return np.concatenate([*rows, 3 * middle, 0.3 * middle])


def pulled(model: bytes, x: Array) -> tuple[Array, Array]:
    """The seed, and the gradient of the input."""
    proto, name = onnxio.load_model(model)
    graph = onnxio.to_graph(proto, None, frozenset(), name)
    seed = np.random.default_rng(3).standard_normal(x.shape).astype(np.float32)
    return seed, pull_back(graph, {"x": x}, {"y": seed}, ["x"])["x"]


@pytest.mark.parametrize(("kind", "scale", "zero"), [(k, *v) for k, values in TENSOR.items() for v in values])
def test_one_scale_is_pytorch_s_fake_quantization(kind: str, scale: float, zero: int) -> None:
    x = ends(kind, np.array([scale], np.float32), np.array([zero]))
    rng = np.random.default_rng(0)
    x = np.concatenate([x, (rng.standard_normal((500, 1)) * 200 * scale).astype(np.float32)])
    limits = np.iinfo(kind)
    tensor = torch.tensor(x, requires_grad=True)
    wanted = torch.fake_quantize_per_tensor_affine(tensor, scale, zero, int(limits.min), int(limits.max))
    seed, given = pulled(pair(kind, x.shape, scale, zero), x)
    wanted.backward(torch.tensor(seed))
    # PyTorch multiplies by 1 / scale where the standard divides: next to an end they may round to different sides
    rounded = np.rint(x / np.float32(scale)) + zero
    masked = (rounded >= limits.min) & (rounded <= limits.max)
    assert np.array_equal(given, seed * masked)
    far = np.abs(x / np.float32(scale) - np.rint(x / np.float32(scale))) < 0.49
    assert far.sum() > 400
    assert not masked[far].all()
    assert masked[far].any()
    assert np.array_equal(given[far], tensor.grad.numpy()[far])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scale_per_channel_is_pytorch_s_fake_quantization(axis: int) -> None:
    rng = np.random.default_rng(1)
    shape = (4, 5, 6)
    channels = shape[axis]
    scale = np.exp(rng.uniform(-6, 0, channels)).astype(np.float32)
    zero = rng.integers(-20, 20, channels)
    spread = [1, 1, 1]
    spread[axis] = channels
    x = (rng.standard_normal(shape) * 150 * scale.reshape(spread)).astype(np.float32)
    tensor = torch.tensor(x, requires_grad=True)
    wanted = torch.fake_quantize_per_channel_affine(
        tensor, torch.tensor(scale), torch.tensor(zero, dtype=torch.int32), axis % 3, -128, 127
    )
    model = pair("int8", shape, scale, zero, axis=axis)
    seed, given = pulled(model, x)
    wanted.backward(torch.tensor(seed))
    assert (given == 0).any()
    assert (given != 0).any()
    assert np.array_equal(given, tensor.grad.numpy())
    np.testing.assert_allclose(run_once(model, {"x": x}, ["y"])[0], wanted.detach().numpy(), rtol=1e-6)


def test_a_scale_per_block() -> None:
    rng = np.random.default_rng(2)
    scale = np.exp(rng.uniform(-4, 0, (3, 4))).astype(np.float32)
    x = (rng.standard_normal((3, 10)) * 150 * np.repeat(scale, 3, 1)[:, :10]).astype(np.float32)
    seed, given = pulled(pair("int8", x.shape, scale, np.zeros((3, 4)), axis=1, block_size=3), x)
    rounded = np.rint(x / np.repeat(scale, 3, 1)[:, :10])
    masked = (rounded >= -128) & (rounded <= 127)
    assert not masked.all()
    assert np.array_equal(given, seed * masked)


@pytest.mark.parametrize("kind", TENSOR)
def test_the_ends_of_the_range_are_exact(kind: str) -> None:
    rng = np.random.default_rng(4)
    limits = np.iinfo(kind)
    scale = np.exp(rng.uniform(-20, 20, 500)).astype(np.float32)
    scale[:6] = [1e-45, 2e-38, 3e38, 1, 2**-30, 0.1]
    zero = rng.integers(limits.min, limits.max, 500, endpoint=True)

    def inside(x: Array) -> Array:
        with np.errstate(over="ignore"):
            rounded = np.rint(x / scale) + zero
        return (rounded >= limits.min) & (rounded <= limits.max)

    least, most = interval(scale, zero, int(limits.min), int(limits.max))
    assert inside(least).all()
    assert inside(most).all()
    with np.errstate(over="ignore"):
        assert not inside(np.nextafter(least, np.float32(-np.inf))).any()
        assert not inside(np.nextafter(most, np.float32(np.inf))).any()
    for bad in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="positive"):
            interval(np.array(bad, np.float32), np.array(0), -128, 127)


def test_other_units_and_moves_between_the_pair() -> None:
    b = Builder("h")
    one, two = b.constant(np.array(0.02, np.float32)), b.constant(np.array(0.05, np.float32))
    zero, other = b.constant(np.array(0, np.int8)), b.constant(np.array(5, np.int8))
    q = b.op("QuantizeLinear", "x", one, zero)
    q = b.op("Transpose", b.op("Reshape", q, b.ints(3, 4)), perm=[1, 0])
    b.op("DequantizeLinear", q, two, other, name="y")
    model = onnxio.to_bytes(b.nodes, {"x": TensorType("float32", (2, 6))}, {"y": None}, b.constants, 18)
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(2, 6)
    proto, name = onnxio.load_model(model)
    graph = onnxio.to_graph(proto, None, frozenset(), name)
    seed = np.arange(12, dtype=np.float32).reshape(4, 3)
    given = pull_back(graph, {"x": x}, {"y": seed}, ["x"])["x"]
    wanted = seed.T.reshape(2, 6) * 2.5 * (np.abs(np.rint(x / np.float32(0.02)) - 0.5) < 128)
    np.testing.assert_allclose(given, wanted, rtol=1e-6)
    assert (given == 0).sum() > 1


def test_float_weights_are_trained_through_their_quantization() -> None:
    """What training with fake quantization exports: real weights, a pair of nodes, a product."""
    rng = np.random.default_rng(5)
    b = Builder("h")
    w = b.constant(rng.standard_normal((4, 3)).astype(np.float32))
    scale = np.array([0.01, 0.02, 0.005], np.float32)
    extra = b.constant(scale), b.constant(np.zeros(3, np.int8))
    q = b.op("DequantizeLinear", b.op("QuantizeLinear", w, *extra, axis=1), *extra, axis=1)
    b.op("MatMul", "x", q, name="y")
    model = onnxio.to_bytes(b.nodes, {"x": TensorType("float32", (5, 4))}, {"y": None}, b.constants, 18)
    assert list(read_weights(model)) == [w]
    proto, name = onnxio.load_model(model)
    graph = onnxio.to_graph(proto, None, frozenset([w]), name)
    x = rng.standard_normal((5, 4)).astype(np.float32)
    seed = rng.standard_normal((5, 3)).astype(np.float32)
    given = pull_back(graph, {"x": x}, {"y": seed}, [w])[w]
    tensor = torch.tensor(b.constants[w], requires_grad=True)
    zeros = torch.zeros(3, dtype=torch.int32)
    fake = torch.fake_quantize_per_channel_affine(tensor, torch.tensor(scale), zeros, 1, -128, 127)
    (torch.tensor(x) @ fake).backward(torch.tensor(seed))
    assert (given == 0).any()
    np.testing.assert_allclose(given, tensor.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["computed", "scales", "input", "precision"])
def test_what_cannot_be_undone_is_refused(case: str) -> None:
    b = Builder("h")
    one = b.constant(np.array(0.02, np.float32)), b.constant(np.array(0, np.int8))
    per = b.constant(np.array([0.1, 0.2, 0.3], np.float32)), b.constant(np.zeros(3, np.int8))
    inputs = {"x": TensorType("float32", (2, 3))}
    q = b.op("QuantizeLinear", "x", *one, name="q")
    if case == "computed":
        q = b.op("MaxPool", b.op("Unsqueeze", q, b.ints(0)), kernel_shape=[3])
        b.op("DequantizeLinear", q, *one, name="y")
    elif case == "scales":
        b.op("DequantizeLinear", q, *per, name="y", axis=1)
    elif case == "input":
        b.op("Cast", b.op("QuantizeLinear", "x", *one), to=1, name="y")
    else:
        b.nodes[-1].attributes["precision"] = 10  # type: ignore[index]
        b.op("DequantizeLinear", q, *one, name="y")
    proto, name = onnxio.load_model(onnxio.to_bytes(b.nodes, inputs, {"y": None}, b.constants, 23))
    with pytest.raises(UnsupportedOperatorError, match="node 'h") as caught:
        graph = onnxio.to_graph(proto, None, frozenset(), name)
        seed = np.ones(graph.types["y"].shape, np.float32)
        pull_back(graph, {"x": np.ones((2, 3), np.float32)}, {"y": seed}, ["x"])
    assert caught.value.operator in ("QuantizeLinear", "DequantizeLinear", "Cast")


def described(kind: str, shape: tuple[int, ...], scale: Any, zero: Any, axis: int = 0, block: int = 0) -> Quantization:
    """A weight's description over the whole range of its type."""
    limits = np.iinfo(kind)
    return Quantization(
        "w", kind, shape, np.asarray(scale, "<f4").tobytes(), np.asarray(zero, "<i4").tobytes(), axis, block,
        int(limits.min), int(limits.max),
    )  # fmt: skip


#: A weight in every layout of scales: one, per channel of each axis, per block.
LAYOUTS = [((5, 4, 3), 0, 0, 1), *(((5, 4, 3), axis, 0, (5, 4, 3)[axis]) for axis in range(3)), ((5, 7, 2), 1, 3, 30)]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_integers_stand_for_is_the_runtime_s(kind: str, layout: tuple[tuple[int, ...], int, int, int]) -> None:
    shape, axis, block, count = layout
    rng = np.random.default_rng(6)
    limits = np.iinfo(kind)
    q = rng.integers(limits.min, limits.max, shape, kind, endpoint=True)
    scale = np.exp(rng.uniform(-8, 0, count)).astype(np.float32)
    zero = np.zeros(count, np.int64)
    if kind != "int32":
        zero = np.clip(rng.integers(-5, 6, count) - int(limits.min) // 2 - 64, limits.min, limits.max)
    how = described(kind, shape, scale, zero, axis, block)
    b = Builder("h")
    sizes = (5, 3, 2) if block else ((count,) if count > 1 else ())
    extra = b.constant(scale.reshape(sizes)), b.constant(zero.astype(kind).reshape(sizes))
    more = {"axis": axis} | ({"block_size": block} if block else {}) if count > 1 else {}
    b.op("DequantizeLinear", "q", *extra, name="y", **more)
    model = onnxio.to_bytes(b.nodes, {"q": TensorType(kind, shape)}, {"y": None}, b.constants, 21)
    wanted = run_once(model, {"q": q}, ["y"])[0]
    given = dequantize(q, how)
    assert np.array_equal(given, wanted)
    # in parts as well, wherever they begin and end
    flat = np.broadcast_to(scale_at(how, 0, q.size), q.size)
    for start, stop in [(0, 1), (3, 17), (11, 59), (59, 60)]:
        part = np.broadcast_to(scale_at(how, start, stop), stop - start)
        assert np.array_equal(part, flat[start:stop])
    # and back: exactly, also where float32 cannot tell neighbouring integers from each other
    assert np.array_equal(quantize(given, how, q), q)
    if kind != "int32":
        assert np.array_equal(quantize(given, how), q)
    far = quantize(given * 3 + 1, how)
    assert far.dtype == kind


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32"])
def test_rounding_at_random_is_right_on_average_and_in_range(kind: str) -> None:
    rng = np.random.default_rng(7)
    count, repeats = 400, 400
    scale = np.exp(rng.uniform(-6, -1, count)).astype(np.float32)
    how = described(kind, (count,), scale, np.zeros(count), 0)
    start = rng.integers(20, 100, count).astype(kind)
    small = 10.0 ** rng.uniform(-4, 0, 100) * rng.choice([-1, 1], 100)
    steps = np.concatenate([rng.uniform(-3, 3, count - 100), small])
    total = np.zeros(count)
    for _ in range(repeats):
        q = start.copy()
        move(q, (steps * scale).astype(np.float32), how, 0, rng)
        moved = q.astype(np.int64) - start
        assert (np.abs(moved - steps) < 1 + 1e-5).all()
        total += moved
    fraction = steps - np.floor(steps)
    deviation = (total / repeats - steps) / np.sqrt(fraction * (1 - fraction) / repeats + 1e-12)
    assert np.abs(deviation.mean()) < 4 / np.sqrt(count)
    assert 0.8 < deviation.std() < 1.2


def test_no_change_changes_nothing_and_the_ends_hold() -> None:
    how = described("int8", (6,), np.float32(0.1), np.int32(0))
    q = np.array([-128, -127, 0, 1, 126, 127], np.int8)
    still = q.copy()
    for step in range(50):
        move(still, np.zeros(6, np.float32), how, 0, np.random.default_rng(step))
    assert np.array_equal(still, q)
    move(q, np.full(6, 1e30, np.float32), how, 0, np.random.default_rng(0))
    assert (q == 127).all()
    move(q, np.full(6, -1e30, np.float32), how, 0, np.random.default_rng(0))
    assert (q == -128).all()


def test_the_range_of_the_quantizer_is_kept() -> None:
    zero = np.zeros(1, np.int32)
    assert kept_range(np.array([-127, 3, 127], np.int8), zero) == (-127, 127)
    assert kept_range(np.array([-128, 3, 127], np.int8), zero) == (-128, 127)
    assert kept_range(np.array([-127, 3, 127], np.int8), zero + 3) == (-128, 127)
    assert kept_range(np.array([-64, 3, 20], np.int8), zero) == (-64, 64)
    assert kept_range(np.zeros(3, np.int8), zero) == (-127, 127)
    assert kept_range(np.array([0, 127], np.uint8), zero + 64) == (0, 127)
    assert kept_range(np.array([0, 255], np.uint8), zero + 128) == (0, 255)
    assert kept_range(np.array([5, -5], np.int32), zero) == (-(2**31), 2**31 - 1)


def test_passes_keep_integers_and_masks_instead_of_real_numbers() -> None:
    """A mask is made where its tensor is; what is read late is dequantized again; neither changes a result."""
    b = Builder("h")
    scale, zero = b.constant(np.array(0.02, np.float32)), b.constant(np.array(3, np.int8))
    real = b.op("Exp", "x", name="real")
    q = b.op("QuantizeLinear", real, scale, zero, name="q")
    first = b.op("DequantizeLinear", q, scale, zero, name="first")
    later = b.op("Sigmoid", first)
    for _ in range(12):
        later = b.op("Sin", later)
    clipped = b.op("Clip", real, b.constant(np.array(0.5, np.float32)), b.constant(np.array(2, np.float32)))
    mask = b.op("Cast", b.op("Equal", real, clipped, name="mask"), to=1)
    b.op("Add", b.op("Mul", first, later), mask, name="y")
    kind = TensorType("float32", (40, 50))
    model = onnxio.to_bytes(b.nodes, {"x": kind}, {"y": None}, b.constants, 18)
    types = onnxio.infer_types(model)
    program = lower(b.nodes, types, b.constants, ["x"], ["y"], 18)
    order = [name for node in program.nodes for name in node.outputs]
    assert order.index("mask") == order.index("real") + 2
    readers = [n for n in program.nodes if n.op == "DequantizeLinear"]
    assert len(readers) == 2
    assert order.index(readers[1].outputs[0]) > order.index(readers[0].outputs[0]) + 12
    lowered = onnxio.to_bytes(program.nodes, {"x": kind}, {"y": None}, program.constants, 18)
    x = np.random.default_rng(0).standard_normal(kind.shape).astype(np.float32)
    assert np.array_equal(run_once(lowered, {"x": x}, ["y"])[0], run_once(model, {"x": x}, ["y"])[0])
