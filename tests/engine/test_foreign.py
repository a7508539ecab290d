"""Models as other tools write them: endings, element types, opsets, several outputs, weights out of reach."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sanderling.engine import ModelError, NonFiniteError, Trainer, UnsupportedOperatorError, compile, evaluate
from sanderling.engine.rules import RULES
from sanderling.engine.slots import SLOTS

RNG = np.random.default_rng(5)
W = RNG.standard_normal((4, 3)).astype(np.float32)
X = RNG.standard_normal((6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def linear(*after: Any, opset: int = 18, result: int = TensorProto.FLOAT) -> bytes:
    """A linear layer "h" and these nodes, the last of which writes "y"; int64 constants "same" and "flat"."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"), *after]
    constants = [
        numpy_helper.from_array(W, "w"),
        numpy_helper.from_array(np.eye(3, dtype=np.float32), "v"),
        numpy_helper.from_array(np.array([-1, 3]), "same"),
        numpy_helper.from_array(np.array([-1, 1, 3]), "flat"),
        numpy_helper.from_array(np.array(1), "axis"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", result, None)], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    data: bytes = model.SerializeToString()
    return data


def node(op: str, source: str, target: str = "y", *more: str, **attributes: Any) -> Any:
    return helper.make_node(op, [source, *more], [target], name=op.lower() if target == "y" else target, **attributes)


def gradient_of_cross_entropy() -> Any:
    """The gradient by hand: x^T (softmax - one-hot) / N."""
    logits = X.astype(np.float64) @ W
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return X.T @ (p - np.eye(3)[LABELS]) / len(X)


ENDINGS: dict[str, bytes] = {
    "softmax": linear(node("Softmax", "h", axis=1)),
    "softmax-identity": linear(node("Softmax", "h", "p", axis=1), node("Identity", "p")),
    "softmax-reshape": linear(node("Softmax", "h", "p"), node("Reshape", "p", "y", "same")),
    "reshape-softmax-reshape": linear(
        node("Reshape", "h", "f", "flat"), node("Softmax", "f", "p"), node("Reshape", "p", "y", "same")
    ),
    "softmax-opset-11": linear(node("Softmax", "h", axis=1), opset=11),
    "softmax-double": linear(
        node("Softmax", "h", "p"), node("Cast", "p", to=TensorProto.DOUBLE), result=TensorProto.DOUBLE
    ),
    "double": linear(node("Cast", "h", to=TensorProto.DOUBLE), result=TensorProto.DOUBLE),
    "log-softmax": linear(node("LogSoftmax", "h", axis=1)),
    **{f"opset-{version}": linear(node("Identity", "h"), opset=version) for version in (7, 13, 21, 22, 24, 28)},
}


@pytest.mark.parametrize("model", ENDINGS.values(), ids=list(ENDINGS))
def test_cross_entropy_is_of_the_logits_however_the_model_ends(model: bytes) -> None:
    _, gradients = Trainer(compile(model, batch=6)).gradients(X, LABELS)
    np.testing.assert_allclose(gradients["w"], gradient_of_cross_entropy(), rtol=1e-4, atol=1e-6)


def test_a_gradient_passes_through_half_precision() -> None:
    model = linear(node("Cast", "h", "half", to=TensorProto.FLOAT16), node("Cast", "half", to=TensorProto.FLOAT))
    _, gradients = Trainer(compile(model, batch=6)).gradients(X, LABELS)
    np.testing.assert_allclose(gradients["w"], gradient_of_cross_entropy(), atol=2e-3)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_model_in_half_precision_trains_in_float32(kind: int, tmp_path: Path) -> None:
    model = onnx.load_from_string(linear(node("Identity", "h")))
    half = helper.make_tensor("w", kind, [4, 3], W.reshape(-1).astype(np.float64).tolist())
    model.graph.initializer[0].CopyFrom(half)
    ends = (*model.graph.input, *model.graph.output)
    if kind == TensorProto.FLOAT16:
        for value in ends:
            value.type.tensor_type.elem_type = kind
    else:  # arrays of this type are rare: such models convert what comes in and goes out
        model.graph.node[0].input[0] = "half"
        model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["half"], to=kind))
        model.graph.node[-1].CopyFrom(helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT))
    before = [value.type.tensor_type.elem_type for value in ends]
    plan = compile(model.SerializeToString(), batch=6)
    trainer = Trainer(plan)
    assert trainer.weights()["w"].dtype == np.float32
    _, gradients = trainer.gradients(X.astype(plan.info.inputs[0].dtype), LABELS)
    np.testing.assert_allclose(gradients["w"], gradient_of_cross_entropy(), atol=2e-2)
    trainer.export(tmp_path / "new.onnx")
    new = onnx.load(tmp_path / "new.onnx").graph
    assert [value.type.tensor_type.elem_type for value in (*new.input, *new.output)] == before
    assert new.initializer[0].data_type == TensorProto.FLOAT


def test_weights_in_double_precision_are_refused() -> None:
    model = onnx.load_from_string(linear(node("Identity", "h")))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(W.astype(np.float64), "w"))
    with pytest.raises(ModelError, match="'w' holds double precision"):
        compile(model.SerializeToString(), batch=6)


REFUSED: list[tuple[bytes, type[Exception], str]] = [
    (linear(node("ArgMax", "h", axis=1), result=TensorProto.INT64), ModelError, "'y' is int64"),
    (linear(node("CumProd", "h", "y", "axis"), opset=26), ModelError, "CumProd .node 'cumprod'.*may mean something"),
    (linear(node("Identity", "h"), opset=29), ModelError, "opset 29 is newer than 28"),
    (linear(node("Round", "h")), ModelError, "no gradient reaches the weights to train .w.*Round"),
    (linear(node("Hardmax", "h")), UnsupportedOperatorError, "Hardmax .node 'hardmax'."),
    (linear(node("RandomNormalLike", "h")), UnsupportedOperatorError, "RandomNormalLike.*draws random numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "error", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_what_cannot_be_trained_is_refused_by_name(model: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compile(model, batch=6)


@pytest.mark.parametrize(("segments", "message"), [(1, "weights are kept"), (6, "go back to the last save")])
def test_a_gradient_that_is_not_finite_is_never_applied(segments: int, message: str) -> None:
    # the root of 0 has an infinite slope, which the relu before it makes NaN; the loss is finite
    model = linear(
        node("Abs", "h", "a"), node("Neg", "a", "n"), node("Relu", "n", "r"), node("Sqrt", "r", "s"),
        helper.make_node("MatMul", ["s", "v"], ["y"], name="last"),
    )  # fmt: skip
    trainer = Trainer(compile(model, batch=6, segments=segments))
    before = trainer.weights()
    with pytest.raises(NonFiniteError, match=f"gradient of w is not finite at step 1.*{message}"):
        trainer.step(X, LABELS)
    after = trainer.weights()
    assert np.array_equal(after["w"], before["w"]) and np.isfinite(after["v"]).all()
    assert segments > 1 or np.array_equal(after["v"], before["v"])


torch = pytest.importorskip("torch", reason="PyTorch is not installed: its exports need it")


class Recurrent(torch.nn.Module):  # type: ignore[misc, name-defined]
    """An operator with weights and without rules, then a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.LSTM(4, 5, batch_first=True), torch.nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        """[N, time, 4] -> [N, 3]."""
        return self.head(self.body(x)[0][:, -1])


def test_weights_out_of_reach_are_never_left_out_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "LSTM")
    monkeypatch.delitem(SLOTS, "LSTM")
    torch.manual_seed(3)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Recurrent().eval(), (torch.zeros(6, 2, 4),), buffer, dynamo=False, opset_version=17)
    with pytest.raises(UnsupportedOperatorError, match=r"LSTM .* has no gradient rule.*`trainable`"):
        compile(buffer.getvalue(), batch=6)
    trainer = Trainer(compile(buffer.getvalue(), batch=6, trainable=["head.*"]), learning_rate=0.05)
    x = RNG.standard_normal((6, 2, 4)).astype(np.float32)
    losses = [trainer.step(x, LABELS) for _ in range(150)]
    assert losses[-1] < 0.7 * losses[0]
    trainer.export(tmp_path / "new.onnx")
    onnx.checker.check_model(str(tmp_path / "new.onnx"))
    assert evaluate(tmp_path / "new.onnx", {trainer.plan.info.inputs[0].name: x}, LABELS) > 0.6
