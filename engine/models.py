"""Models to start from, defined here, so that a lab needs no other framework.

Strategy: written with the graph builder as ordinary ONNX inference models: free batch dimension "N", input "x",
output "logits". Weights are drawn after He et al., "Delving Deep into Rectifiers" (2015). Needs `onnx`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .graph import Array, Builder, TensorType
from .onnxio import OPSET, to_bytes


def _he(rng: np.random.Generator, *shape: int, gain: float = 2.0) -> Array:
    return rng.normal(0.0, math.sqrt(gain / math.prod(shape[1:])), shape).astype(np.float32)


class _Weights:
    """Constants under the names that deltas are keyed by."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.values: dict[str, Array] = {}

    def add(self, name: str, value: Array) -> str:
        """Keep a value; returns its name."""
        self.values[name] = value
        return name

    def pair(self, name: str, *shape: int, gain: float = 2.0) -> tuple[str, str]:
        """A weight and a zero bias."""
        weight = self.add(f"{name}.weight", _he(self.rng, *shape, gain=gain))
        return weight, self.add(f"{name}.bias", np.zeros(shape[0], np.float32))


def _finish(builder: Builder, weights: _Weights, shape: tuple[int, ...], classes: int) -> bytes:
    return to_bytes(
        builder.nodes, {"x": TensorType("float32", shape)}, {"logits": TensorType("float32", (1, classes))},
        {**weights.values, **builder.constants}, OPSET, free_batch=True,
    )  # fmt: skip


def depthwise_cnn_1d(
    channels: int = 6,
    length: int = 100,
    classes: int = 7,
    widths: Sequence[int] = (32, 48, 64, 64),
    kernel: int = 5,
    seed: int = 0,
) -> bytes:
    """A depthwise separable 1-D CNN for windows of sensor data, x [N, channels, length] -> logits [N, classes].

    A stem convolution with stride 2, one depthwise separable block per further width (the first with stride 2),
    global average pooling, a linear layer; 11,191 weights as given. Depthwise separable after Howard et al.,
    "MobileNets" (2017).
    """
    weights, b = _Weights(seed), Builder("h")
    pad = kernel // 2
    weight, bias = weights.pair("stem", widths[0], channels, kernel)
    x = b.op("Conv", "x", weight, bias, kernel_shape=[kernel], pads=[pad, pad], strides=[2])
    x = b.op("Relu", x)
    for block, (narrow, wide) in enumerate(pairwise(widths)):
        # no activation between the two halves, so the first is drawn for a linear layer
        weight, bias = weights.pair(f"block{block}.depthwise", narrow, 1, kernel, gain=1.0)
        stride = 2 if block == 0 else 1
        x = b.op("Conv", x, weight, bias, kernel_shape=[kernel], pads=[pad, pad], strides=[stride], group=narrow)
        weight, bias = weights.pair(f"block{block}.pointwise", wide, narrow, 1)
        x = b.op("Relu", b.op("Conv", x, weight, bias, kernel_shape=[1]))
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    weight, bias = weights.pair("head", classes, widths[-1], gain=1.0)
    b.op("Gemm", x, weight, bias, transB=1, name="logits")
    return _finish(b, weights, (1, channels, length), classes)


def cnn_2d(
    channels: int = 1,
    size: int = 28,
    classes: int = 10,
    widths: Sequence[int] = (16, 32),
    hidden: int = 32,
    kernel: int = 3,
    seed: int = 0,
) -> bytes:
    """A small CNN for square images, x [N, channels, size, size] -> logits [N, classes].

    A convolution with stride 2 and Relu for each width, a hidden linear layer with Relu, a linear layer; 55,338 weights
    as given.
    """
    weights, b = _Weights(seed), Builder("h")
    x, wide, side, pad = "x", channels, size, kernel // 2
    for layer, width in enumerate(widths):
        weight, bias = weights.pair(f"conv{layer}", width, wide, kernel, kernel)
        x = b.op("Conv", x, weight, bias, kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[2, 2])
        x, wide, side = b.op("Relu", x), width, (side + 2 * pad - kernel) // 2 + 1
    x = b.op("Flatten", x, axis=1)
    weight, bias = weights.pair("hidden", hidden, wide * side * side)
    x = b.op("Relu", b.op("Gemm", x, weight, bias, transB=1))
    weight, bias = weights.pair("head", classes, hidden, gain=1.0)
    b.op("Gemm", x, weight, bias, transB=1, name="logits")
    return _finish(b, weights, (1, channels, size, size), classes)


def mlp(inputs: int, hidden: Sequence[int], classes: int, seed: int = 0) -> bytes:
    """A multilayer perceptron with Relu, x [N, inputs] -> logits [N, classes]."""
    weights, b = _Weights(seed), Builder("h")
    x, width = "x", inputs
    for layer, wide in enumerate(hidden):
        weight, bias = weights.pair(f"hidden{layer}", wide, width)
        x = b.op("Relu", b.op("Gemm", x, weight, bias, transB=1))
        width = wide
    weight, bias = weights.pair("head", classes, width, gain=1.0)
    b.op("Gemm", x, weight, bias, transB=1, name="logits")
    return _finish(b, weights, (1, inputs), classes)
