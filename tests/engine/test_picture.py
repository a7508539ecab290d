"""The memory over a step: computed and measured go together, and the picture is drawn."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from sanderling.engine import EngineError, compile, models
from sanderling.engine.picture import check_library, course, draw, measure


@pytest.mark.parametrize("wishes", [{"segments": 3}, {"micro_batch": 4}], ids=["segments", "micro-batches"])
def test_what_is_computed_is_what_is_resident(tmp_path: Path, wishes: dict[str, Any]) -> None:
    model = models.depthwise_cnn_1d(length=800, widths=(64, 96, 96))
    plan = compile(model, batch=32, **wishes)
    measured = measure(plan)
    steps, calls = len(plan.info.steps), -(-32 // plan.micro_batch)
    assert [(i, b) for _, i, b in measured.sessions] == [(i, b) for i in range(steps) for b in (True, False)] * calls
    assert measured.began <= measured.sessions[0][0] <= measured.sessions[-1][0] <= measured.ended
    computed = course(plan.info, measured)
    assert computed.times == sorted(computed.times)
    assert max(computed.resident) == pytest.approx(measured.peak, rel=0.1)
    # all that is held at once is never more than what is resident by then, and ends with nothing inside
    held = [sum(values) for values in zip(*computed.layers.values(), strict=True)]
    slack = 2**20
    assert all(h <= r + slack for h, r in zip(held, computed.resident, strict=True))
    assert max(computed.layers["inside"]) == max(max(s.alive) for s in plan.info.steps)
    assert computed.layers["inside"][-1] == 0 and computed.layers["optimizer"][-1] == plan.info.footprint.optimizer
    draw(plan.info, measured, tmp_path / "memory.png")
    data = (tmp_path / "memory.png").read_bytes()
    assert data.startswith(b"\x89PNG") and 10_000 < len(data) < 200_000


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EngineError, match="pip install matplotlib"):
        check_library()
