"""Models of the literature in PyTorch, for tests and benchmarks: built, filled and exported the same way everywhere.

Strategy: one entry per model in `ZOO`. `module` builds it with seeded weights; batch normalization gets the statistics
of a noise batch, disturbed, so that it is neither the identity nor lets deep networks explode. `sample` draws inputs,
`export` writes ONNX by either of PyTorch's exporters. All models are in evaluation mode.

    from tests.support.zoo import ZOO, export, module, sample
    net = module("mobilenet_v2")                     # or module("mobilenet_v2", shape=(3, 128, 128), width=0.5)
    model = export(net, sample("mobilenet_v2"), "torchscript", dynamic=True)
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from . import deep, mobile, sequence, small

Array = npt.NDArray[Any]
EXPORTERS = ("torchscript", "dynamo")


@dataclass(frozen=True)
class Entry:
    """How to build a model and what it takes.

    `shape` is one sample, small enough for tests; `full` the size the model was made for. `vocabulary` above 0: the
    input is token numbers. `loss` names an engine loss that fits the output.
    """

    build: Callable[..., nn.Module]
    shape: tuple[int, ...]
    full: tuple[int, ...]
    classes: int = 10
    batch: int = 4
    loss: str = "cross_entropy"
    vocabulary: int = 0


def _image(build: Callable[..., nn.Module], size: int = 32, full: int = 224, **more: Any) -> Entry:
    return Entry(build, (3, size, size), (3, full, full), **more)


ZOO: dict[str, Entry] = {
    "mlp": Entry(small.mlp, (20,), (784,)),
    "autoencoder": Entry(small.autoencoder, (64,), (640,), loss="mse"),
    "ds_cnn_1d": Entry(small.ds_cnn_1d, (6, 50), (6, 100), 7),
    "ds_cnn_2d": Entry(small.ds_cnn_2d, (1, 25, 10), (1, 49, 10), 12),
    "tcn": Entry(small.tcn, (4, 20), (6, 100), 5),
    "mobilenet_v1": _image(mobile.mobilenet_v1),
    "mobilenet_v2": _image(mobile.mobilenet_v2),
    "mobilenet_v3_small": _image(mobile.mobilenet_v3_small),
    "mobilenet_v3_large": _image(mobile.mobilenet_v3_large),
    "efficientnet_lite0": _image(mobile.efficientnet_lite0),
    "shufflenet_v2": _image(mobile.shufflenet_v2),
    "squeezenet": _image(mobile.squeezenet, 48),
    "resnet18": _image(deep.resnet18),
    "resnet50": _image(deep.resnet50),
    "densenet121": _image(deep.densenet121),
    "unet": _image(deep.unet, 16, 128, classes=2, batch=2, loss="mse"),
    "unet_resize": _image(deep.unet_resize, 16, 128, classes=2, batch=2, loss="mse"),
    "convnext": _image(deep.convnext),
    "espcn": _image(deep.espcn, 8, 64, batch=2, loss="mse"),
    "norms": _image(small.norms, 16, 32),
    "activations": Entry(small.activations, (3, 12), (3, 100)),
    "assorted": Entry(small.assorted, (10,), (10,)),
    "lstm": Entry(sequence.lstm, (10, 6), (100, 6), 7),
    "lstm_bidirectional": Entry(sequence.lstm_bidirectional, (10, 6), (100, 6), 7),
    "lstm_state": Entry(sequence.lstm_state, (10, 6), (100, 6), 7),
    "gru": Entry(sequence.gru, (10, 6), (100, 6), 7),
    "gru_bidirectional": Entry(sequence.gru_bidirectional, (10, 6), (100, 6), 7),
    "gru_state": Entry(sequence.gru_state, (10, 6), (100, 6), 7),
    "transformer": Entry(sequence.transformer, (12,), (64,), 5, vocabulary=50),
    "language": Entry(sequence.language, (10,), (64,), 30, vocabulary=30),
    "vit": _image(sequence.vit),
}


def module(name: str, shape: tuple[int, ...] | None = None, seed: int = 0, **options: Any) -> nn.Module:
    """A model of the zoo in evaluation mode, weights seeded. `options` as its builder takes them."""
    entry = ZOO[name]
    shape = shape or entry.shape
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        net = entry.build(entry.classes, shape, **options)
        norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        for norm in norms:
            norm.momentum = 1.0
            nn.init.uniform_(norm.weight, 0.7, 1.3)
            nn.init.normal_(norm.bias, 0.0, 0.2)
        for other in net.modules():
            if isinstance(other, (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)) and other.weight is not None:
                nn.init.uniform_(other.weight, 0.7, 1.3)
                nn.init.normal_(other.bias, 0.0, 0.2)
        with torch.no_grad():
            net.train()(torch.from_numpy(sample(name, 8, shape, seed + 1)))
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean += 0.1 * torch.randn_like(norm.running_mean)
            norm.running_var.clamp_(min=0.05).mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))
    finally:
        torch.set_rng_state(state)
    return net.eval()


def sample(name: str, batch: int | None = None, shape: tuple[int, ...] | None = None, seed: int = 0) -> Array:
    """Inputs [batch, *shape]: float32 noise, or int64 token numbers."""
    entry = ZOO[name]
    rng = np.random.default_rng(seed)
    full = (batch or entry.batch, *(shape or entry.shape))
    if entry.vocabulary:
        return rng.integers(0, entry.vocabulary, full)
    return rng.standard_normal(full, np.float32)


def targets(name: str, outputs: tuple[int, ...], seed: int = 0) -> Array:
    """What the entry's loss compares outputs of this shape with: labels int64, or float32 values."""
    rng = np.random.default_rng(seed + 2)
    if ZOO[name].loss == "cross_entropy":
        return rng.integers(0, outputs[-1], outputs[:-1])
    return rng.standard_normal(outputs, np.float32)


def export(
    net: nn.Module, inputs: Array, exporter: str = "torchscript", dynamic: bool = True, opset: int | None = None,
    keep: bool = False, output: str = "logits",
) -> bytes:  # fmt: skip
    """The ONNX model, with input "x". `exporter`: torchscript (opset 17) or dynamo (18), or as `opset` says.

    `keep` writes every parameter as it is: batch normalization unfolded, nothing folded into constants.
    """
    arguments = (torch.from_numpy(inputs),)
    buffer = io.BytesIO()
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), quiet[0], quiet[1]:
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(
                net, arguments, cast(Any, buffer), dynamo=False, opset_version=opset or 17, input_names=["x"],
                output_names=[output], dynamic_axes={"x": {0: "N"}, output: {0: "N"}} if dynamic else None,
                training=torch.onnx.TrainingMode.PRESERVE if keep else torch.onnx.TrainingMode.EVAL,
                do_constant_folding=not keep,
            )  # fmt: skip
            return buffer.getvalue()
        program = torch.onnx.export(
            net, arguments, dynamo=True, opset_version=opset or 18, input_names=["x"], output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("N")},) if dynamic else None, optimize=not keep, verbose=False,
        )  # fmt: skip
        assert program is not None
        return bytes(program.model_proto.SerializeToString())
