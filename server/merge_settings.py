"""What server and merge child agree on: the settings that a merge is begun with, and what an exit status means.

The settings are kept in the job's row: changing server.toml does not change a merge under way.
"""

from __future__ import annotations

import msgspec

from .config import DistillSection, MergeSection
from .limits import Limits

#: Exit status of a merge that the disk has failed (EX_TEMPFAIL of sysexits.h): no fault of the deltas'.
DISK_FAILED = 75


class JobSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the configuration that a merge depends on."""

    merge: MergeSection
    distill: DistillSection
    limits: Limits
