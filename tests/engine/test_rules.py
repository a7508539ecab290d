"""Every gradient rule against a numeric slope and against PyTorch: one line per case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.engine import onnxio
from sanderling.engine.checker import gradcheck as check
from sanderling.engine.checker import pull_back
from sanderling.engine.decompose import REWRITES
from sanderling.engine.differentiate import differentiate
from sanderling.engine.graph import Array, Builder, TensorType
from sanderling.engine.operators import page
from sanderling.engine.rules import REFUSED, RULES, STOPS

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the cross-checks need it")
F = torch.nn.functional


@dataclass(frozen=True)
class Case:
    """One operator with float arguments (name: shape), and the same in PyTorch."""

    op: str
    shapes: dict[str, tuple[int, ...]]
    torch: Callable[..., Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: tuple[Any, ...] = ()  # further inputs, known when planning; None is an omitted one
    positive: bool = False
    before: bool = False  # constants come before the arguments
    label: str = ""
    outputs: int = 1
    opset: int = 18
    scale: float = 1.0
    fixed: dict[str, float] = field(default_factory=dict)  # arguments that are one number

    def __str__(self) -> str:
        return f"{self.op}{'-' + self.label if self.label else ''}"

    def model(self) -> bytes:
        """The operator alone."""
        b = Builder("h")
        extra = ["" if c is None else b.constant(np.asarray(c)) for c in self.constants]
        arguments = [*extra, *self.shapes] if self.before else [*self.shapes, *extra]
        names = b.multi(self.op, arguments, self.outputs, "out", **self.attributes)
        inputs = {n: TensorType("float32", s) for n, s in self.shapes.items()}
        return onnxio.to_bytes(
            b.nodes, inputs, dict.fromkeys(names), b.constants, 20 if self.op == "Gelu" else self.opset
        )

    def inputs(self) -> dict[str, Array]:
        """Noise, away from the kinks at 0, 1, 3 and -3."""
        rng = np.random.default_rng(7)
        result = {}
        for name, shape in self.shapes.items():
            value = rng.uniform(0.3, 1.7, shape) * (1 if self.positive else rng.choice([-1, 1], shape))
            for kink in (1.0, -1.0, 0.5, -0.5):
                value = np.where(np.abs(value - kink) < 0.02, value + 0.05, value)
            result[name] = np.asarray(self.fixed.get(name, self.scale * value), np.float32)
        return result


X = (2, 4, 9)
XX = (2, 4, 7, 6)


def unary(op: str, function: Callable[..., Any], **more: Any) -> Case:
    return Case(op, {"x": (2, 3, 5)}, function, **more)


def binary(op: str, function: Callable[..., Any], **more: Any) -> list[Case]:
    shapes = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((2, 1, 4), (2, 5, 1)), ((4,), (2, 3, 4))]
    return [Case(op, {"a": a, "b": b}, function, label=f"{a}{b}".replace(" ", ""), **more) for a, b in shapes]


def conv(label: str, x: tuple[int, ...], w: tuple[int, ...], op: str = "Conv", same: str = "", **a: Any) -> Case:
    """A convolution with bias; attributes as in ONNX, symmetric pads."""
    space = len(x) - 2
    function = {("Conv", 1): F.conv1d, ("Conv", 2): F.conv2d, ("ConvTranspose", 1): F.conv_transpose1d,
                ("ConvTranspose", 2): F.conv_transpose2d}[op, space]  # fmt: skip
    outputs = w[0] if op == "Conv" else w[1] * a.get("group", 1)
    given = {
        "stride": a.get("strides", [1] * space), "padding": a.get("pads", [0] * space)[:space],
        "dilation": a.get("dilations", [1] * space), "groups": a.get("group", 1),
    }  # fmt: skip
    if "output_padding" in a:
        given["output_padding"] = a["output_padding"]
    attributes = {"kernel_shape": list(w[2:]), **a} | ({"auto_pad": same} if same else {})

    def reference(x: Any, w: Any, b: Any) -> Any:
        if not same:
            return function(x, w, b, **given)
        pads = []
        for n, k, s in reversed(list(zip(x.shape[2:], w.shape[2:], given["stride"], strict=True))):
            whole = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [whole // 2, whole - whole // 2] if same == "SAME_UPPER" else [whole - whole // 2, whole // 2]
        return function(F.pad(x, pads), w, b, **given)

    return Case(op, {"x": x, "w": w, "b": (outputs,)}, reference, attributes, label=label)


I64 = np.int64
ELEMENTS = np.array([[[0, 1, 2, -1, 0], [0, 2, 1, 2, 1]], [[2, 2, 2, 0, 1], [1, 1, 2, 0, 0]]], I64) % 3
UPDATES = torch.linspace(-1, 1, 10).reshape(2, 1, 5)


def blocks_to_space(x: Any) -> Any:
    """DepthToSpace with depth-column-row order."""
    n, c, h, w = x.shape
    return x.reshape(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


def space_to_blocks(x: Any) -> Any:
    """Its inverse."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


#: mode, coordinates, scales or sizes, further attributes; the same in PyTorch.
RESIZES: list[tuple[str, str, list[float], list[int], dict[str, Any], dict[str, Any]]] = [
    ("nearest", "asymmetric", [1, 1, 2, 3], [], {}, {"scale_factor": (2, 3), "mode": "nearest"}),
    ("nearest", "asymmetric", [], [2, 3, 7, 3], {}, {"size": (7, 3), "mode": "nearest"}),
    ("linear", "half_pixel", [1, 1, 2, 2], [], {}, {"scale_factor": 2, "mode": "bilinear"}),
    ("linear", "half_pixel", [1, 1, 1.7, 0.6], [], {}, {"scale_factor": (1.7, 0.6), "mode": "bilinear"}),
    ("linear", "pytorch_half_pixel", [], [2, 3, 8, 2], {}, {"size": (8, 2), "mode": "bilinear"}),
    ("linear", "align_corners", [], [2, 3, 9, 6], {}, {"size": (9, 6), "mode": "bilinear", "align_corners": True}),
    ("cubic", "half_pixel", [], [2, 3, 10, 7], {"cubic_coeff_a": -0.75}, {"size": (10, 7), "mode": "bicubic"}),
    ("linear", "half_pixel", [], [2, 3, 3, 2], {"antialias": 1},
     {"size": (3, 2), "mode": "bilinear", "antialias": True}),
]  # fmt: skip

CASES: list[Case] = [
    *binary("Add", lambda a, b: a + b),
    *binary("Sub", lambda a, b: a - b),
    *binary("Mul", lambda a, b: a * b),
    *binary("Div", lambda a, b: a / b, positive=True),
    *binary("Pow", lambda a, b: a**b, positive=True),
    *binary("Max", torch.maximum),
    *binary("Min", torch.minimum),
    *binary("Sum", lambda a, b: a + b),
    *binary("Mean", lambda a, b: (a + b) / 2),
    unary("Pow", lambda x: x**3, constants=(np.float32(3),), label="cube"),
    unary("Pow", lambda x: x**2, constants=(np.float32(2),), label="square"),
    Case("Where", {"a": (2, 3), "b": (1, 3)}, lambda a, b: torch.where(torch.tensor([[True], [False]]), a, b),
         constants=(np.array([[True], [False]]),), before=True),
    unary("Neg", lambda x: -x),
    unary("Abs", torch.abs),
    unary("Exp", torch.exp),
    unary("Log", torch.log, positive=True),
    unary("Sqrt", torch.sqrt, positive=True),
    unary("Reciprocal", torch.reciprocal),
    unary("Erf", torch.erf),
    unary("Sin", torch.sin),
    unary("Cos", torch.cos),
    unary("Tan", torch.tan, scale=0.5),
    unary("Asin", torch.asin, scale=0.5),
    unary("Acos", torch.acos, scale=0.5),
    unary("Atan", torch.atan),
    unary("Sinh", torch.sinh),
    unary("Cosh", torch.cosh),
    unary("Asinh", torch.asinh),
    unary("Acosh", torch.acosh, positive=True, scale=4.0),
    unary("Atanh", torch.atanh, scale=0.5),
    Case("Mod", {"a": (2, 3, 4), "b": (3, 1)}, torch.fmod, {"fmod": 1}, scale=0.7),
    unary("Identity", lambda x: x),
    unary("Dropout", lambda x: x),
    unary("Cast", lambda x: x, attributes={"to": 1}),
    unary("Relu", torch.relu),
    unary("LeakyRelu", lambda x: F.leaky_relu(x, 0.2), attributes={"alpha": 0.2}),
    Case("PRelu", {"x": (2, 3, 4), "s": (3, 1)}, lambda x, s: torch.where(x > 0, x, x * s)),
    unary("Elu", lambda x: F.elu(x, 1.5), attributes={"alpha": 1.5}),
    unary("Celu", lambda x: F.celu(x, 1.5), attributes={"alpha": 1.5}),
    unary("Selu", F.selu),
    unary("ThresholdedRelu", lambda x: F.threshold(x, 0.7, 0), attributes={"alpha": 0.7}),
    unary("Shrink", lambda x: F.softshrink(x, 0.7), attributes={"lambd": 0.7, "bias": 0.7}),
    unary("Softsign", F.softsign),
    unary("Mish", F.mish),
    unary("Softplus", F.softplus),
    unary("Clip", lambda x: torch.clamp(x, -0.5, 1.0), constants=(np.float32(-0.5), np.float32(1.0))),
    unary("Clip", lambda x: torch.clamp(x, max=1.0), constants=(None, np.float32(1.0)), label="above"),
    Case("Clip", {"x": (2, 3, 5), "low": (), "high": ()}, lambda x, a, b: torch.minimum(torch.maximum(x, a), b),
         label="bounds", fixed={"low": -0.6, "high": 0.9}),
    unary("Sigmoid", torch.sigmoid),
    unary("Tanh", torch.tanh),
    unary("HardSigmoid", F.hardsigmoid, attributes={"alpha": 1 / 6}),
    unary("HardSwish", F.hardswish),
    unary("Gelu", F.gelu),
    unary("Gelu", lambda x: F.gelu(x, approximate="tanh"), attributes={"approximate": "tanh"}, label="tanh"),
    unary("Softmax", lambda x: torch.softmax(x, 1), attributes={"axis": 1}),
    unary("Softmax", lambda x: torch.softmax(x, -1), label="last"),
    unary("LogSoftmax", lambda x: torch.log_softmax(x, -1), attributes={"axis": -1}),
    *[
        Case("Gemm", {"a": (4, 3)[:: -1 if ta else 1], "b": (3, 5)[:: -1 if tb else 1], "c": c},
             lambda a, b, c, ta=ta, tb=tb: 0.5 * (a.T if ta else a) @ (b.T if tb else b) + 2 * c,
             {"transA": ta, "transB": tb, "alpha": 0.5, "beta": 2.0}, label=f"{ta}{tb}{c}")
        for ta in (0, 1) for tb in (0, 1) for c in ((5,), (4, 1))
    ],
    *[
        Case("Einsum", {"a": a, "b": b}, lambda a, b, e=e: torch.einsum(e, a, b), {"equation": e}, label=e)
        for e, a, b in [("ij,kj->ik", (2, 3), (4, 3)), ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("i,j->ij", (3,), (4,)),
                        ("bhid,bhjd->bhij", (2, 2, 3, 4), (2, 2, 5, 4)), ("ijk,kl->jl", (2, 3, 4), (4, 5)),
                        ("...ij,...jk->...ik", (2, 3, 4), (1, 4, 5)), ("ij,jk", (2, 3), (3, 4)),
                        ("ij,ij->", (2, 3), (2, 3))]
    ],
    Case("Einsum", {"a": (2, 3), "b": (3, 4), "c": (4, 2)}, lambda *t: torch.einsum("ij,jk,kl->il", *t),
         {"equation": "ij,jk,kl->il"}, label="three"),
    unary("Einsum", lambda x: torch.einsum("ijk->ki", x), attributes={"equation": "ijk->ki"}, label="one"),
    *[
        Case("MatMul", {"a": a, "b": b}, torch.matmul, label=f"{a}{b}".replace(" ", ""))
        for a, b in [((4, 3), (3, 5)), ((2, 4, 3), (3, 5)), ((2, 4, 3), (2, 3, 5)), ((2, 1, 4, 3), (6, 3, 5)),
                     ((3,), (3, 5)), ((2, 4, 3), (3,)), ((3,), (2, 3, 5))]
    ],
    conv("1d", X, (6, 4, 3), pads=[1, 1]),
    conv("1d-stride", X, (6, 4, 5), strides=[2], pads=[2, 2]),
    conv("1d-stride-rest", (2, 4, 10), (6, 4, 3), strides=[3], pads=[1, 1]),
    conv("1d-dilated", X, (6, 4, 3), dilations=[2], strides=[2], pads=[1, 1]),
    conv("1d-pointwise", X, (6, 4, 1)),
    conv("1d-pointwise-wide", (2, 16, 3), (16, 16, 1)),
    conv("1d-grouped", X, (6, 2, 3), group=2, strides=[2]),
    conv("1d-depthwise", (3, 16, 12), (16, 1, 5), group=16, pads=[2, 2]),
    conv("1d-depthwise-stride", (3, 16, 13), (16, 1, 5), group=16, strides=[2], pads=[2, 2]),
    conv("1d-depthwise-rest", (3, 16, 12), (16, 1, 3), group=16, strides=[2], pads=[0, 0]),
    conv("1d-depthwise-dilated", (3, 16, 12), (16, 1, 3), group=16, dilations=[2], pads=[2, 2]),
    conv("1d-depthwise-odd", (3, 5, 12), (5, 1, 3), group=5, pads=[1, 1]),
    conv("1d-depthwise-wide-pads", (3, 5, 12), (5, 1, 3), group=5, pads=[3, 3]),
    conv("1d-multiplied", (2, 4, 9), (8, 1, 3), group=4),
    conv("2d", XX, (6, 4, 3, 3), pads=[1, 1, 1, 1]),
    conv("2d-stride", XX, (6, 4, 3, 2), strides=[2, 3], pads=[1, 0, 1, 0]),
    conv("2d-grouped-dilated", XX, (6, 2, 3, 2), group=2, dilations=[2, 1]),
    conv("2d-pointwise", XX, (6, 4, 1, 1)),
    conv("2d-pointwise-stride", XX, (6, 4, 1, 1), strides=[2, 2]),
    conv("2d-depthwise", (2, 16, 8, 7), (16, 1, 3, 3), group=16, pads=[1, 1, 1, 1]),
    conv("2d-depthwise-stride", (2, 16, 8, 7), (16, 1, 3, 3), group=16, strides=[2, 2], pads=[1, 1, 1, 1]),
    conv("2d-depthwise-asymmetric", (2, 16, 8, 7), (16, 1, 5, 3), group=16, strides=[2, 1], pads=[2, 1, 2, 1]),
    conv("same-upper", XX, (6, 4, 4, 3), same="SAME_UPPER", strides=[2, 2]),
    conv("same-lower", XX, (6, 4, 4, 2), same="SAME_LOWER"),
    conv("1d", X, (4, 6, 3), "ConvTranspose", strides=[2], pads=[1, 1]),
    conv("2d", XX, (4, 6, 3, 2), "ConvTranspose", strides=[2, 2]),
    conv("2d-grouped", XX, (4, 3, 3, 2), "ConvTranspose", strides=[2, 1], group=2, dilations=[1, 2]),
    conv("2d-output-padding", XX, (4, 3, 3, 3), "ConvTranspose", strides=[2, 2], group=2, pads=[1, 1, 1, 1],
         output_padding=[1, 1]),
    conv("1d-unreached", X, (4, 2, 1), "ConvTranspose", strides=[3], output_padding=[2]),
    Case("MaxPool", {"x": X}, lambda x: F.max_pool1d(x, 3, 2, 1),
         {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, label="1d"),
    Case("MaxPool", {"x": XX}, lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
         {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, label="2d-ceil"),
    Case("MaxPool", {"x": XX}, lambda x: F.max_pool2d(x, 2),
         {"kernel_shape": [2, 2], "strides": [2, 2]}, label="apart"),
    Case("MaxPool", {"x": (2, 3, 6, 9)}, lambda x: F.max_pool2d(x, 3), {"kernel_shape": [3, 3], "strides": [3, 3]},
         label="apart-whole"),
    Case("AveragePool", {"x": X}, lambda x: F.avg_pool1d(x, 3, 2, 1, count_include_pad=False),
         {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, label="1d"),
    Case("AveragePool", {"x": XX}, lambda x: F.avg_pool2d(x, (3, 2), (2, 2), (1, 0)),
         {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1}, label="2d-padded"),
    Case("AveragePool", {"x": XX}, lambda x: F.avg_pool2d(x, 2),
         {"kernel_shape": [2, 2], "strides": [2, 2]}, label="2d-apart"),
    Case("AveragePool", {"x": XX}, lambda x: F.avg_pool2d(x, 3, 1, 1),
         {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, label="2d-slid"),
    Case("AveragePool", {"x": X}, lambda x: F.avg_pool1d(x, 3, 1, 1, count_include_pad=False),
         {"kernel_shape": [3], "pads": [1, 1]}, label="1d-slid"),
    Case("AveragePool", {"x": XX}, lambda x: F.avg_pool2d(F.pad(x, (0, 1, 0, 0)), (3, 2), 1),
         {"kernel_shape": [3, 2], "pads": [0, 0, 0, 1], "count_include_pad": 1}, label="2d-slid-aside"),
    Case("AveragePool", {"x": XX}, lambda x: F.avg_pool2d(x, 4, 3),
         {"kernel_shape": [4, 4], "strides": [3, 3]}, label="2d-rest"),
    Case("AveragePool", {"x": XX}, lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=True),
         {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1, "count_include_pad": 1},
         label="2d-ceil-padded"),
    Case("AveragePool", {"x": XX}, lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
         {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, label="2d-ceil"),
    Case("AveragePool", {"x": X}, lambda x: (x[..., :-2] + x[..., 2:]) / 2,
         {"kernel_shape": [2], "dilations": [2]}, label="dilated", opset=19),
    Case("MaxPool", {"x": XX}, lambda x: F.max_pool2d(x, 2, 1, 1, (2, 3)),
         {"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1] * 4}, label="dilated"),
    Case("LpPool", {"x": XX}, lambda x: F.lp_pool2d(x, 2, (3, 2), (2, 2)),
         {"kernel_shape": [3, 2], "strides": [2, 2], "p": 2}),
    Case("LpPool", {"x": XX}, lambda x: F.lp_pool2d(x.abs(), 3, 2, 1), {"kernel_shape": [2, 2], "p": 3}, label="cubes"),
    Case("LpPool", {"x": XX}, lambda x: F.lp_pool2d(x.abs(), 1, 2, 1), {"kernel_shape": [2, 2], "p": 1}, label="sums"),
    Case("GlobalAveragePool", {"x": XX}, lambda x: x.mean((2, 3), keepdim=True)),
    Case("GlobalMaxPool", {"x": XX}, lambda x: x.amax((2, 3), keepdim=True)),
    unary("ReduceSum", lambda x: x.sum((0, 2)), constants=(np.array([0, -1], I64),), attributes={"keepdims": 0}),
    unary("ReduceMean", lambda x: x.mean(1, keepdim=True), constants=(np.array([1], I64),)),
    unary("ReduceMean", lambda x: x.mean(), attributes={"keepdims": 0}, label="all"),
    unary("ReduceMax", lambda x: x.amax(2), constants=(np.array([2], I64),), attributes={"keepdims": 0}),
    unary("ReduceMin", lambda x: x.amin(1, keepdim=True), constants=(np.array([1], I64),)),
    unary("ReduceSumSquare", lambda x: (x * x).sum(1), constants=(np.array([1], I64),), attributes={"keepdims": 0}),
    unary("ReduceL2", lambda x: x.norm(dim=1), constants=(np.array([1], I64),), attributes={"keepdims": 0}),
    unary("ReduceL1", lambda x: x.abs().sum((0, 1), keepdim=True), constants=(np.array([0, 1], I64),)),
    unary("ReduceLogSum", lambda x: x.sum(1).log(), constants=(np.array([1], I64),), attributes={"keepdims": 0},
          positive=True),
    unary("ReduceLogSumExp", lambda x: x.logsumexp((1, 2)), constants=(np.array([1, 2], I64),),
          attributes={"keepdims": 0}),
    unary("ReduceProd", lambda x: x.prod(1, keepdim=True), constants=(np.array([1], I64),)),
    unary("ReduceProd", lambda x: x.prod(), attributes={"keepdims": 0}, label="all"),
    unary("CumSum", lambda x: x.cumsum(1), constants=(np.array(1, I64),)),
    unary("CumSum", lambda x: x.flip(2).cumsum(2).flip(2) - x, constants=(np.array(-1, I64),),
          attributes={"reverse": 1, "exclusive": 1}, label="rest"),
    unary("LpNormalization", lambda x: F.normalize(x, dim=1), attributes={"axis": 1}),
    unary("LpNormalization", lambda x: F.normalize(x, p=1, dim=-1), attributes={"p": 1}, label="sums"),
    unary("Reshape", lambda x: x.reshape(2, 15), constants=(np.array([0, -1], I64),)),
    unary("Flatten", lambda x: x.flatten(1)),
    unary("Transpose", lambda x: x.permute(2, 0, 1), attributes={"perm": [2, 0, 1]}),
    unary("Transpose", lambda x: x.permute(2, 1, 0), label="reversed"),
    Case("Squeeze", {"x": (2, 1, 3)}, lambda x: x.squeeze(1), constants=(np.array([1], I64),)),
    unary("Unsqueeze", lambda x: x[:, None], constants=(np.array([1], I64),)),
    Case("Expand", {"x": (3, 1)}, lambda x: x.expand(2, 3, 4), constants=(np.array([2, 3, 4], I64),)),
    Case("Concat", {"a": (2, 3), "b": (2, 1), "c": (2, 4)}, lambda *t: torch.cat(t, 1), {"axis": 1}),
    unary("Slice", lambda x: x[:, 1:, :-1],
         constants=(np.array([1, 0], I64), np.array([9, -1], I64), np.array([1, 2], I64))),
    unary("Slice", lambda x: x[:, :, ::2], label="step",
          constants=(np.array([0], I64), np.array([2**62], I64), np.array([2], I64), np.array([2], I64))),
    unary("Slice", lambda x: x.flip(2), label="reversed",
          constants=(np.array([-1], I64), np.array([-(2**62)], I64), np.array([2], I64), np.array([-1], I64))),
    Case("Split", {"x": (2, 7)}, lambda x: torch.split(x, [2, 5], 1), {"axis": 1}, (np.array([2, 5], I64),), outputs=2),
    unary("Pad", lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
         constants=(np.array([0, 0, 1, 0, 1, 2], I64), np.float32(0.5))),
    *[unary("Pad", lambda x, onnx=onnx, other=other: F.pad(F.pad(x, (2, 1), other).mT, (1, 1), other).mT, label=onnx,
            constants=(np.array([0, 1, 2, 0, 1, 1], I64),), attributes={"mode": onnx})
      for onnx, other in (("reflect", "reflect"), ("edge", "replicate"), ("wrap", "circular"))],
    unary("Gather", lambda x: x[:, torch.tensor([[0, 2], [2, 1]])],
         constants=(np.array([[0, 2], [-1, 1]], I64),), attributes={"axis": 1}),
    unary("Gather", lambda x: x[torch.tensor([1, 1, 0])], constants=(np.array([1, 1, 0], I64),), label="first"),
    unary("GatherElements", lambda x: x.gather(1, torch.tensor(ELEMENTS)),
          constants=(ELEMENTS,), attributes={"axis": 1}),
    unary("GatherND", lambda x: x[[1, 0, 1], [2, 0, 2]], constants=(np.array([[1, -1], [0, 0], [1, 2]], I64),)),
    unary("GatherND", lambda x: torch.stack([x[0, [2, 2]], x[1, [0, 1]]]), label="batch",
          constants=(np.array([[[2], [2]], [[0], [-2]]], I64),), attributes={"batch_dims": 1}),
    Case("ScatterElements", {"x": (2, 3, 5)}, lambda x: x.scatter(1, torch.tensor(ELEMENTS[:, :1]), UPDATES),
         {"axis": 1}, (ELEMENTS[:, :1], UPDATES.numpy()), label="data"),
    Case("ScatterElements", {"u": (2, 2, 5)}, lambda u: torch.ones(2, 3, 5).scatter_add(1, torch.tensor(ELEMENTS), u),
         {"axis": 1, "reduction": "add"}, (np.ones((2, 3, 5), np.float32), ELEMENTS), before=True, label="updates"),
    Case("ScatterND", {"x": (4, 3)}, lambda x: torch.stack([x[0], x[1] * 0 + 1, x[2], x[3] * 0 + 1]), {},
         (np.array([[1], [-1]], I64), np.ones((2, 3), np.float32)), label="data"),
    Case("ScatterND", {"u": (3, 3)}, lambda u: torch.ones(4, 3).index_add(0, torch.tensor([1, 3, 1]), u),
         {"reduction": "add"}, (np.ones((4, 3), np.float32), np.array([[1], [3], [1]], I64)), before=True, label="add"),
    unary("TopK", lambda x: x.topk(2, 1).values, constants=(np.array([2], I64),), attributes={"axis": 1}, outputs=2),
    unary("Compress", lambda x: x[:, [0, 2]], constants=(np.array([True, False, True]),), attributes={"axis": 1}),
    unary("Compress", lambda x: x.flatten()[[0, 2, 3]], constants=(np.array([1, 0, 1, 1], bool),), label="flat"),
    unary("ReverseSequence", lambda x: torch.stack([x[0].flip(0), torch.cat([x[1, :2].flip(0), x[1, 2:]])]),
          constants=(np.array([3, 2], I64),), attributes={"batch_axis": 0, "time_axis": 1}),
    unary("Trilu", lambda x: x.tril(-1), constants=(np.array(-1, I64),), attributes={"upper": 0}),
    unary("Trilu", lambda x: x.triu(), label="upper"),
    Case("DepthToSpace", {"x": (2, 8, 2, 3)}, lambda x: F.pixel_shuffle(x, 2), {"blocksize": 2, "mode": "CRD"},
         label="CRD"),
    Case("DepthToSpace", {"x": (2, 8, 2, 3)}, blocks_to_space, {"blocksize": 2}, label="DCR"),
    Case("SpaceToDepth", {"x": (2, 3, 4, 6)}, space_to_blocks, {"blocksize": 2}),
    *[
        Case("Resize", {"x": (2, 3, 5, 4)}, lambda x, more=more: F.interpolate(x, **more),
             {"mode": mode, "coordinate_transformation_mode": where, "nearest_mode": "floor", **extra},
             (None, np.array(scales, np.float32)) if scales else (None, None, np.array(sizes, I64)),
             label=f"{mode}-{where}-{scales or sizes}".replace(" ", ""))
        for mode, where, scales, sizes, extra, more in RESIZES
    ],
    unary("Tile", lambda x: x.tile(2, 1, 3), constants=(np.array([2, 1, 3], I64),)),
    Case("BatchNormalization", {"x": XX, "s": (4,), "b": (4,)},
         lambda x, s, b: F.batch_norm(x, torch.linspace(-1, 1, 4), torch.linspace(1, 2, 4), s, b, eps=1e-3),
         {"epsilon": 1e-3}, (np.linspace(-1, 1, 4, dtype=np.float32), np.linspace(1, 2, 4, dtype=np.float32))),
    Case("SoftmaxCrossEntropyLoss", {"x": (3, 5)}, lambda x: F.cross_entropy(x, torch.tensor([1, 4, 0])),
         constants=(np.array([1, 4, 0], I64),)),
    Case("NegativeLogLikelihoodLoss", {"x": (3, 5)}, lambda x: F.nll_loss(x, torch.tensor([1, 4, 0])),
         constants=(np.array([1, 4, 0], I64),)),
    Case("InstanceNormalization", {"x": XX, "s": (4,), "b": (4,)},
         lambda x, s, b: F.instance_norm(x, None, None, s, b)),
    Case("InstanceNormalization", {"x": X, "s": (4,), "b": (4,)},
         lambda x, s, b: F.instance_norm(x, None, None, s, b, eps=1e-2), {"epsilon": 1e-2}, label="1d"),
    Case("LayerNormalization", {"x": (2, 3, 5), "s": (5,), "b": (5,)}, lambda x, s, b: F.layer_norm(x, (5,), s, b)),
    Case("LayerNormalization", {"x": (2, 3, 5), "s": (3, 5), "b": (3, 5)},
         lambda x, s, b: F.layer_norm(x, (3, 5), s, b), {"axis": 1}, label="two-axes"),
]  # fmt: skip


def recurrent(op: str, gates: int, **attributes: Any) -> Case:
    """One layer of 4 units over 5 steps of 3 inputs; many more cases in test_recurrent.py."""
    shapes = {"x": (5, 2, 3), "w": (1, 4 * gates, 3), "r": (1, 4 * gates, 4), "b": (1, 8 * gates)}
    order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}[op]  # where PyTorch's gates are in ONNX

    def reference(x: Any, w: Any, r: Any, b: Any) -> Any:
        turned = [torch.cat([t.chunk(gates)[k] for k in order]) for t in (w[0], r[0], *b[0].chunk(2))]
        states = [torch.zeros(1, 2, 4)] * (2 if op == "LSTM" else 1)
        given = (x, states if op == "LSTM" else states[0], turned, True, 1, 0.0, False, False, False)
        y, *last = getattr(torch._VF, "rnn_tanh" if op == "RNN" else op.lower())(*given)
        return (y[:, None], *last)

    return Case(op, shapes, reference, {"hidden_size": 4, **attributes}, outputs=3 if op == "LSTM" else 2)


CASES += [recurrent("LSTM", 4), recurrent("GRU", 3, linear_before_reset=1), recurrent("RNN", 1)]

#: Cases that the reference interpreter of ONNX cannot run in double precision: compared with PyTorch only.
NOT_NUMERIC = {
    "LpNormalization-sums": "the reference interpreter sums without taking absolute values",
    "Erf": "the reference interpreter rounds Erf to single precision",
    "Mean-(2,1,4)(2,5,1)": "the reference interpreter does not broadcast Mean",
    "Mean-(4,)(2,3,4)": "the reference interpreter does not broadcast Mean",
    "ConvTranspose-2d-grouped": "the reference interpreter transposes convolutions of one group only",
    "ConvTranspose-2d-output-padding": "the reference interpreter transposes convolutions of one group only",
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_the_numeric_slope(case: Case) -> None:
    if str(case) in NOT_NUMERIC:
        pytest.skip(NOT_NUMERIC[str(case)])
    check(case.model(), case.inputs(), with_respect_to=list(case.shapes))


#: Cases whose results differ from PyTorch's, not only their gradients.
NOT_PYTORCH = {"Resize-linear-half_pixel-[2,3,3,2]": "PyTorch's antialiasing has other weights than ONNX's"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_pytorch_s(case: Case) -> None:
    if str(case) in NOT_PYTORCH:
        pytest.skip(NOT_PYTORCH[str(case)])
    inputs = case.inputs()
    proto, name = onnxio.load_model(case.model())
    graph = onnxio.to_graph(proto, None, frozenset(), name)
    tensors = {n: torch.tensor(v, requires_grad=True) for n, v in inputs.items()}
    results = case.torch(*tensors.values())
    results = results if isinstance(results, tuple) else (results,)
    rng = np.random.default_rng(3)
    seeds = {o: rng.standard_normal(r.shape).astype(np.float32) for o, r in zip(graph.outputs, results, strict=False)}
    sum((r * torch.tensor(s)).sum() for r, s in zip(results, seeds.values(), strict=True)).backward()
    given = pull_back(graph, inputs, seeds, list(inputs))
    for name, tensor in tensors.items():
        np.testing.assert_allclose(given[name], tensor.grad.numpy(), rtol=2e-4, atol=2e-5, err_msg=name)


def test_every_rule_has_a_case() -> None:
    # the slope of rounding is no gradient: quantizers are compared with PyTorch's in test_quantized.py
    assert {c.op for c in CASES} == set(RULES) - {"QuantizeLinear", "DequantizeLinear"}


def test_every_operator_of_the_standard_that_takes_real_numbers_is_in_a_table() -> None:
    import onnx

    known = {*RULES, *STOPS, *REFUSED, *(op for _, op in REWRITES)}
    for schema in onnx.defs.get_all_schemas():
        kinds = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        takes = {k for i in schema.inputs for k in kinds.get(i.type_str, [i.type_str])}
        if schema.domain == "" and "tensor(float)" in takes:
            assert schema.name in known, schema.name


def test_a_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES["Exp"].rules, 0, lambda s: s.g)
    with pytest.raises(Exception, match="gradient of 'x' is wrong"):
        check(unary("Exp", torch.exp).model(), {"x": np.ones((2, 3, 5), np.float32)}, with_respect_to=["x"])


def test_the_rules_of_one_node_share_their_work() -> None:
    case = next(c for c in CASES if c.op == "LayerNormalization")
    proto, name = onnxio.load_model(case.model())
    graph = onnxio.to_graph(proto, None, frozenset(), name)
    written = []
    for wanted in (["x"], ["x", "s"]):
        builder = Builder("b")
        differentiate(graph, graph.nodes, {"out": "seed"}, wanted, builder)
        keys = [(n.op, n.inputs, repr(n.attributes)) for n in builder.nodes]
        assert len(keys) == len(set(keys))
        written.append([n.op for n in builder.nodes])
    assert written[1].count("LayerNormalization") == written[0].count("LayerNormalization") == 1


def test_the_reference_page_is_up_to_date() -> None:
    written = (Path(__file__).parents[2] / "docs/reference/operators.md").read_text()
    assert written == page(), "write it anew: python -m sanderling.engine.operators > docs/reference/operators.md"
