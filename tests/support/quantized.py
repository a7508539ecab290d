"""Models quantized as onnxruntime does it, and their gradients by PyTorch on the same graph.

Strategy: `quantize` calibrates a model on noise and writes it with QuantizeLinear and DequantizeLinear. `reference`
runs the nodes of that model in PyTorch one by one; quantization is `FakeQuantize`, the straight-through estimator with
saturation of PyTorch's own fake quantization, on the numbers of the deployed model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch.nn import functional

from sanderling.engine import onnxio
from sanderling.engine.graph import Graph, Node
from sanderling.engine.slots import weight_names

from .zoo import ZOO, export, module, sample

Array = npt.NDArray[Any]
TYPES = {
    "int4": QuantType.QInt4, "int8": QuantType.QInt8, "uint8": QuantType.QUInt8,
    "int16": QuantType.QInt16, "uint16": QuantType.QUInt16,
}  # fmt: skip


class _Noise(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    def __init__(self, batches: list[dict[str, Array]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def quantize(
    model: bytes, batches: list[Array], per_channel: bool = True, activation: str = "int8", weight: str = "int8",
    prepared: bool = True, operators: bool = False, **more: Any,
) -> bytes:  # fmt: skip
    """The model quantized by onnxruntime, calibrated on `batches` of its only input.

    `prepared`: after onnxruntime's preprocessing (shapes, fusion). `operators`: in the QOperator format.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (Path(folder, n) for n in ("plain.onnx", "ready.onnx", "done.onnx"))
        plain.write_bytes(model)
        if prepared:
            quant_pre_process(str(plain), str(ready))
        source = ready if prepared else plain
        name = onnx.load_model_from_string(model).graph.input[0].name
        quantize_static(
            str(source), str(done), _Noise([{name: b} for b in batches]), per_channel=per_channel,
            quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
            activation_type=TYPES[activation], weight_type=TYPES[weight], **more,
        )  # fmt: skip
        return done.read_bytes()


def quantized(name: str, exporter: str = "torchscript", **options: Any) -> bytes:
    """A model of the zoo, quantized; `options` as of `quantize`."""
    model = export(module(name), sample(name), exporter)
    return quantize(model, [sample(name, seed=seed) for seed in range(3)], **options)


def recalibrated(model: bytes, factor: float) -> bytes:
    """The model with every scale of an activation times `factor`: below 1, much of it saturates."""
    proto = onnx.load_model_from_string(model)
    names = {n.input[1] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            value = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return bytes(proto.SerializeToString())


class FakeQuantize(torch.autograd.Function):
    """A value from outside in the forward pass; the gradient goes to x where it did not saturate."""

    @staticmethod
    def forward(ctx: Any, x: Any, value: Any, inside: Any) -> Any:
        ctx.save_for_backward(inside)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def _fake(graph: Graph, node: Node, x: Any, run: Mapping[str, Array]) -> Any:
    """What a QuantizeLinear makes of x, as the value it stands for, with the numbers of the deployed model."""
    scale = graph.constants[node.inputs[1]]
    zero = graph.constants[node.inputs[2]].astype(np.int64)
    if scale.size > 1:
        shape = [1] * x.ndim
        shape[node.attributes.get("axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    limits = np.iinfo(graph.types[node.outputs[0]].dtype)
    whole = np.rint(run.get(node.inputs[0], x.detach().numpy()) / scale) + zero
    integers = run[node.outputs[0]]
    assert np.array_equal(np.clip(whole, limits.min, limits.max), integers)
    value = (integers.astype(np.int64) - zero).astype(np.float32) * scale
    inside = (whole >= limits.min) & (whole <= limits.max)
    return FakeQuantize.apply(x, torch.tensor(value), torch.tensor(inside))  # type: ignore[no-untyped-call]


def _conv(node: Node, x: Any, w: Any, b: Any = None) -> Any:
    pads = node.attributes.get("pads", [0] * 2 * (x.ndim - 2))
    half = len(pads) // 2
    x = functional.pad(x, [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])])
    return (functional.conv1d if x.ndim == 3 else functional.conv2d)(
        x,
        w,
        b,
        node.attributes.get("strides", 1),
        0,
        node.attributes.get("dilations", 1),
        node.attributes.get("group", 1),
    )


def _pool(node: Node, x: Any) -> Any:
    a = node.attributes
    return functional.max_pool2d(
        x, a["kernel_shape"], a["strides"], a.get("pads", [0] * 4)[:2], ceil_mode=bool(a.get("ceil_mode", 0))
    )


def _gemm(node: Node, a: Any, b: Any, c: Any = 0) -> Any:
    a, b = (a.T if node.attributes.get("transA", 0) else a), (b.T if node.attributes.get("transB", 0) else b)
    return node.attributes.get("alpha", 1.0) * a @ b + node.attributes.get("beta", 1.0) * c


def _norm(node: Node, x: Any, scale: Any, bias: Any = None) -> Any:
    return functional.layer_norm(
        x, x.shape[node.attributes.get("axis", -1) % x.ndim :], scale, bias, node.attributes.get("epsilon", 1e-5)
    )


def _gather(node: Node, x: Any, indices: Any) -> Any:
    axis = node.attributes.get("axis", 0)
    flat = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _slice(node: Node, x: Any, starts: Any, ends: Any, axes: Any, steps: Any = None) -> Any:
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(axes.tolist()):
        index[axis] = slice(int(starts[i]), min(int(ends[i]), x.shape[axis]), int(steps[i]) if steps is not None else 1)
    return x[tuple(index)]


#: Operator -> what it does in PyTorch.
OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _conv, "Gemm": _gemm, "MaxPool": _pool, "LayerNormalization": _norm, "Gather": _gather, "Slice": _slice,
    "MatMul": lambda n, a, b: a @ b,
    "Add": lambda n, a, b: a + b,
    "Sub": lambda n, a, b: a - b,
    "Mul": lambda n, a, b: a * b,
    "Div": lambda n, a, b: a / b,
    "Relu": lambda n, x: torch.relu(x),
    "Clip": lambda n, x, low, high: torch.minimum(torch.maximum(x, low), high),
    "Erf": lambda n, x: torch.erf(x),
    "Sqrt": lambda n, x: torch.sqrt(x),
    "Softmax": lambda n, x: torch.softmax(x, n.attributes.get("axis", -1)),
    "GlobalAveragePool": lambda n, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "ReduceMean": lambda n, x, axes: x.mean(axes.tolist(), keepdim=bool(n.attributes.get("keepdims", 1))),
    "Flatten": lambda n, x: x.flatten(n.attributes.get("axis", 1)),
    "Reshape": lambda n, x, shape: x.reshape([x.shape[i] if s == 0 else s for i, s in enumerate(shape.tolist())]),
    "Squeeze": lambda n, x, axes: x.squeeze(tuple(axes.tolist())),
    "Unsqueeze": lambda n, x, axes: x.unsqueeze(axes.tolist()[0]),
    "Transpose": lambda n, x: x.permute(n.attributes["perm"]),
    "Concat": lambda n, *xs: torch.cat(xs, n.attributes["axis"]),
    "Identity": lambda n, x: x,
    "Cast": lambda n, x: x,
}  # fmt: skip


def graph_of(model: bytes, batch: int) -> Graph:
    """The graph of a model at a batch size, weights unfolded."""
    proto, name = onnxio.load_model(model)
    proto = onnxio.normalize(proto, name)
    return onnxio.to_graph(proto, batch, frozenset(weight_names(proto)), name)


def deployed(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What a runtime that optimizes nothing computes around every QuantizeLinear, and at the first output."""
    names = {n for node in graph.nodes if node.op == "QuantizeLinear" for n in (node.inputs[0], node.outputs[0])}
    names = {n for n in names | {graph.outputs[0]} if n not in graph.constants and n not in inputs}
    kinds = {n: graph.types[n] for n in graph.inputs}
    model = onnxio.to_bytes(graph.nodes, kinds, dict.fromkeys(sorted(names)), graph.constants, graph.opset)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return dict(zip(sorted(names), session.run(sorted(names), dict(inputs)), strict=True)) | dict(inputs)


def reference(graph: Graph, inputs: Mapping[str, Array], weights: Mapping[str, Array]) -> tuple[Any, dict[str, Any]]:
    """The first output, and the real values of the weights as leaves whose gradients PyTorch computes.

    `weights`: what integer weights stand for, and real ones, by name. Quantized tensors have the numbers that the
    deployed model gives them: the last bit of a sum would turn a rounding, and with it all that follows.
    """
    run = deployed(graph, inputs)
    leaves = {n: torch.tensor(v, requires_grad=True) for n, v in weights.items()}
    values: dict[str, Any] = {n: torch.tensor(v) for n, v in (graph.constants | dict(inputs)).items()}
    values |= leaves
    values[""] = None
    for node in graph.nodes:
        given = [values.get(i) for i in node.inputs]
        if node.op == "QuantizeLinear":
            made = _fake(graph, node, given[0], run)
        elif node.op == "DequantizeLinear":
            made = given[0]  # kept as what it stands for
        else:
            made = OPERATORS[node.op](node, *given)
        values[node.outputs[0]] = made
    return values[graph.outputs[0]], leaves


def relative_error(given: Array, wanted: Array) -> float:
    """Length of the difference over the length of what was wanted."""
    return float(np.linalg.norm(given - wanted) / max(float(np.linalg.norm(wanted)), 1e-12))


def batch_of(name: str, samples: int, seed: int = 11) -> tuple[Array, Array]:
    """Inputs and labels for a model of the zoo."""
    labels = np.random.default_rng(seed).integers(0, ZOO[name].classes, samples)
    return sample(name, samples, seed=seed), labels
