"""What is refused: batches, weights, models, plans; each by name, and nothing changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sanderling.engine import (
    DataError,
    EngineError,
    ModelError,
    NonFiniteError,
    PlanError,
    Trainer,
    TrainingPlan,
    UnsupportedOperatorError,
    compile,
    models,
    onnxio,
)
from sanderling.engine.blocked import probe_model
from sanderling.engine.graph import Builder, TensorType

BAD_BATCHES: list[tuple[Any, Any, str]] = [
    (np.zeros((4, 5), np.float32), np.zeros(4, int), r"shape \[4, 5\].*\[N, 4\]"),
    (np.zeros((4, 4), np.float32), np.zeros(3, int), "3 samples"),
    (np.zeros((4, 4), np.float32), np.array([0, 1, 2, 3]), "labels run from 0 to 3.*2 classes"),
    (np.zeros((4, 4), np.float32), np.array([0, -1, 0, 0]), "labels must be 0 to 1"),
    (np.zeros((4, 4), np.float32), np.zeros(4, np.float32), "integers"),
    (np.zeros((0, 4), np.float32), np.zeros(0, int), "no samples"),
    ({"z": np.zeros((4, 4), np.float32)}, np.zeros(4, int), "the model has 'x'"),
    (np.array([["a"] * 4]), np.zeros(1, int), "numbers"),
    (np.zeros((4, 4), complex), np.zeros(4, int), "numbers"),
    (np.zeros((4, 4), np.float32).astype(object), np.zeros(4, int), "numbers"),
    (np.zeros((4, 4), "M8[s]"), np.zeros(4, int), "numbers"),
    ([[1, 2], [3]], np.zeros(4, int), "is no array"),
    (np.zeros((4, 4), np.float32), [[0], [1, 2]], "is no array"),
    (np.zeros((4, 4), np.float32), None, "needs targets"),
    (None, np.zeros(4, int), r"shape \[\]"),
    (np.zeros((4, 4), np.float32), np.zeros(4, bool), "integers"),
    (np.zeros((4, 4), np.float32), np.full(4, 2**63, np.uint64), "labels run from"),
    (np.zeros((4, 4), np.float32), {"label": np.zeros(4, int)}, "targets given: label"),
    ({"x": np.zeros((4, 4)), "z": np.zeros((4, 4))}, np.zeros(4, int), "inputs given: x, z"),
]


@pytest.mark.parametrize(("inputs", "targets", "message"), BAD_BATCHES, ids=[b[2] for b in BAD_BATCHES])
def test_a_bad_batch_is_refused_and_changes_nothing(inputs: Any, targets: Any, message: str) -> None:
    trainer = Trainer(compile(models.mlp(4, [3], 2)))
    before = trainer.weights()
    with pytest.raises(DataError, match=message):
        trainer.step(inputs, targets)
    assert trainer.steps == 0
    assert all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())


@pytest.mark.parametrize("segments", [1, 2])
def test_a_loss_that_is_not_finite_keeps_the_weights(segments: int) -> None:
    trainer = Trainer(compile(models.mlp(4, [3], 2), segments=segments))
    before = trainer.weights()
    with pytest.raises(NonFiniteError, match="learning rate"):
        trainer.step(np.full((2, 4), np.nan, np.float32), np.zeros(2, int))
    assert all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())
    with pytest.raises(NonFiniteError, match="not finite"):
        trainer.step(np.full((2, 4), 1e300), np.zeros(2, int))  # beyond float32
    for bad in (np.array([np.nan, 0]), np.array([1e300, 0]), np.array([1j, 0])):
        with pytest.raises(DataError, match="finite"):
            trainer.set_weights({"head.bias": bad})
    with pytest.raises(DataError, match="no array"):
        trainer.set_weights({"head.bias": [[1], [1, 2]]})
    assert all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())


def test_token_numbers_out_of_range_are_the_caller_s() -> None:
    b = Builder("h")
    table, w = (b.constant(np.random.default_rng(0).standard_normal(s).astype(np.float32)) for s in ((9, 4), (4, 3)))
    b.op("MatMul", b.op("Gather", table, "x", axis=0), w, name="y")
    kinds = {"x": TensorType("int64", (1,))}, {"y": TensorType("float32", (1, 3))}
    trainer = Trainer(compile(onnxio.to_bytes(b.nodes, *kinds, b.constants, 18, free_batch=True), batch=2))
    before = trainer.weights()
    trainer.loss(np.array([0, 8]), np.array([0, 1]))
    with pytest.raises(DataError, match=r"out of range.*must be within"):
        trainer.step(np.array([0, 9]), np.array([0, 1]))
    assert all(np.array_equal(v, before[n]) for n, v in trainer.weights().items())


def test_models_that_cannot_be_trained_are_named() -> None:
    def single(op: str, **attributes: Any) -> bytes:
        b = Builder("h")
        w = b.constant(np.ones((4, 4), np.float32))
        b.op(op, b.op("MatMul", "x", w), name="y", **attributes)
        kinds = {"x": TensorType("float32", (1, 4))}, {"y": TensorType("float32", (1, 4))}
        return onnxio.to_bytes(b.nodes, *kinds, b.constants, 18, free_batch=True)

    with pytest.raises(UnsupportedOperatorError, match=r"Hardmax.*h1_Hardmax") as caught:
        compile(single("Hardmax"), loss="mse")
    assert (caught.value.operator, caught.value.model) == ("Hardmax", "model")
    with pytest.raises(ModelError, match="not an ONNX model"):
        compile(b"junk")
    with pytest.raises(ModelError, match=r"missing\.onnx: cannot be read"):
        compile("missing.onnx")
    with pytest.raises(EngineError, match="no loss 'hinge'"):
        compile(models.mlp(4, [3], 2), loss="hinge")
    with pytest.raises(EngineError, match="no weight matches 'nose"):
        compile(models.mlp(4, [3], 2), trainable=["nose*"])
    with pytest.raises(EngineError, match="no option"):
        Trainer(compile(models.mlp(4, [3], 2), optimizer="sgd"), beta1=0.5)


def test_a_plan_of_another_processor_is_refused() -> None:
    plan = compile(models.depthwise_cnn_1d())
    if not plan.probe:
        pytest.skip("this processor has no blocked layout, so its plans run anywhere")
    other = probe_model(24 - plan.info.block)  # 8 and 16 exchanged
    plan = TrainingPlan.of(plan.info, plan.models, plan.model, other)
    with pytest.raises(PlanError, match="make the plan on this machine"):
        Trainer(plan)


def test_control_flow_is_refused_by_name() -> None:
    import onnx
    from onnx import TensorProto, helper

    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])],
        "b",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    chosen = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "c"], ["condition"]),
    ]
    node = helper.make_node("If", ["condition"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [*chosen, node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(np.array(0, np.float32), "c")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(UnsupportedOperatorError, match=r"If.*choice.*control flow"):
        compile(model.SerializeToString())
