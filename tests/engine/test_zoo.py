"""The models that tests and benchmarks share are those of the papers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the models need it")

from tests.support.zoo import ZOO, module  # noqa: E402  # after PyTorch is known to be there

#: Weights of the published models at 1,000 classes, in units of one.
PUBLISHED = {
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "efficientnet_lite0": 4_652_008,
    "shufflenet_v2": 2_278_604,
    "squeezenet": 1_235_496,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_as_many_weights_as_published(name: str) -> None:
    with torch.device("meta"):
        net = ZOO[name].build(1000, (3, 64, 64))
    assert sum(p.numel() for p in net.parameters()) == PUBLISHED[name]


def test_a_model_is_built_the_same_twice_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (module("ds_cnn_1d").state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], second[k]) for k in first)
