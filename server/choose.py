"""Which candidate is released: one small rule with named parameters, on figures alone.

Each candidate (the aggregate, the distilled student, points between them) comes with its accuracy on the validation
slice and its agreement with the ensemble of the devices' models.
Validation data comes from the lab, not from the devices: accuracy there says what was forgotten, agreement says what
was learned. Score = (1 - agreement_share) x accuracy + agreement_share x agreement. A candidate that loses more than
`largest_drop` of the present release's accuracy is out; the best of the others is taken, the earlier one when equal. A
fallback (half a step from the present release) would nearly always look best on data from the lab, because it hardly
moves: it is taken only if all others are out. If it is out as well the merge is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AGREEMENT_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Figures of one candidate, each 0 to 1, or None where there is no data for it."""

    name: str
    accuracy: float | None = None
    agreement: float | None = None
    #: Only to be taken if nothing else can be.
    fallback: bool = False

    def score(self, agreement_share: float = AGREEMENT_SHARE) -> float:
        """What the choice goes by; a figure that nobody has is left out.

        >>> Candidate(name="a", accuracy=0.5, agreement=1.0).score(), Candidate(name="b", accuracy=0.5).score()
        (0.75, 0.5)
        """
        if self.accuracy is None or self.agreement is None:
            return next((x for x in (self.accuracy, self.agreement) if x is not None), 0.0)
        return (1 - agreement_share) * self.accuracy + agreement_share * self.agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The candidate to release, or None and the reason why none."""

    candidate: Candidate | None
    reason: str


def choose(
    candidates: Sequence[Candidate],
    previous: float | None,
    largest_drop: float,
    agreement_share: float = AGREEMENT_SHARE,
) -> Choice:
    """The choice among candidates, `previous` being the present release's validation accuracy (None: no such data)."""
    allowed = [
        c for c in candidates
        if previous is None or c.accuracy is None or c.accuracy >= previous - largest_drop - 1e-12
    ]  # fmt: skip
    if not allowed:
        best = max((c.accuracy or 0.0 for c in candidates), default=0.0)
        return Choice(
            candidate=None,
            reason=f"every candidate falls more than {largest_drop:g} below the present release on validation"
            f" (best {best:.3f}, present {previous or 0:.3f})",
        )
    preferred = [c for c in allowed if not c.fallback] or allowed
    best_candidate = max(preferred, key=lambda c: c.score(agreement_share))  # the first of equals
    return Choice(candidate=best_candidate, reason=f"best score of {len(preferred)}: {best_candidate.name}")
