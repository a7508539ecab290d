"""The blocked layout: every product of a convolution, and every operator that follows it, against the plain form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.engine import onnxio
from sanderling.engine.blocked import DOMAIN, block_size
from sanderling.engine.checker import pull_back
from sanderling.engine.graph import FILTER_GRADIENT, Array, Builder, TensorType
from sanderling.engine.passes import Program, lower, plain
from sanderling.engine.passes.blocks import lay_out
from sanderling.engine.passes.geometry import Geometry
from sanderling.engine.passes.runner import check
from sanderling.engine.passes.trust import node_of
from sanderling.engine.runtime import run_once

BLOCK = block_size()
needs_blocks = pytest.mark.skipif(BLOCK == 0, reason="this processor has no blocked layout")
OPS = ("Conv", "ConvTranspose", FILTER_GRADIENT)


def sizes(
    x: tuple[int, ...], outputs: int, kernel: tuple[int, ...], stride: Any = 1, dilation: Any = 1,
    pads: tuple[int, ...] | None = None, group: int = 1,
) -> Geometry:  # fmt: skip
    """A geometry as the attributes of a Conv give it."""
    rank = len(kernel)
    s, d = ((v,) * rank if isinstance(v, int) else v for v in (stride, dilation))
    before, after = (pads[:rank], pads[rank:]) if pads else ((0,) * rank, (0,) * rank)
    reach = [(k - 1) * e + 1 for k, e in zip(kernel, d, strict=True)]
    y = [(n + b + a - r) // t + 1 for n, b, a, r, t in zip(x[2:], before, after, reach, s, strict=True)]
    behind = tuple((p - 1) * t + r - b - n for p, t, r, b, n in zip(y, s, reach, before, x[2:], strict=True))
    return Geometry(x[0], x[1], outputs, group, x[2:], tuple(y), kernel, s, d, before, behind)


def both(op: str, z: Geometry, biased: bool) -> tuple[Program, Array, Array]:
    """The program in blocks, its result, and the plain one."""
    node, shapes, result = node_of(op, z, biased)
    noise = np.random.default_rng(1)
    feeds = {n: noise.standard_normal(s, np.float32) for n, s in shapes.items()}
    inputs = {n: TensorType("float32", s) for n, s in shapes.items()}

    def run(block: int) -> tuple[Program, Array]:
        program = Program([node], {**inputs, "r": TensorType("float32", result)}, {}, tuple(inputs), ("r",), 18, block)
        lay_out(program)
        plain.expand(program)
        check(program, "the layout", frozenset())
        model = onnxio.to_bytes(program.nodes, inputs, {"r": None}, program.constants, 18)
        return program, run_once(model, feeds, ["r"])[0]

    program, given = run(BLOCK)
    return program, given, run(0)[1]


def close(given: Array, wanted: Array) -> None:
    assert given.shape == wanted.shape
    np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max() or 1))


CASES = {
    "dense": sizes((2, 32, 9, 7), 48, (3, 3), pads=(1, 1, 1, 1)),
    "filled up": sizes((3, 24, 6, 6), 40, (3, 3), pads=(1, 1, 1, 1)),
    "filled up, not a multiple of 4": sizes((2, 30, 5, 5), 45, (3, 3), pads=(1, 0, 2, 1)),
    "pointwise": sizes((2, 32, 5, 6), 16, (1, 1)),
    "pointwise, many places": sizes((3, 24, 16, 17), 16, (1, 1)),
    "pointwise, strided": sizes((2, 32, 7, 6), 16, (1, 1), stride=2),
    "strided": sizes((2, 16, 12, 12), 32, (3, 3), stride=2, pads=(1, 1, 1, 1)),
    "strided, odd": sizes((2, 16, 11, 9), 32, (3, 3), stride=2, pads=(0, 0, 0, 0)),
    "strided, nothing reads the end": sizes((2, 16, 12, 10), 32, (3, 3), stride=2),
    "wide kernel, stride 3": sizes((1, 32, 17, 14), 16, (7, 5), stride=(3, 2), pads=(3, 2, 2, 1)),
    "many samples": sizes((BLOCK + 2, 16, 5, 5), 16, (3, 3), pads=(1, 1, 1, 1)),
    "a sample per block": sizes((BLOCK, 16, 4, 4), 16, (2, 2)),
    "one axis": sizes((2, 32, 19), 16, (5,), pads=(2, 2)),
    "one axis, strided": sizes((2, 32, 19), 48, (5,), stride=2, pads=(2, 1)),
    "dilated rows": sizes((2, 16, 9, 9), 16, (3, 3), dilation=(2, 1), pads=(2, 1, 2, 1)),
    "dilated": sizes((2, 16, 9, 10), 16, (3, 3), stride=(1, 2), dilation=2, pads=(2, 2, 2, 2)),
    "one axis, dilated": sizes((BLOCK + 1, 32, 30), 32, (3,), dilation=4, pads=(4, 3)),
    "depthwise": sizes((2, 32, 8, 9), 32, (3, 3), pads=(1, 1, 1, 1), group=32),
    "depthwise, filled up": sizes((3, 24, 7, 7), 24, (5, 5), pads=(2, 2, 2, 2), group=24),
    "depthwise, strided": sizes((2, 16, 9, 8), 16, (3, 3), stride=2, pads=(1, 1, 1, 1), group=16),
    "depthwise, strided, cut": sizes((2, 16, 10, 8), 16, (3, 3), stride=2, group=16),
    "depthwise, dilated": sizes((2, 16, 9, 8), 16, (3, 3), dilation=2, pads=(2, 2, 2, 2), group=16),
    "depthwise, one axis": sizes((2, 32, 25), 32, (5,), stride=2, pads=(2, 2), group=32),
}


@needs_blocks
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", CASES)
def test_convolutions_in_blocks_compute_the_same(case: str, op: str) -> None:
    program, given, wanted = both(op, CASES[case], biased=not max(CASES[case].stride) > max(CASES[case].kernel))
    close(given, wanted)
    product = case.startswith("pointwise") and op == FILTER_GRADIENT
    if op == "ConvTranspose" and max(CASES[case].stride) > 1 and max(CASES[case].dilation) > 1:
        return  # stays plain
    assert any(n.op in ("Gemm", "FusedMatMul") if product else n.domain == DOMAIN for n in program.nodes)


@needs_blocks
@pytest.mark.parametrize("op", ["Conv", FILTER_GRADIENT])
def test_few_input_channels_are_read_as_they_are(op: str) -> None:
    program, given, wanted = both(op, sizes((2, 3, 15, 13), 32, (3, 3), stride=2, pads=(1, 1, 1, 1)), True)
    close(given, wanted)
    assert "ReorderInput" in {n.op for n in program.nodes}


@needs_blocks
def test_groups_of_whole_blocks() -> None:
    for op in ("Conv", "ConvTranspose"):
        program, given, wanted = both(op, sizes((2, 4 * BLOCK, 6, 6), 2 * BLOCK, (3, 3), group=2), True)
        close(given, wanted)
        assert any(n.domain == DOMAIN for n in program.nodes)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    rank = draw(st.sampled_from((1, 2)))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, stride, dilation, before, behind = each(1, 5), each(1, 3), each(1, 2), each(0, 3), each(0, 3)
    least = [max((k - 1) * d + 1 - b - a, 1) for k, d, b, a in zip(kernel, dilation, before, behind, strict=True)]
    length = tuple(n + draw(st.integers(0, 9)) for n in least)
    channels = draw(st.integers(1, 40))
    form = draw(st.sampled_from(("dense", "depthwise", "grouped")))
    batch = draw(st.sampled_from((1, 2, 3, 9, 17)))
    if form == "depthwise":
        z = sizes((batch, channels, *length), channels, kernel, stride, dilation, before + behind, channels)
    elif form == "grouped":
        x = (batch, 2 * channels, *length)
        z = sizes(x, 2 * draw(st.integers(1, 40)), kernel, stride, dilation, before + behind, 2)
    else:
        z = sizes((batch, channels, *length), draw(st.integers(1, 40)), kernel, stride, dilation, before + behind)
    return replace(z, group=max(z.group, 1))


@needs_blocks
@settings(max_examples=60, deadline=None)
@given(geometries(), st.sampled_from(OPS), st.booleans())
def test_any_convolution_computes_the_same(z: Geometry, op: str, biased: bool) -> None:
    if op == "ConvTranspose" and any(max(-b, 0) >= s for b, s in zip(z.behind, z.stride, strict=True)):
        return  # a convolution never leaves a whole stride unread
    _, given, wanted = both(op, z, biased)
    close(given, wanted)


def program_of(b: Builder, outputs: tuple[str, ...], inputs: dict[str, tuple[int, ...]]) -> tuple[Array, ...]:
    """What the builder wrote, run in blocks and plainly; the results are compared."""
    kinds = {n: TensorType("float32", s) for n, s in inputs.items()}
    types = onnxio.infer_types(onnxio.to_bytes(b.nodes, kinds, dict.fromkeys(outputs), b.constants, 18))
    noise = np.random.default_rng(5)
    feeds = {n: noise.uniform(0.2, 1.5, s).astype(np.float32) for n, s in inputs.items()}
    found: list[list[Array]] = []
    for block in (BLOCK, 0):
        p = lower(b.nodes, types, b.constants, tuple(inputs), outputs, 18, block)
        model = onnxio.to_bytes(p.nodes, kinds, dict.fromkeys(outputs), p.constants, 18)
        found.append(run_once(model, feeds, list(outputs)))
        if block:
            ops.clear()
            ops.extend(f"{n.domain.rpartition('.')[2]}.{n.op}".lstrip(".") for n in p.nodes)
    for a, c in zip(*found, strict=True):
        close(a, c)
    return tuple(found[0])


ops: list[str] = []


@needs_blocks
@pytest.mark.parametrize("channels", [32, 24])
def test_a_network_stays_in_blocks(channels: int) -> None:
    b = Builder("t")
    inputs = {"x": (2, 3, 12, 12), "w": (channels, 3, 3, 3), "d": (channels, 1, 3, 3), "b": (channels,),
              "p": (channels, channels, 1, 1), "s": (2, channels, 1, 1), "v": (1, channels, 1, 1)}  # fmt: skip
    y = b.op("Relu", b.op("Conv", "x", "w", "b", pads=[1, 1, 1, 1], kernel_shape=[3, 3]))
    z = b.op(
        "Clip", b.op("Conv", y, "d", pads=[1, 1, 1, 1], kernel_shape=[3, 3], group=channels), b.scalar(0), b.scalar(6)
    )
    z = b.op("Add", b.op("Conv", z, "p", kernel_shape=[1, 1]), y)
    z = b.op("Mul", z, b.op("Sigmoid", "s"))
    z = b.op("Add", b.op("Mul", z, "v"), "v")
    z = b.op("Sub", z, "v")
    z = b.op("Mul", z, b.op("Cast", b.op("Greater", z, b.scalar(0)), to=1))
    z = b.op("MaxPool", z, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    z = b.op("AveragePool", z, kernel_shape=[2, 2], strides=[2, 2])
    b.op("GlobalAveragePool", z, name="out")
    b.op("ReduceSum", z, b.ints(0, 2, 3), keepdims=0, name="sum")
    b.op("ReduceMean", z, b.ints(2, 3), name="mean")
    program_of(b, ("out", "sum", "mean"), inputs)
    assert not {"Conv", "GlobalAveragePool", "AveragePool", "MaxPool"} & set(ops)
    assert ops.count("nchwc.ReorderInput") <= 3  # the filters only


@needs_blocks
def test_channels_are_joined_and_cut_in_blocks() -> None:
    b = Builder("t")
    w = {"w": (32, 32, 1, 1), "v": (16, 32, 1, 1)}
    y, z = (b.op("Conv", "x", n, kernel_shape=[1, 1]) for n in w)
    joined = b.op("Concat", y, z, axis=1)
    part = b.op("Slice", joined, b.ints(16), b.ints(48), b.ints(1))
    first, second = b.multi("Split", (joined, b.ints(32, 16)), 2, axis=1)
    b.op("Conv", b.op("Add", part, first), "v", kernel_shape=[1, 1], name="out")
    b.op("Exp", second, name="second")
    program_of(b, ("out", "second"), {"x": (2, 32, 4, 5), **w})
    assert ops.count("nchwc.ReorderOutput") == 2


@needs_blocks
def test_frozen_batch_normalization_is_one_pass() -> None:
    for channels in (32, 12 if BLOCK == 16 else 6):
        b = Builder("t")
        b.op("Relu", b.op("BatchNormalization", "x", "s", "b", "m", "v", epsilon=1e-3), name="y")
        program_of(b, ("y",), {"x": (2, channels, 5, 5), **dict.fromkeys("sbmv", (channels,))})
        assert "BatchNormalization" not in ops


@needs_blocks
def test_a_mask_crosses_from_one_layout_to_the_other() -> None:
    b = Builder("t")
    y = b.op("Conv", "x", "w", kernel_shape=[1, 1])
    mask = b.op("Greater", y, b.scalar(0.5))
    b.op("Where", b.op("Transpose", mask, perm=[0, 1, 3, 2]), b.op("Transpose", y, perm=[0, 1, 3, 2]), "x", name="z")
    program_of(b, ("z",), {"x": (2, 32, 6, 6), "w": (32, 32, 1, 1)})


@needs_blocks
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("included", [0, 1])
def test_pools_in_blocks_or_not_at_all(op: str, ceil: int, included: int) -> None:
    for channels in (32, 24):
        b = Builder("t")
        more: dict[str, Any] = {"count_include_pad": included} if op == "AveragePool" else {}
        y = b.op("Conv", "x", "w", kernel_shape=[1, 1])
        b.op(op, y, name="y", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=ceil, **more)
        program_of(b, ("y",), {"x": (2, channels, 10, 9), "w": (channels, channels, 1, 1)})
        assert op == "AveragePool" or f"nchwc.{op}" in ops


POOLS = {
    "apart": ((8, 6), (2, 2), (2, 2), (0, 0, 0, 0), 0),
    "apart, rest": ((9, 7), (2, 2), (2, 2), (0, 0, 0, 0), 0),
    "overlapping": ((9, 8), (3, 3), (2, 2), (1, 1, 1, 1), 0),
    "overlapping, no padding": ((11, 10), (3, 3), (2, 2), (0, 0, 0, 0), 0),
    "beyond the end": ((10, 8), (3, 3), (2, 2), (0, 0, 0, 0), 1),
    "every place": ((6, 5), (3, 3), (1, 1), (1, 1, 1, 1), 0),
    "gaps": ((11, 11), (2, 1), (3, 2), (0, 0, 0, 0), 0),
    "many taps": ((9, 9), (4, 4), (2, 2), (1, 1, 1, 1), 0),
}


@pytest.mark.parametrize("channels", [32, 24, 3])
@pytest.mark.parametrize("case", POOLS)
def test_the_first_of_equal_maxima_takes_the_gradient(case: str, channels: int) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the cross-checks need it")
    size, kernel, stride, pads, ceil = POOLS[case]
    x = np.random.default_rng(2).integers(-2, 2, (2, channels, *size)).astype(np.float32)  # many are equal
    b = Builder("h")
    kept = {"kernel_shape": list(kernel), "strides": list(stride), "pads": list(pads), "ceil_mode": ceil}
    b.op("MaxPool", "x", name="y", **kept)  # type: ignore[arg-type]
    graph = onnxio.to_graph(
        onnx.load_model_from_string(
            onnxio.to_bytes(b.nodes, {"x": TensorType("float32", x.shape)}, {"y": None}, b.constants, 18)
        ), None, frozenset(), "pool",
    )  # fmt: skip
    t = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.max_pool2d(t, kernel, stride, pads[:2], ceil_mode=bool(ceil))
    seed = np.random.default_rng(3).integers(1, 9, tuple(y.shape)).astype(np.float32)
    y.backward(torch.tensor(seed))
    found = pull_back(graph, {"x": x}, {"y": seed}, ["x"])["x"]
    np.testing.assert_array_equal(found, t.grad.numpy())
