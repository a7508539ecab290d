"""Lets tests import `tests.support` from the checkout's top, whatever directory pytest is started in."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)
