"""Operators that are written out on reading: the same values as the runtime's own operator, and right gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sanderling.engine import UnsupportedOperatorError, onnxio
from sanderling.engine.checker import pull_back
from sanderling.engine.contrib import MICROSOFT
from sanderling.engine.decompose import REWRITES
from sanderling.engine.graph import Graph
from sanderling.engine.runtime import run_once
from sanderling.engine.slots import weight_names

I64 = np.int64


@dataclass(frozen=True)
class Case:
    """One node with float arguments and constants by name; "" is an omitted input."""

    op: str
    inputs: dict[str, Any]  # name -> shape of a float argument, or the value of a constant
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    outputs: int = 1
    opset: int = 18
    label: str = ""

    def __str__(self) -> str:
        return f"{self.op}{'-contrib' if self.domain else ''}{'-' + self.label if self.label else ''}"

    @property
    def arguments(self) -> dict[str, tuple[int, ...]]:
        return {n: s for n, s in self.inputs.items() if isinstance(s, tuple)}

    def model(self) -> bytes:
        names = ["" if n.startswith("none") else n for n in self.inputs]
        outputs = ["out", *(f"out{i}" if i == self.outputs - 1 else "" for i in range(1, self.outputs))]
        node = helper.make_node(self.op, names, outputs, domain=self.domain, name="node", **self.attributes)
        graph = helper.make_graph(
            [node], "g",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.arguments.items()],
            [helper.make_empty_tensor_value_info(o) for o in outputs if o],
            [numpy_helper.from_array(v, n) for n, v in self.inputs.items() if isinstance(v, np.ndarray)],
        )  # fmt: skip
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        data: bytes = model.SerializeToString()
        return data


def contrib(op: str, inputs: dict[str, Any], label: str = "", *, outputs: int = 1, **attributes: Any) -> Case:
    return Case(op, inputs, attributes, MICROSOFT, outputs, label=label)


X = (2, 3, 8)
BERT = {"x": (2, 4, 6), "w": (6, 18), "b": (18,)}
CONV = {"x": (1, 3, 6, 6), "w": (4, 3, 3, 3), "b": (4,)}
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32)
QKV = {"q": (2, 4, 3, 8), "k": (2, 4, 5, 8), "v": (2, 4, 5, 8)}
WAVES = {"cos": np.cos(np.arange(20, dtype=np.float32)).reshape(5, 4),
         "sin": np.sin(np.arange(20, dtype=np.float32)).reshape(5, 4)}  # fmt: skip
PLACES = np.array([[0, 1, 2], [2, 3, 4]], I64)

CASES = [
    contrib("Gelu", {"x": X}),
    contrib("BiasGelu", {"x": X, "b": (8,)}),
    contrib("FastGelu", {"x": X}),
    contrib("FastGelu", {"x": X, "b": (8,)}, "bias"),
    contrib("QuickGelu", {"x": X}, alpha=1.5),
    *(contrib("FusedConv", CONV, kind, outputs=1, kernel_shape=[3, 3], strides=[2, 2], activation=kind, **more)
      for kind, more in [("Relu", {}), ("Sigmoid", {}), ("Tanh", {}), ("LeakyRelu", {"activation_params": [0.3]}),
                         ("Clip", {"activation_params": [-0.5, 0.5]}),
                         ("HardSigmoid", {"activation_params": [0.3, 0.4]})]),
    contrib("FusedConv", CONV | {"z": (1, 4, 6, 6)}, "sum", kernel_shape=[3, 3], pads=[1] * 4, activation="Relu"),
    contrib("FusedGemm", {"a": (3, 4), "b": (5, 4), "c": (5,)}, transB=1, alpha=0.5, activation="Tanh"),
    contrib("FusedMatMul", {"a": (2, 4, 3), "b": (2, 5, 4)}, transA=1, transB=1, alpha=0.5),
    contrib("FusedMatMul", {"a": (3, 2, 4), "b": (2, 4, 5)}, "batch", transBatchA=1),
    contrib("SkipLayerNormalization", {"x": X, "s": X, "g": (8,), "b": (8,)}, epsilon=0.1),
    contrib("SkipLayerNormalization", {"x": X, "s": X, "g": (8,), "b": (8,), "c": (8,)}, "sum", outputs=4, epsilon=0.1),
    contrib("SkipSimplifiedLayerNormalization", {"x": X, "s": X, "g": (8,)}, epsilon=0.1),
    contrib("EmbedLayerNormalization", {"i": np.array([[1, 2, 0]], np.int32), "none": None, "w": (4, 6), "p": (3, 6),
                                        "none2": None, "g": (6,), "b": (6,)}, outputs=2, epsilon=0.1),
    contrib("Attention", BERT, num_heads=2),
    contrib("Attention", BERT, "causal", num_heads=2, unidirectional=1),
    contrib("Attention", BERT | {"m": MASK}, "mask", num_heads=3),
    contrib("Attention", BERT | {"m": MASK.sum(1, dtype=np.int32)}, "lengths", num_heads=3),
    Case("SimplifiedLayerNormalization", {"x": X, "s": (8,)}, {"epsilon": 0.1}),
    Case("RMSNormalization", {"x": X, "s": (8,)}, {"epsilon": 0.1}, opset=23),
    Case("RMSNormalization", {"x": X, "s": (3, 8)}, {"axis": 1}, opset=23, label="axes"),
    Case("Swish", {"x": X}, opset=24),
    Case("Swish", {"x": X}, {"alpha": 1.7}, opset=24, label="steep"),
    Case("LRN", {"x": (2, 7, 3, 2)}, {"size": 5, "alpha": 0.3, "beta": 0.6, "bias": 1.5}),
    Case("MeanVarianceNormalization", {"x": (2, 3, 4, 2)}),
    Case("GroupNormalization", {"x": (2, 6, 3, 2), "s": (6,), "b": (6,)}, {"num_groups": 3}, opset=21),
    Case("Attention", QKV, opset=23),
    Case("Attention", QKV | {"m": (3, 5)}, {"scale": 0.3, "softcap": 2.0}, opset=23, label="mask"),
    Case("Attention", QKV | {"m": np.tri(3, 5, 1, dtype=bool)}, opset=23, label="truth"),
    Case("Attention", {"q": (2, 3, 16), "k": (2, 3, 8), "v": (2, 3, 8)},
         {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1}, opset=23, label="flat-grouped"),
    Case("RotaryEmbedding", {"x": (2, 2, 3, 8)} | WAVES | {"p": PLACES}, opset=23),
    Case("RotaryEmbedding", {"x": (2, 3, 20)} | WAVES | {"p": PLACES},
         {"num_heads": 2, "interleaved": 1, "rotary_embedding_dim": 8}, opset=23, label="flat-interleaved"),
]  # fmt: skip
#: Rewritten operators with tests of their own below, or none that the runtime could be compared with.
ELSEWHERE = {"CastLike", "If", "SequenceAt", "ConcatFromSequence", "TransposeMatMul", "LayerNormalization"}


def read(model: bytes) -> Graph:
    proto, name = onnxio.load_model(model)
    return onnxio.to_graph(onnxio.normalize(proto, name), None, frozenset(), name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_are_the_runtime_s_and_gradients_are_slopes(case: Case) -> None:
    rng = np.random.default_rng(1)
    inputs = {n: (0.8 * rng.standard_normal(s)).astype(np.float32) for n, s in case.arguments.items()}
    graph = read(case.model())
    assert all((n.domain == "" and (n.op, n.domain) != (case.op, case.domain)) or n.op == "Gelu" for n in graph.nodes)
    outputs = [o for o in graph.outputs if o not in graph.constants]
    kinds = {n: graph.types[n] for n in graph.inputs}
    constants = dict(graph.constants)
    # float64 is not needed to see a wrong formula: differences of the written-out graph in float32, in a long step
    written = onnxio.to_bytes(graph.nodes, kinds, dict.fromkeys(outputs), constants, graph.opset)
    values = run_once(written, inputs, outputs)
    for given, wanted in zip(values, run_once(case.model(), inputs, outputs), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=2e-4, atol=2e-5)
    shapes = {o: v.shape for o, v in zip(outputs, values, strict=True) if v.dtype == np.float32}
    seeds = {o: rng.standard_normal(shape).astype(np.float32) for o, shape in shapes.items()}
    gradients = pull_back(graph, inputs, seeds, list(inputs))
    for name, gradient in gradients.items():
        length = float(np.linalg.norm(gradient))
        direction = (gradient / length).astype(np.float32)
        sums = []
        for step in (0.005, -0.005):
            moved = run_once(written, inputs | {name: inputs[name] + np.float32(step) * direction}, outputs)
            sums.append(
                sum(float(np.sum(v.astype(np.float64) * seeds[o])) for o, v in zip(outputs, moved, strict=True))
            )
        assert abs((sums[0] - sums[1]) / 0.01 - length) < 0.02 * length + 1e-3, name


def test_every_rewrite_has_a_case() -> None:
    assert {op for _, op in REWRITES} == {c.op for c in CASES} | ELSEWHERE


@pytest.mark.parametrize("name", ["ds_cnn_2d", "transformer", "mobilenet_v3_small", "squeezenet"])
def test_files_that_the_runtime_has_optimized_have_the_same_gradients(name: str, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: its exports need it")
    import onnxruntime as ort

    from tests.support.zoo import export, module, sample

    assert torch
    model = export(module(name), sample(name), "torchscript", True)
    path = tmp_path / "optimized.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert any(n.domain == MICROSOFT for n in onnx.load(path).graph.node), "nothing was fused"
    x = sample(name)
    results = []
    for data in (model, path.read_bytes()):
        proto = onnxio.normalize(*onnxio.load_model(data))
        weights = weight_names(proto)
        graph = onnxio.to_graph(proto, len(x), frozenset(weights), "model")
        seed = np.random.default_rng(0).standard_normal(graph.types["logits"].shape).astype(np.float32)
        results.append(pull_back(graph, {"x": x}, {"logits": seed}, weights))
    plain, optimized = results
    common = [n for n in plain if n in optimized and plain[n].shape == optimized[n].shape]
    assert len(common) >= 0.8 * len(plain)
    for n in common:
        np.testing.assert_allclose(optimized[n], plain[n], rtol=1e-3, atol=1e-4 * np.abs(plain[n]).max(), err_msg=n)


def linear(*nodes: Any, outputs: list[str], constants: dict[str, Any], opset: int = 18) -> bytes:
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def gradient_of(model: bytes) -> Any:
    graph = onnxio.to_graph(onnxio.normalize(*onnxio.load_model(model)), 2, frozenset(), "model")
    x = np.arange(12, dtype=np.float32).reshape(2, 6) / 10
    seed = np.ones(graph.types["y"].shape, np.float32)
    return pull_back(graph, {"x": x}, {"y": seed}, ["x"])["x"]


@pytest.mark.parametrize("sizes", [np.array(2), np.array(4), np.array([1, 3, 2]), None], ids=str)
def test_sequences_of_parts_are_slices(sizes: Any) -> None:
    given = {} if sizes is None else {"sizes": sizes}
    model = linear(
        helper.make_node("SplitToSequence", ["x", *given], ["parts"], axis=1),
        helper.make_node("SequenceAt", ["parts", "last"], ["a"]),
        helper.make_node("SequenceAt", ["parts", "first"], ["b"]),
        helper.make_node("SequenceConstruct", ["b", "b"], ["both"]),
        helper.make_node("ConcatFromSequence", ["both"], ["c"], axis=0, new_axis=1),
        helper.make_node("ReduceSum", ["c"], ["d"], keepdims=0),
        helper.make_node("ReduceSum", ["a"], ["e"], keepdims=0),
        helper.make_node("Add", ["d", "e"], ["y"]),
        outputs=["y"], constants={**given, "last": np.array(-1), "first": np.array(0)},
    )  # fmt: skip
    first, last = {"2": (2, 2), "4": (4, 2), "[1 3 2]": (1, 2), "None": (1, 1)}[str(sizes)]
    wanted = np.zeros((2, 6))
    wanted[:, :first] += 2
    wanted[:, 6 - last :] += 1
    np.testing.assert_array_equal(gradient_of(model), wanted)


@pytest.mark.parametrize("wide", [True, False])
def test_an_if_that_shapes_decide_is_its_branch(wide: bool) -> None:
    def branch(name: str, factor: float) -> Any:
        return helper.make_graph(
            [helper.make_node("Mul", ["x", f"{name}.factor"], [f"{name}.out"])], name, [],
            [helper.make_empty_tensor_value_info(f"{name}.out")],
            [numpy_helper.from_array(np.array(factor, np.float32), f"{name}.factor")],
        )  # fmt: skip

    model = linear(
        helper.make_node("Shape", ["x"], ["shape"], start=1),
        helper.make_node("Greater", ["shape", "limit"], ["wide"]),
        helper.make_node("If", ["wide"], ["y"], then_branch=branch("then", 3.0), else_branch=branch("else", 5.0)),
        outputs=["y"], constants={"limit": np.array([4 if wide else 8])},
    )  # fmt: skip
    np.testing.assert_array_equal(gradient_of(model), np.full((2, 6), 3.0 if wide else 5.0))


def test_layer_normalization_from_before_the_standard_had_it() -> None:
    ones = {"s": np.ones(6, np.float32), "b": np.zeros(6, np.float32)}
    nodes = [helper.make_node("LayerNormalization", ["x", "s", "b"], ["n"]), helper.make_node("Mul", ["n", "n"], ["y"])]
    model = linear(*nodes, outputs=["y"], constants=ones, opset=12)
    np.testing.assert_allclose(gradient_of(model), 0, atol=0.01)  # the mean of squares is fixed, but for epsilon


def test_fused_operators_that_are_not_known_are_refused() -> None:
    case = contrib("FusedConv", CONV, kernel_shape=[3, 3], activation="Mystery")
    with pytest.raises(UnsupportedOperatorError, match=r"FusedConv .node 'node'.*fused with Mystery"):
        read(case.model())
    with pytest.raises(UnsupportedOperatorError, match=r"Attention .node 'node'.*cache"):
        read(Case("Attention", QKV | {"none": None, "p": (2, 4, 1, 8), "o": (2, 4, 1, 8)}, opset=23).model())
