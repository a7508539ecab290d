"""Learning rates by step, against PyTorch's, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from sanderling.engine import EngineError
from sanderling.engine.schedules import Constant, Cosine, Linear, OneCycle, Steps, as_schedule

torch = pytest.importorskip("torch", reason="PyTorch is not installed: schedules are compared with its own")


def rates_of(make: Any, steps: int, base: float = 0.1) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    schedule = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_and_steps_are_pytorch_s() -> None:
    lr = torch.optim.lr_scheduler
    wanted = rates_of(lambda o: lr.CosineAnnealingLR(o, 20, 0.01), 21)
    # theirs begins with the full rate at step 0, ours reaches the end at its last step
    assert [0.1, *(Cosine(0.1, 20, final=0.01).rate(s) for s in range(1, 21))] == pytest.approx(wanted)
    wanted = rates_of(lambda o: lr.StepLR(o, 5, 0.5), 20)
    assert [Steps(0.1, 5, 0.5).rate(s) for s in range(1, 21)] == pytest.approx(wanted)


def test_one_cycle_is_pytorch_s() -> None:
    make = lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=41, pct_start=0.3)  # noqa: E731
    wanted = rates_of(make, 41)
    ours = OneCycle(0.1, 40, rise=(0.3 * 41 - 1) / 40)
    assert [ours.rate(s) for s in range(1, 41)] == pytest.approx(wanted[1:])


def test_warm_up_rises_and_the_end_stays() -> None:
    for kind in (Linear, Cosine):
        schedule = kind(1.0, steps=10, warmup=4, final=0.25)
        assert [schedule.rate(s) for s in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]
        assert schedule.rate(10) == pytest.approx(0.25) and schedule.rate(1000) == pytest.approx(0.25)
        assert all(schedule.rate(s) > schedule.rate(s + 1) for s in range(4, 10))
    assert Linear(1.0, steps=10).rate(5) == 0.5
    assert Linear(0.5, steps=4, warmup=4).rate(4) == 0.5
    assert as_schedule(0.3).rate(77) == Constant(0.3).rate(1) == 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: as_schedule(-1), lambda: as_schedule(float("nan")), lambda: Cosine(0.1, steps=-1),
        lambda: Steps(0.1, every=0), lambda: OneCycle(0.1, 10, rise=1), lambda: Linear(float("inf"), 3),
    ],
)  # fmt: skip
def test_what_makes_no_schedule(make: Any) -> None:
    with pytest.raises(EngineError):
        make()
