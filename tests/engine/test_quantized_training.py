"""Whole quantized models as onnxruntime makes them: gradients, forward, training, saving, exports, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sanderling.engine import (
    EngineError,
    Trainer,
    UnsupportedOperatorError,
    compile,
    evaluate,
    export_model,
    models,
    onnxio,
    predict,
    read_weights,
)
from sanderling.engine.graph import Array, Builder, TensorType
from sanderling.engine.plan import Quantization
from sanderling.engine.weights import view_weights
from tests.support.quantized import batch_of, graph_of, quantize, quantized, recalibrated, reference, relative_error
from tests.support.zoo import export, module, sample

torch = pytest.importorskip("torch", reason="PyTorch is not installed: whole models are compared with it")

#: Ways in which onnxruntime quantizes: options of `quantize`.
WAYS: dict[str, dict[str, Any]] = {
    "channels": {"per_channel": True},
    "tensors": {"per_channel": False, "activation": "uint8", "weight": "uint8"},
    "reduced": {"activation": "uint8", "reduce_range": True},
    "plain": {"prepared": False},
    "symmetric": {"extra_options": {"ActivationSymmetric": True}},
}
#: Other spellings of the same.
SPELLINGS: dict[str, dict[str, Any]] = {
    "contrib": {"extra_options": {"UseQDQContribOps": True}},
    "contrib-wide": {"activation": "uint16", "extra_options": {"UseQDQContribOps": True}},
    "wide": {"activation": "int16", "weight": "int16"},
    "real-weights": {"extra_options": {"AddQDQPairToWeight": True}},
    "real-biases": {"extra_options": {"QuantizeBias": False}},
    "zero-points": {"weight": "uint8", "activation": "uint8", "extra_options": {"WeightSymmetric": False}},
    "some": {"op_types_to_quantize": ["Conv"]},
}


@pytest.mark.parametrize("factor", [1.0, 0.3], ids=["calibrated", "saturating"])
@pytest.mark.parametrize(
    ("name", "way"), [*[("mlp", way) for way in WAYS], *[("ds_cnn_1d", way) for way in WAYS], ("ds_cnn_2d", "channels")]
)
def test_gradients_are_those_of_straight_through(name: str, way: str, factor: float) -> None:
    check_gradients(recalibrated(quantized(name, **WAYS[way]), factor), name)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_gradients_of_other_spellings(spelling: str) -> None:
    check_gradients(quantized("ds_cnn_1d", **SPELLINGS[spelling]), "ds_cnn_1d")


@pytest.mark.parametrize("opset", [13, 15, 19, 21])
def test_gradients_of_all_opsets(opset: int) -> None:
    model = export(module("ds_cnn_1d"), sample("ds_cnn_1d"), opset=opset)
    check_gradients(quantize(model, [sample("ds_cnn_1d")]), "ds_cnn_1d")


def test_constants_in_nodes_and_what_is_made_of_them() -> None:
    """As PyTorch writes converted models: constants in nodes, zero points computed, integers cast in between."""
    proto = onnx.load_model_from_string(quantized("mlp"))
    graph = proto.graph
    wanted = read_weights(proto.SerializeToString())
    zeros = {n.input[2] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in wanted}
    constants = [t for t in graph.initializer if t.name not in zeros]
    made = [helper.make_node("Constant", [], [t.name], value=t) for t in constants]
    for tensor in (t for t in graph.initializer if t.name in zeros):
        shape = numpy_helper.from_array(np.array(tensor.dims, np.int64))
        made.append(helper.make_node("Constant", [], [f"{tensor.name}_shape"], value=shape))
        made.append(helper.make_node("ConstantOfShape", [f"{tensor.name}_shape"], [f"{tensor.name}_real"]))
        made.append(helper.make_node("Cast", [f"{tensor.name}_real"], [tensor.name], to=tensor.data_type))
    for node in list(graph.node):
        if node.op_type == "QuantizeLinear":
            made += [
                node,
                helper.make_node("Cast", [node.output[0]], [f"{node.output[0]}_cast"], to=onnx.TensorProto.INT8),
            ]
        else:
            for position, name in enumerate(node.input):
                if name.endswith("QuantizeLinear_Output") and not name.endswith("DequantizeLinear_Output"):
                    node.input[position] = f"{name}_cast"
            made.append(node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(made)
    model = proto.SerializeToString()
    given = read_weights(model)
    assert given.keys() == wanted.keys()
    assert all(np.array_equal(v, wanted[n]) for n, v in given.items())
    check_gradients(model, "mlp")


@pytest.mark.system
@pytest.mark.parametrize(("name", "exporter"), [("mobilenet_v2", "torchscript"), ("resnet18", "dynamo")])
def test_gradients_of_deep_models(name: str, exporter: str) -> None:
    check_gradients(quantized(name, exporter, per_channel=True), name)


def check_gradients(model: bytes, name: str) -> None:
    """Ours against PyTorch's, on the numbers of the deployed model."""
    x, y = batch_of(name, 4)
    graph = graph_of(model, 4)
    weights = read_weights(model)
    logits, leaves = reference(graph, {"x": x}, weights)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y))
    loss.backward()
    given_loss, given = Trainer(compile(model, batch=4)).gradients(x, y)
    assert given_loss == pytest.approx(loss.item(), rel=1e-6)
    assert given.keys() == weights.keys()
    for weight, leaf in leaves.items():
        assert relative_error(given[weight], leaf.grad.numpy()) < 1e-4, weight


def pretrained(samples: int = 256) -> tuple[bytes, Array, Array]:
    """A quantized model that knows half of the classes, and data of all: (model, inputs, labels)."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((7, 6, 50)).astype(np.float32)
    y = rng.integers(0, 7, samples)
    x = (centers[y] + 0.7 * rng.standard_normal((samples, 6, 50))).astype(np.float32)
    trainer = Trainer(compile(models.depthwise_cnn_1d(length=50, widths=(16, 32)), batch=16), 3e-3)
    known = np.flatnonzero(y < 4)
    for _ in range(4):
        for start in range(0, len(known), 16):
            trainer.step(x[known[start : start + 16]], y[known[start : start + 16]])
    return quantize(trainer.export_bytes(), [x[:64]]), x, y


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"segments": 3, "optimizer_state": "dynamic8"}], ids=str)
def test_training_learns_what_it_has_not_seen(options: dict[str, Any]) -> None:
    model, x, y = pretrained(384)
    before = evaluate(model, x[256:], y[256:])
    trainer = Trainer(compile(model, batch=16, **options), 0.02 if options.get("optimizer") == "sgd" else 2e-3)
    for _ in range(5):
        for start in range(0, 256, 16):
            trainer.step(x[start : start + 16], y[start : start + 16])
    assert before < 0.7
    assert evaluate(trainer.export_bytes(), x[256:], y[256:]) > 0.9


def test_the_export_is_the_same_model_with_new_integers(tmp_path: Path) -> None:
    model, x, y = pretrained()
    trainer = Trainer(compile(model, batch=16), 5e-3)
    first = read_weights(model)
    assert trainer.export_bytes() == export_model(model, first)
    assert all(np.array_equal(v, first[n]) for n, v in trainer.weights().items())
    for start in range(0, 128, 16):
        trainer.step(x[start : start + 16], y[start : start + 16])
    trainer.export(tmp_path / "new.onnx")
    new = onnx.load(tmp_path / "new.onnx")
    onnx.checker.check_model(new, full_check=True)
    old = onnx.load_model_from_string(export_model(model, first))
    assert list(new.graph.node) == list(old.graph.node)
    changed = {a.name for a, b in zip(new.graph.initializer, old.graph.initializer, strict=True) if a != b}
    assert changed
    assert changed <= first.keys()
    kinds = {t.name: t.data_type for t in new.graph.initializer}
    assert {kinds[n] for n in changed} == {onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    assert evaluate(tmp_path / "new.onnx", x, y) != evaluate(model, x, y)
    # what callers see comes back exactly, by every way
    seen = trainer.weights()
    assert all(v.dtype == np.float32 for v in seen.values())
    exported = (tmp_path / "new.onnx").read_bytes()
    assert all(np.array_equal(v, seen[n]) for n, v in read_weights(exported).items())
    assert export_model(model, seen) == exported
    other = Trainer(compile(model, batch=16))
    other.set_weights(seen)
    assert other.export_bytes() == exported
    # a change of less than half a step of the scale is none, a larger one is
    info = {how.weight: how for how in trainer.plan.info.quantized}
    name = next(n for n, how in info.items() if how.dtype == "int8")
    step = np.frombuffer(info[name].scale, "<f4").reshape(-1, *[1] * (seen[name].ndim - 1))
    other.set_weights({name: seen[name] + 0.4 * step})
    assert other.export_bytes() == exported
    inner = np.abs(seen[name]) < 100 * step
    other.set_weights({name: seen[name] + inner * 0.6 * step})
    moved = view_weights(other.export_bytes(), [name])[name].astype(int) - view_weights(exported, [name])[name]
    assert np.array_equal(moved, inner)


def test_saving_resumes_bit_for_bit(tmp_path: Path) -> None:
    model, x, y = pretrained()
    for options in ({}, {"segments": 3, "optimizer": "sgd"}):
        trainer = Trainer(compile(model, batch=16, **options), 3e-3, seed=5)  # type: ignore[arg-type]
        for start in range(0, 64, 16):
            trainer.step(x[start : start + 16], y[start : start + 16])
        trainer.save(tmp_path / "trainer")
        losses = [trainer.step(x[s : s + 16], y[s : s + 16]) for s in range(64, 192, 16)]
        resumed = Trainer.load(tmp_path / "trainer")
        assert [resumed.step(x[s : s + 16], y[s : s + 16]) for s in range(64, 192, 16)] == losses
        assert resumed.export_bytes() == trainer.export_bytes()
    # the seed decides the rounding
    outcomes = []
    for seed in (1, 1, 2):
        trainer = Trainer(compile(model, batch=16), 3e-3, seed=seed)
        trainer.step(x[:16], y[:16])
        outcomes.append(trainer.export_bytes())
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != outcomes[2]


def integers(trainer: Trainer) -> dict[str, Array]:
    """The integers of a trainer's weights."""
    names = [how.weight for how in trainer.plan.info.quantized]
    return {n: v.astype(np.int64) for n, v in view_weights(trainer.export_bytes(), names).items()}


def scales(how: Quantization) -> Array:
    """Scales in a shape that broadcasts to the weight's."""
    values = np.frombuffer(how.scale, "<f4")
    aligned = [1] * len(how.shape)
    aligned[how.axis] = -1
    return values.reshape(aligned) if values.size > 1 else values.reshape(())


def test_a_step_is_descent_on_the_real_values_on_average() -> None:
    """Quantization-aware scaling: dL/dq = s G, times s^-2, moves what is stood for by the rate times G in every layer.

    Without it the real step would be s^2 times that, and scales differ by orders of magnitude.
    """
    model, x, y = pretrained()
    plan = compile(model, batch=16, optimizer="sgd")
    _, gradients = Trainer(plan).gradients(x[:16], y[:16])
    rate, repeats = 0.05, 300
    total: dict[str, Any] = {}
    trainer = Trainer(plan, rate, momentum=0.0)
    before, start = integers(trainer), trainer.weights()
    for _ in range(repeats):
        trainer.set_weights(start)
        trainer.step(x[:16], y[:16])
        for name, after in integers(trainer).items():
            total[name] = total.get(name, 0) + (after - before[name])
    lengths = {}
    for how in plan.info.quantized:
        wanted = -rate * gradients[how.weight] / scales(how)  # in integers
        free = (before[how.weight] + wanted > how.low + 1) & (before[how.weight] + wanted < how.high - 1)
        mean = total[how.weight] / repeats
        fraction = wanted - np.floor(wanted)
        deviation = (mean - wanted)[free] / np.sqrt((fraction * (1 - fraction) / repeats)[free] + 1e-9)
        assert abs(deviation.mean()) < 5 / np.sqrt(free.sum()), how.weight
        lengths[how.weight] = float(np.linalg.norm(scales(how) * gradients[how.weight]) * rate / np.linalg.norm(wanted))
    # the plain integer gradient, without the factor, steps shorter by s^2: by how much differs between weights
    assert max(lengths.values()) > 1e3 * min(lengths.values())


def test_decay_shrinks_what_integers_stand_for() -> None:
    model, x, y = pretrained()
    plan = compile(model, batch=16, optimizer="sgd", trainable=["head.weight*"])
    how = plan.info.quantized[[h.weight for h in plan.info.quantized].index(plan.info.trainable[0])]
    before = read_weights(model)[how.weight]
    means = []
    for decay in (0.0, 0.5):
        found = []
        trainer = Trainer(plan, 0.1, momentum=0.0, weight_decay=decay)
        start = trainer.weights()
        for _ in range(60):
            trainer.set_weights(start)
            trainer.step(x[:16], y[:16])
            found.append(trainer.weights()[how.weight])
        means.append(np.mean(found, 0))
    shrunk = means[1] - means[0]
    inner = np.abs(before) < 0.9 * np.abs(before).max(1, keepdims=True)
    slope = float((shrunk * before)[inner].sum() / (before * before)[inner].sum())
    assert slope == pytest.approx(-0.1 * 0.5, rel=0.1)


def test_bytes_of_weights() -> None:
    model, _, _ = pretrained()
    trainer = Trainer(compile(model, batch=16))
    infos = trainer.plan.info.quantized
    wanted = sum(np.prod(h.shape) * {"int8": 1, "int32": 4}[h.dtype] for h in infos)
    assert trainer.weight_bytes == wanted
    real = sum(w.nbytes for w in trainer.weights().values())
    assert trainer.weight_bytes < 0.4 * real


def test_segments_give_the_same_bits() -> None:
    model, x, y = pretrained()
    whole_loss, whole = Trainer(compile(model, batch=16)).gradients(x[:16], y[:16])
    for segments in (2, 4):
        loss, parts = Trainer(compile(model, batch=16, segments=segments)).gradients(x[:16], y[:16])
        assert loss == whole_loss
        assert all(np.array_equal(v, whole[n]) for n, v in parts.items())


def test_memory_between_passes_is_integers() -> None:
    """The session of a quantized model holds a byte for a number and a byte for its mask, not eight."""
    model = models.mlp(64, [256] * 8, 10)
    x = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    real = compile(model, batch=256).info.footprint.arena
    assert compile(quantize(model, [x]), batch=256).info.footprint.arena < 0.75 * real


def test_frozen_integers_stay() -> None:
    model, x, y = pretrained()
    first = read_weights(model)
    for trainable, moved in (("last", {"head.weight_quantized", "head.bias_quantized"}), ("bias", None)):
        trainer = Trainer(compile(model, batch=16, trainable=trainable), 0.02)
        trainer.step(x[:16], y[:16])
        changed = {n for n, v in trainer.weights().items() if not np.array_equal(v, first[n])}
        assert changed
        assert changed <= (moved or {n for n, v in first.items() if v.ndim == 1})


def test_predictions_of_the_fused_kernels_are_near() -> None:
    """The runtime may compute in integers where we compute in real numbers: the difference is a step or two."""
    model, x, _ = pretrained()
    graph = graph_of(model, 16)
    logits, _ = reference(graph, {"x": x[:16]}, read_weights(model))
    given = predict(model, x[:16])
    last = next(n for n in reversed(graph.nodes) if n.op == "DequantizeLinear")
    step = float(graph.constants[last.inputs[1]].reshape(()))
    assert np.abs(given - logits.detach().numpy()).max() <= 3 * step


@pytest.mark.parametrize("name", ["mlp", "ds_cnn_2d"])
def test_models_that_compute_with_integers_are_refused(name: str) -> None:
    model = quantized(name, operators=True)
    with pytest.raises(UnsupportedOperatorError, match=r"computes with integers.*QuantFormat\.QDQ") as caught:
        compile(model)
    assert caught.value.operator in ("QGemm", "QLinearConv")
    assert caught.value.node


@pytest.mark.parametrize(("first", "named"), [("MatMul", "DynamicQuantizeLinear"), ("MatMulInteger", "MatMulInteger")])
def test_integers_beside_real_weights_are_not_left_out_silently(first: str, named: str) -> None:
    """Dynamic quantization leaves some weights real: "all" would train only those, wherever they are."""
    b = Builder("h")
    rng = np.random.default_rng(0)
    w = b.constant(rng.standard_normal((8, 8)).astype(np.float32))
    q = b.constant(rng.integers(-9, 9, (8, 8)).astype(np.int8))

    def real(x: str) -> str:
        return b.op("MatMul", x, w)

    def integer(x: str) -> str:
        x, scale, zero = b.multi("DynamicQuantizeLinear", (x,), 3)
        return b.op("Mul", b.op("Cast", b.op("MatMulInteger", x, q, zero), to=1), scale)

    x = integer(real("x")) if first == "MatMul" else real(integer("x"))
    b.op("Identity", x, name="logits")
    kinds = {"x": TensorType("float32", (1, 8))}
    outputs = {"logits": TensorType("float32", (1, 8))}
    model = onnxio.to_bytes(b.nodes, kinds, outputs, b.constants, 18, free_batch=True)
    with pytest.raises(UnsupportedOperatorError, match=rf"{named}.*computes with integers"):
        compile(model)


def test_integers_of_four_bits_are_not_left_out_silently() -> None:
    model = export(module("mlp"), sample("mlp"), "dynamo", opset=21)
    small = quantize(model, [sample("mlp")], weight="int4", per_channel=False)
    with pytest.raises(UnsupportedOperatorError, match=r"made of int4.*quantize to int8") as caught:
        compile(small)
    assert caught.value.operator == "DequantizeLinear"
    assert compile(small, trainable="bias").info.trainable


def test_adapters_need_real_weights() -> None:
    with pytest.raises(EngineError, match="adapters"):
        compile(quantized("mlp"), adapters={"rank": 2})


def test_a_limit_holds_for_quantized_models() -> None:
    """What a trial run takes is what was computed, within a tenth."""
    plan = compile(quantized("ds_cnn_2d"), batch=8, memory_limit=120 * 2**20)
    footprint = plan.info.footprint
    assert plan.info.measured
    assert abs(footprint.correction - 2 * 2**20) < 0.1 * footprint.total


def test_a_final_quantized_softmax_is_seen_through() -> None:
    net = torch.nn.Sequential(module("mlp"), torch.nn.Softmax(1))
    model = quantize(export(net, sample("mlp")), [sample("mlp", seed=seed) for seed in range(3)])
    x, y = batch_of("mlp", 4)
    graph = graph_of(model, 4)
    softmax = next(n for n in graph.nodes if n.op == "Softmax")
    assert [n.op for n in graph.nodes][-2:] == ["QuantizeLinear", "DequantizeLinear"]
    graph.nodes = graph.nodes[: graph.nodes.index(softmax)]
    graph.outputs = [softmax.inputs[0]]
    logits, _ = reference(graph, {"x": x}, read_weights(model))
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(y)).item()
    assert Trainer(compile(model, batch=4)).loss(x, y) == pytest.approx(wanted, rel=1e-5)
