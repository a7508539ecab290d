"""Whole models as PyTorch exports them: every weight's gradient within 1e-4 of PyTorch's, weight by weight.

The full product of models, exporters, batches and options is measured by `benchmarks/exact.py`; here are the models
whose export is quick, each by the exporter and options that write it in the most unusual way.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the comparison needs it")

from tests.support.zoo import ZOO, module  # noqa: E402  # after PyTorch is known to be there
from tests.support.zoo.exact import SINGLE_NUMBERS, UnmatchedError, compare, match  # noqa: E402

#: Models whose comparison takes seconds.
LARGE = ("resnet50", "densenet121", "resnet18", "mobilenet_v3_large", "efficientnet_lite0", "mobilenet_v1")
#: model, exporter, batch free, every parameter as it is, opset.
CASES = [
    *((name, "torchscript", True, True, None) for name in ZOO if name not in LARGE),
    *((name, "torchscript", False, False, None) for name in ("ds_cnn_1d", "shufflenet_v2", "vit", "norms", "lstm")),
    *((name, "dynamo", True, True, None) for name in ("norms", "activations", "assorted", "language", "tcn")),
    *((name, "dynamo", True, False, None) for name in ("ds_cnn_2d", "espcn", "transformer", "gru_bidirectional")),
    ("vit", "dynamo", False, False, None),
    ("ds_cnn_2d", "dynamo", False, True, None),
    ("transformer", "dynamo", True, False, 23),
    ("convnext", "dynamo", True, False, 24),
    ("mlp", "torchscript", True, True, 9),
    ("ds_cnn_2d", "torchscript", True, False, 11),
    ("unet_resize", "torchscript", True, False, 13),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than the work on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "exporter", "dynamic", "keep", "opset"), CASES)
def test_every_weight_gradient_is_pytorch_s(
    name: str, exporter: str, dynamic: bool, keep: bool, opset: int | None
) -> None:
    net = module(name)
    found = compare(name, exporter, dynamic, keep, opset, net)
    assert found.holds, found
    assert not keep or found.weights == len(list(net.parameters()))


def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from sanderling.engine.rules import RULES

    monkeypatch.setitem(RULES["Tanh"].rules, 0, lambda s: s.g)
    assert not compare("espcn", "torchscript", True, True).holds


def test_weights_and_parameters_are_matched_one_to_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 4)).astype(np.float32)
    assert {(p.weight, p.parameter) for p in match({"x": a, "y": b.T}, {"a": a, "b": b})} == {("x", "a"), ("y", "b")}
    with pytest.raises(UnmatchedError, match=r"parameters without weight: \['b \(3, 4\)'\]"):
        match({"x": a}, {"a": a, "b": b})
    with pytest.raises(UnmatchedError, match=r"weights without parameter: \['y \(3, 4\)'\]"):
        match({"x": a, "y": a + b}, {"a": a})
    assert set(SINGLE_NUMBERS) <= set(ZOO)
