"""When a merge begins: a pure rule over what is pending and what has been."""

from __future__ import annotations

from dataclasses import dataclass

from .config import MergeSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the rule looks at. Times are seconds since 1970 by the server's clock."""

    now: float
    #: Devices with accepted deltas that are in no merge yet, and when the oldest of these was received.
    devices: int
    oldest: float | None
    #: When the present release was made, and how many merged ones there have been.
    released: float
    merged_releases: int


def due(situation: Situation, settings: MergeSection) -> bool:
    """Whether to merge now: enough devices, or enough waiting, but not too soon after the last release."""
    s = situation
    if not settings.enabled or s.oldest is None:
        return False
    if settings.max_releases and s.merged_releases >= settings.max_releases:
        return False
    since = s.now - s.released
    if (
        0 <= since < settings.min_interval_seconds
    ):  # a release in the future: the clock was set back, do not wait for it
        return False
    waited = settings.max_wait_seconds > 0 and abs(s.now - s.oldest) >= settings.max_wait_seconds
    return s.devices >= settings.min_devices or waited
