"""The settings that a merge is begun with, kept in its row: changing server.toml does not change a merge under way."""

from __future__ import annotations

import msgspec

from .config import DistillSection, MergeSection
from .limits import Limits


class JobSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the configuration that a merge depends on."""

    merge: MergeSection
    distill: DistillSection
    limits: Limits
