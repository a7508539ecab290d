"""The peers of the federated benchmark send what they say, within their budget, so that the comparison is fair."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks._senders import Float32, Qsgd, Sanderling, Sender, TopK

F32 = npt.NDArray[np.float32]
SHAPES = {"a.weight": (40, 60), "a.bias": (40,), "b.weight": (10, 40)}
COUNT = 40 * 60 + 40 + 400


def change(seed: int) -> dict[str, F32]:
    rng = np.random.default_rng(seed)
    return {name: (1e-3 * rng.standard_normal(shape) ** 3).astype(np.float32) for name, shape in SHAPES.items()}


def flat(tensors: dict[str, F32]) -> F32:
    result: F32 = np.concatenate([t.reshape(-1) for t in tensors.values()])
    return result


def received(sender: Sender, rounds: int) -> tuple[dict[str, F32], F32, list[int]]:
    """(sum on the server, sum of what was to be sent, bytes of each round)."""
    into = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    told = np.zeros(COUNT, np.float32)
    sizes = []
    for number in range(rounds):
        delta = change(number)
        blob = sender.send(delta)
        sender.add(blob, into, 1.0)
        told += flat(delta)
        sizes.append(len(blob))
    return into, told, sizes


def test_float32_arrives() -> None:
    into, told, sizes = received(Float32(), 3)
    np.testing.assert_allclose(flat(into), told, rtol=1e-6)
    assert sizes == [4 * COUNT] * 3


@pytest.mark.parametrize("budget", [150, 600])
def test_top_k_keeps_its_budget_and_owes_the_rest(budget: int) -> None:
    sender = TopK(budget)
    into, told, sizes = received(sender, 6)
    assert all(0.9 * budget <= size <= budget for size in sizes)
    assert sender.residual is not None
    np.testing.assert_allclose(flat(into) + sender.residual, told, atol=1e-8)


@pytest.mark.parametrize("exact", [False, True])
def test_ours_keeps_the_budget_of_the_rounds_so_far_and_owes_the_rest(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sanderling, "exact", exact)
    sender = Sanderling(400)
    into, told, sizes = received(sender, 6)
    assert all(sum(sizes[: n + 1]) <= 400 * (n + 1) for n in range(6))
    assert sum(sizes) >= 0.85 * 400 * 6
    assert sender.residual is not None
    np.testing.assert_allclose(flat(into) + flat(sender.residual), told, atol=1e-8)


def test_qsgd_keeps_its_budget_and_is_unbiased() -> None:
    """Over many draws the mean is the change itself."""
    delta = flat(change(0))
    total = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for seed in range(150):
        sender = Qsgd(500, seed)
        blob = sender.send(change(0))
        assert len(blob) <= 500
        sender.add(blob, total, 1 / 150)
    # of one draw the error is a dozen times the change; of the mean of 150 about one time
    assert float(flat(total) @ delta) == pytest.approx(float(delta @ delta), rel=0.1)
