"""Whether what was learned may be used: pure decisions on measured figures.

A personal model *serves* when it beats the fleet's model on the held-out slice and loses at most `anchor_drop` on the
release's anchor set. Beating means higher accuracy or, at equal accuracy, a lower mean loss: held-out slices are
small, so accuracies tie often, and the loss still tells which model is surer of the right answers. With fewer than
`LIMITS.least_held_out` held-out samples nothing is known, so the fleet's model goes on serving.

What was learned is *sent* when the personal model is not worse than the base on the held-out slice: the server judges
the merged model by itself, and a device's change may help others even where this device's anchor figures fall.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .limits import LIMITS


class Score(msgspec.Struct, frozen=True):
    """Accuracy (0 to 1) and mean cross-entropy over `count` samples."""

    accuracy: float
    loss: float
    count: int


class Evaluation(msgspec.Struct, frozen=True):
    """Both models, side by side; the anchor figures are None when the release has no anchor set."""

    held_out_fleet: Score
    held_out_personal: Score
    anchor_fleet: float | None = None
    anchor_personal: float | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What may be done with a personal model, and why (for people)."""

    serve: bool
    send: bool
    reason: str


def judge(found: Evaluation, anchor_drop: float) -> Verdict:
    """The verdict on a personal model."""
    fleet, personal = found.held_out_fleet, found.held_out_personal
    figures = f"held-out {personal.accuracy:.3f} against {fleet.accuracy:.3f} of {fleet.count}"
    if fleet.count < LIMITS.least_held_out:
        few = f"only {fleet.count} held-out samples, at least {LIMITS.least_held_out} are needed"
        return Verdict(False, False, few)
    if personal.accuracy < fleet.accuracy or personal.loss != personal.loss:
        return Verdict(False, False, f"worse than the fleet's model: {figures}")
    if personal.accuracy == fleet.accuracy and personal.loss >= fleet.loss:
        return Verdict(False, True, f"no better than the fleet's model: {figures}")
    if found.anchor_fleet is not None and found.anchor_personal is not None:
        fall = found.anchor_fleet - found.anchor_personal
        if fall > anchor_drop:
            loss = f"loses {fall:.3f} on the anchor set, at most {anchor_drop:.3f} may be"
            return Verdict(False, True, f"{loss}; {figures}")
    return Verdict(True, True, f"better than the fleet's model: {figures}")


def serves(policy: Literal["best", "fleet", "personal"], adopted: bool, exists: bool) -> Literal["fleet", "personal"]:
    """Which model answers: a personal one that passed the gate, unless the policy insists on one of the two."""
    wanted = {"best": adopted, "fleet": False, "personal": exists}[policy]
    return "personal" if wanted else "fleet"
