"""Batch normalization in training mode: gradients, running statistics, what a batch may be, and the exported model."""

from __future__ import annotations

import numpy as np
import pytest

from sanderling.engine import onnxio
from sanderling.engine.batchnorm import UPDATE, spell_out
from sanderling.engine.checker import pull_back
from sanderling.engine.graph import Builder, TensorType
from sanderling.engine.runtime import run_once

torch = pytest.importorskip("torch", reason="PyTorch is not installed: whole models are compared with it")
F = torch.nn.functional


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_gradients_and_running_statistics_are_pytorch_s(shape: tuple[int, ...], momentum: float) -> None:
    rng = np.random.default_rng(1)
    x = (3 * rng.standard_normal(shape) + 1).astype(np.float32)
    scale, bias, seed = (rng.standard_normal(s).astype(np.float32) for s in ((3,), (3,), shape))
    mean, variance = rng.standard_normal(3).astype(np.float32), rng.uniform(1, 2, 3).astype(np.float32)
    b = Builder("m")
    inputs = ["x", "scale", "bias", b.constant(mean), b.constant(variance)]
    b.multi("BatchNormalization", inputs, 3, "y", epsilon=1e-3, momentum=momentum, training_mode=1)
    given = {"x": x, "scale": scale, "bias": bias}
    kinds = {n: TensorType("float32", v.shape) for n, v in given.items()}
    proto, name = onnxio.load_model(onnxio.to_bytes(b.nodes, kinds, {"y": None}, b.constants, 18))
    graph = onnxio.to_graph(onnxio.normalize(proto, name), None, frozenset(), name)
    spell_out(graph)
    found = pull_back(graph, given, {"y": seed}, list(given))
    tensors = {n: torch.tensor(v, requires_grad=True) for n, v in given.items()}
    running = torch.tensor(mean), torch.tensor(variance)
    y = F.batch_norm(tensors["x"], *running, tensors["scale"], tensors["bias"], True, 1 - momentum, 1e-3)
    (y * torch.tensor(seed)).sum().backward()
    for name, tensor in tensors.items():
        wanted = tensor.grad.numpy()
        np.testing.assert_allclose(found[name], wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=name)
    graph.outputs = [UPDATE + i for i in inputs[3:]]
    data = onnxio.to_bytes(graph.nodes, kinds, dict.fromkeys(graph.outputs), graph.constants, 18)
    for new, wanted in zip(run_once(data, given, graph.outputs), running, strict=True):
        np.testing.assert_allclose(new, wanted.numpy(), rtol=1e-5)
