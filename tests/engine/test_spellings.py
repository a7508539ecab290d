"""What is spelled out in several operators is found, whatever the spelling, and nothing else is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sanderling.engine import onnxio
from sanderling.engine.graph import Builder, Graph, TensorType
from sanderling.engine.runtime import run_once

Spelling = Callable[[Builder, str], str]
X = TensorType("float32", (3, 4, 8))


def halved(b: Builder, x: str) -> str:
    inner = b.op("Add", b.op("Erf", b.op("Div", x, b.scalar(math.sqrt(2)))), b.scalar(1))
    return b.op("Mul", b.op("Mul", x, inner), b.scalar(0.5))


def half_first(b: Builder, x: str) -> str:
    inner = b.op("Erf", b.op("Mul", x, b.scalar(math.sqrt(0.5))))
    return b.op("Mul", b.op("Mul", b.scalar(0.5), x), b.op("Add", b.scalar(1), inner))


def cubed(b: Builder, x: str) -> str:
    cube = b.op("Mul", b.op("Pow", x, b.scalar(3)), b.scalar(0.044715))
    t = b.op("Tanh", b.op("Mul", b.op("Add", x, cube), b.scalar(math.sqrt(2 / math.pi))))
    return b.op("Mul", b.op("Mul", x, b.scalar(0.5)), b.op("Add", t, b.scalar(1)))


def squared(b: Builder, x: str) -> str:
    k = math.sqrt(2 / math.pi)
    line = b.op("Add", b.op("Mul", b.op("Mul", x, x), b.scalar(k * 0.044715)), b.scalar(k))
    return b.op("Mul", b.op("Mul", x, b.scalar(0.5)), b.op("Add", b.op("Tanh", b.op("Mul", x, line)), b.scalar(1)))


def sixth(b: Builder, x: str) -> str:
    return b.op("Div", b.op("Clip", b.op("Add", x, b.scalar(3)), b.scalar(0), b.scalar(6)), b.scalar(6))


def capped(b: Builder, x: str) -> str:
    return b.op("Min", b.op("Relu", b.op("Add", b.op("Mul", x, b.scalar(1 / 6)), b.scalar(0.5))), b.scalar(1))


SPELLINGS: list[tuple[str, dict[str, Any], Spelling]] = [
    ("Gelu", {}, halved),
    ("Gelu", {}, half_first),
    ("Gelu", {"approximate": "tanh"}, cubed),
    ("Gelu", {"approximate": "tanh"}, squared),
    ("HardSwish", {}, lambda b, x: b.op("Mul", x, sixth(b, x))),
    ("HardSwish", {}, lambda b, x: b.op("Mul", b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x)),
    ("HardSwish", {}, lambda b, x: b.op("Mul", x, capped(b, x))),
    ("HardSwish", {}, lambda b, x: b.op(
        "Div", b.op("Mul", x, b.op("Clip", b.op("Add", x, b.scalar(3)), b.scalar(0), b.scalar(6))), b.scalar(6)
    )),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, sixth),
    ("Sigmoid", {}, lambda b, x: b.op("Reciprocal", b.op("Add", b.scalar(1), b.op("Exp", b.op("Neg", x))))),
    ("Relu", {}, lambda b, x: b.op("Identity", b.op("Max", x, b.scalar(0)))),
]  # fmt: skip


def graph_of(b: Builder, inputs: dict[str, TensorType], weights: frozenset[str] = frozenset()) -> tuple[Graph, bytes]:
    """The graph as it is read, and the model."""
    model = onnxio.to_bytes(b.nodes, inputs, {"y": None}, b.constants, 18)
    return onnxio.to_graph(onnxio.load_model(model)[0], None, weights, "test"), model


def check_same(graph: Graph, model: bytes, inputs: dict[str, TensorType]) -> None:
    rng = np.random.default_rng(0)
    feeds = {n: 3 * rng.standard_normal(k.shape).astype(np.float32) for n, k in inputs.items()}
    constants = {n: v for n, v in graph.constants.items() if n not in inputs}
    read = onnxio.to_bytes(graph.nodes, inputs, {"y": None}, constants, graph.opset)
    for new, old in zip(run_once(read, feeds, ["y"]), run_once(model, feeds, ["y"]), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("op", "attributes", "spelling"), SPELLINGS)
def test_a_spelling_is_read_as_its_operator(op: str, attributes: dict[str, Any], spelling: Spelling) -> None:
    b = Builder("t")
    b.op("Softsign", spelling(b, b.op("Softsign", "x")), name="y")  # operators that no spelling contains
    graph, model = graph_of(b, {"x": X})
    assert [n.op for n in graph.nodes] == ["Softsign", op, "Softsign"]
    assert graph.nodes[1].attributes == attributes
    check_same(graph, model, {"x": X})


def test_what_nearly_spells_an_operator_stays() -> None:
    b = Builder("t")
    inner = b.op("Add", b.op("Erf", b.op("Div", "x", b.scalar(1.4141))), b.scalar(1))
    b.op("Mul", b.op("Mul", "x", inner), b.scalar(0.5), name="y")
    graph, _ = graph_of(b, {"x": X})
    assert "Gelu" not in {n.op for n in graph.nodes}


def test_what_is_read_from_inside_stays() -> None:
    b = Builder("t")
    gate = b.op("HardSigmoid", "x", alpha=1 / 6, beta=0.5)
    b.op("Add", b.op("Mul", "x", gate), gate, name="y")
    graph, _ = graph_of(b, {"x": X})
    assert [n.op for n in graph.nodes] == ["HardSigmoid", "Mul", "Add"]


def test_a_weight_is_no_known_number() -> None:
    b = Builder("t")
    b.constants["three"] = np.array(3, np.float32)
    clipped = b.op("Clip", b.op("Add", "x", "three"), b.scalar(0), b.scalar(6))
    b.op("Div", clipped, b.scalar(6), name="y")
    assert [n.op for n in graph_of(b, {"x": X})[0].nodes] == ["HardSigmoid"]
    assert [n.op for n in graph_of(b, {"x": X}, frozenset({"three"}))[0].nodes] == ["Add", "Clip", "Div"]


def test_a_factor_of_another_shape_stays() -> None:
    b = Builder("t")
    b.op("Mul", "x", sixth(b, "s"), name="y")
    graph, _ = graph_of(b, {"x": X, "s": TensorType("float32", (4, 1))})
    assert [n.op for n in graph.nodes] == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("lead", [(5,), (2, 3), (2, 3, 2)])
def test_a_biased_product_is_a_gemm(lead: tuple[int, ...], first: bool) -> None:
    b = Builder("t")
    b.constants |= {"w": np.ones((4, 7), np.float32), "b": np.arange(7, dtype=np.float32)}
    product = b.op("MatMul", "x", "w")
    b.op("Add", *(("b", product) if first else (product, "b")), name="y")
    inputs = {"x": TensorType("float32", (*lead, 4))}
    graph, model = graph_of(b, inputs, frozenset({"w", "b"}))
    assert [n.op for n in graph.nodes] == (["Gemm"] if len(lead) == 1 else ["Reshape", "Gemm", "Reshape"])
    check_same(graph, model, inputs)


def test_products_that_are_read_twice_or_get_another_shape_stay() -> None:
    b = Builder("t")
    b.constants |= {"w": np.ones((4, 7), np.float32), "b": np.ones((2, 1, 7), np.float32), "v": np.ones(7, np.float32)}
    wide = b.op("Add", b.op("MatMul", "x", "w"), "b")
    twice = b.op("MatMul", "x", "w")
    b.op("Add", wide, b.op("Mul", b.op("Add", twice, "v"), twice), name="y")
    graph, _ = graph_of(b, {"x": TensorType("float32", (3, 4))}, frozenset({"w", "b", "v"}))
    assert "Gemm" not in {n.op for n in graph.nodes}
