"""Each pass: what it changes, and that the program computes the same as before."""

from __future__ import annotations

import numpy as np
import pytest

from sanderling.engine import onnxio
from sanderling.engine.errors import EngineError
from sanderling.engine.graph import Array, Builder, Node, TensorType
from sanderling.engine.passes import (
    Program,
    broadcasts,
    common,
    dead,
    fold,
    functions,
    leaving,
    lower,
    noops,
    pieces,
    products,
)
from sanderling.engine.passes.runner import check
from sanderling.engine.runtime import run_once

SHAPES = {"x": (2, 6, 4), "w": (2, 4, 6), "m": (6, 4)}


def program(b: Builder, *outputs: str, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Program:
    """What the builder wrote, typed; `shapes` are the inputs."""
    inputs = {n: TensorType("float32", s) for n, s in shapes.items()}
    types = onnxio.infer_types(onnxio.to_bytes(b.nodes, inputs, dict.fromkeys(outputs), b.constants, 18))
    types |= {n: TensorType(v.dtype.name, v.shape) for n, v in b.constants.items()}
    return Program(list(b.nodes), types, dict(b.constants), tuple(inputs), outputs, 18)


def results(p: Program) -> list[Array]:
    """The outputs on noise."""
    rng = np.random.default_rng(3)
    inputs = {n: p.types[n] for n in p.inputs}
    feeds = {n: rng.standard_normal(k.shape).astype(np.float32) for n, k in inputs.items()}
    used = {i for n in p.nodes for i in n.inputs}
    model = onnxio.to_bytes(
        p.nodes, {n: k for n, k in inputs.items() if n in used}, dict.fromkeys(p.outputs), p.constants, p.opset
    )
    return run_once(model, {n: v for n, v in feeds.items() if n in used}, p.outputs)


def ops(p: Program) -> list[str]:
    return [n.op for n in p.nodes]


def unchanged(p: Program, before: list[Array]) -> None:
    check(p, "the test", frozenset())
    for new, old in zip(results(p), before, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)


def test_equal_nodes_are_computed_once() -> None:
    b = Builder("t")
    first, second = b.op("Exp", "x"), b.op("Exp", "x")
    b.op("Add", b.op("Mul", first, b.scalar(2)), b.op("Mul", second, b.scalar(2)), name="y")
    p = program(b, "y")
    before = results(p)
    assert common.merge(p) and ops(p) == ["Exp", "Mul", "Add"]
    assert not common.merge(p)
    unchanged(p, before)


def test_nodes_that_differ_in_an_attribute_stay() -> None:
    b = Builder("t")
    b.op("Add", b.op("Softmax", "x", axis=1), b.op("Softmax", "x", axis=2), name="y")
    p = program(b, "y")
    assert not common.merge(p)


def test_an_output_that_equals_another_is_still_made() -> None:
    b = Builder("t")
    b.op("Exp", "x", name="y")
    b.op("Exp", "x", name="z")
    p = program(b, "y", "z")
    before = results(p)
    common.merge(p)
    unchanged(p, before)


def test_dead_code_goes() -> None:
    b = Builder("t")
    b.op("Exp", b.op("Add", "x", b.scalar(1)))
    b.op("Relu", "x", name="y")
    p = program(b, "y")
    assert dead.remove(p) and ops(p) == ["Relu"] and not p.constants
    assert not dead.remove(p)


def test_constants_are_folded_and_inputs_are_not() -> None:
    b = Builder("t")
    half = b.op("Div", b.constant(np.ones((6, 4), np.float32)), b.scalar(2))
    b.op("Add", b.op("Mul", "x", b.op("Sqrt", half)), b.op("Exp", "m"), name="y")
    p = program(b, "y")
    p.constants["m"] = np.zeros((6, 4), np.float32)  # known, and an input all the same: a weight
    before = results(p)
    assert (fold.fold(p) and ops(p) == ["Exp", "Mul", "Add"]) or ops(p) == ["Mul", "Exp", "Add"]
    unchanged(p, before)


def test_a_value_larger_than_what_it_is_made_of_is_not_folded() -> None:
    b = Builder("t")
    b.op("Add", b.op("Expand", b.scalar(1), b.ints(200, 6, 4)), "m", name="y")
    assert not fold.fold(program(b, "y"))


def test_a_folded_output_is_still_made() -> None:
    b = Builder("t")
    b.op("Exp", b.constant(np.ones(3, np.float32)), name="y")
    p = program(b, "y")
    before = results(p)
    assert fold.fold(p)
    unchanged(p, before)


def test_nodes_that_move_nothing_go() -> None:
    b = Builder("t")
    t = b.op("Transpose", b.op("Transpose", "x", perm=[0, 2, 1]), perm=[0, 2, 1])
    t = b.op("Squeeze", b.op("Unsqueeze", b.op("Identity", t), b.ints(1)), b.ints(1))
    b.op("Identity", b.op("Exp", b.op("Expand", t, b.ints(2, 6, 4))), name="y")
    p = program(b, "y")
    before = results(p)
    while noops.remove(p):
        dead.remove(p)
    assert ops(p) == ["Exp"]
    unchanged(p, before)


def test_a_transposition_of_short_axes_is_a_reshape() -> None:
    b = Builder("t")
    wide = b.op("Reshape", "x", b.ints(2, 1, 6, 4))
    b.op("Exp", b.op("Transpose", wide, perm=[0, 2, 3, 1]), name="y")
    p = program(b, "y")
    before = results(p)
    while noops.remove(p):
        dead.remove(p)
    assert ops(p) == ["Reshape", "Exp"]
    unchanged(p, before)


def test_an_input_that_leaves_unchanged_is_copied() -> None:
    b = Builder("t")
    b.op("Identity", "x", name="y")
    b.op("Identity", "x", name="z")
    p = program(b, "y", "z")
    before = results(p)
    noops.remove(p)
    unchanged(p, before)


@pytest.mark.parametrize("side", [0, 1])
def test_products_read_transposed_factors(side: int) -> None:
    b = Builder("t")
    factors = ["x", b.op("Transpose", "x", perm=[0, 2, 1])]
    b.op("MatMul", *(factors if side else factors[::-1]), name="y")
    b.op("Gemm", b.op("Transpose", "m", perm=[1, 0]), "m", transB=0, name="z")
    p = program(b, "y", "z")
    before = results(p)
    assert products.absorb_transposes(p)
    dead.remove(p)
    assert ops(p) == ["FusedMatMul", "Gemm"]
    unchanged(p, before)


def test_a_transposition_that_others_read_stays() -> None:
    b = Builder("t")
    turned = b.op("Transpose", "m", perm=[1, 0])
    b.op("Exp", turned, name="z")
    b.op("Gemm", turned, "m", name="y")
    p = program(b, "y", "z")
    assert not products.absorb_transposes(p)


def test_the_runner_names_a_pass_that_breaks_a_program() -> None:
    b = Builder("t")
    b.op("Exp", b.op("Relu", "x"), name="y")
    p = program(b, "y")
    p.nodes.reverse()
    with pytest.raises(EngineError, match=r"some pass left Exp .* reading 't0' before it is made"):
        check(p, "some pass", frozenset())
    p.nodes = [Node("Relu", ("x",), ("y",)), Node("Exp", ("x",), ("y",))]
    with pytest.raises(EngineError, match="made twice"):
        check(p, "some pass", frozenset())
    p.nodes = [Node("Relu", ("x",), ("new",))]
    with pytest.raises(EngineError, match="'y' unmade"):
        check(p, "some pass", frozenset())
    p.nodes.append(Node("Relu", ("new",), ("y",)))
    with pytest.raises(EngineError, match="without a type"):
        check(p, "some pass", frozenset())


def test_lowering_keeps_the_results() -> None:
    b = Builder("t")
    t = b.op("Transpose", "w", perm=[0, 2, 1])
    s = b.op("Flatten", b.op("Add", "x", b.op("Identity", t)), axis=1)
    b.op("Softmax", b.op("Mul", s, b.op("Exp", b.scalar(0))), name="y")
    p = program(b, "y")
    before = results(p)
    done = lower(p.nodes, p.types, p.constants, p.inputs, p.outputs, p.opset)
    unchanged(done, before)


def padded(b: Builder, x: str, before: int, behind: int, value: float = 0) -> str:
    return b.op("Pad", x, b.ints(0, before, 0, 0, behind, 0), b.scalar(value))


def test_a_sum_of_pieces_that_cover_an_axis_is_a_concat() -> None:
    b = Builder("t")
    shapes: dict[str, tuple[int, ...]] = {"a": (2, 1, 4), "b": (2, 3, 4), "c": (2, 2, 4)}
    b.op("Add", b.op("Add", padded(b, "c", 4, 0), padded(b, "a", 0, 5)), padded(b, "b", 1, 2), name="y")
    p = program(b, "y", shapes=shapes)
    before = results(p)
    assert pieces.join(p)
    dead.remove(p)
    assert ops(p) == ["Concat"]
    unchanged(p, before)


@pytest.mark.parametrize("length", [2, 4])
def test_pieces_with_a_gap_or_an_overlap_are_added(length: int) -> None:
    b = Builder("t")
    b.op("Add", padded(b, "a", 0, 5 - length), padded(b, "b", 3, 0), name="y")
    p = program(b, "y", shapes={"a": (2, length, 4), "b": (2, 2, 4)})
    assert not pieces.join(p)


def test_pieces_padded_with_something_else_or_broadcast_are_added() -> None:
    b = Builder("t")
    shapes: dict[str, tuple[int, ...]] = {"a": (2, 2, 4), "b": (2, 3, 4), "d": (1, 3, 4)}
    b.op("Add", padded(b, "a", 0, 3, 1.0), padded(b, "b", 2, 0), name="y")
    b.op("Add", padded(b, "a", 0, 3), padded(b, "d", 2, 0), name="z")
    p = program(b, "y", "z", shapes=shapes)
    assert not pieces.join(p)


def test_arithmetic_reads_through_an_expand() -> None:
    b = Builder("t")
    wide = b.op("Expand", "s", b.ints(2, 6, 4))
    b.op("Add", b.op("Mul", wide, "x"), b.op("Sub", wide, wide), name="y")
    p = program(b, "y", shapes={"x": (2, 6, 4), "s": (2, 1, 4)})
    before = results(p)
    assert broadcasts.absorb_expands(p)
    assert p.nodes[1].inputs == ("s", "x")
    assert p.nodes[2].inputs[1] == wide  # one of them has to keep the shape
    unchanged(p, before)


def test_results_leave_in_the_shape_in_which_they_are_made() -> None:
    b = Builder("t")
    b.op("Reshape", b.op("Exp", "m"), b.ints(3, 8), name="y")
    b.op("Reshape", b.op("Relu", "m"), b.ints(24), name="z")
    b.op("Reshape", "m", b.ints(4, 6), name="copy")
    b.op("Neg", "z", name="n")
    p = program(b, "y", "z", "copy", "n")
    before = results(p)
    p.loose = frozenset(("y", "z", "copy"))
    assert leaving.drop_reshapes(p)
    assert p.types["y"].shape == (6, 4)
    assert p.types["z"].shape == (24,)  # something reads it in that shape
    for new, old in zip(results(p), before, strict=True):
        np.testing.assert_array_equal(new.reshape(-1), old.reshape(-1))


def test_what_the_runtime_has_no_kernel_for_is_written_out() -> None:
    b = Builder("t")
    b.op("HardSwish", "x", name="y")
    p = program(b, "y")
    before = results(p)
    assert functions.write_out(p) and not functions.write_out(p)
    assert ops(p) == ["HardSigmoid", "Mul"]
    unchanged(p, before)
