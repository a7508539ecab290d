"""Resident memory of this process: measured by the operating system, limited by the operating system.

Strategy: the figures are those of `/proc/self/status` (`VmHWM` is what `/usr/bin/time -v` prints as maximum resident
set size). The hard limit is `RLIMIT_DATA`, which every private writable page counts against when it is *reserved*: an
allocation that could take the process over its limit fails (MemoryError, or an allocation failure in the runtime)
before a page of it is resident. Resident memory also holds pages of files (program text), which `RLIMIT_DATA` does
not count, so a reserve for text that has not been touched yet is subtracted.
"""

from __future__ import annotations

import ctypes
import re
import resource
from pathlib import Path

from .errors import MemoryLimitError

_STATUS = Path("/proc/self/status")
#: Environment of a process that is to stay small: libraries of matrix routines reserve memory per thread, and read
#: these when they are loaded.
LEAN_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_UNITS = {
    "": 1, "B": 1,
    "KB": 1000, "MB": 1000**2, "GB": 1000**3,
    "K": 1024, "M": 1024**2, "G": 1024**3,
    "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3,
}  # fmt: skip
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

#: Bytes of program text that may still become resident after the limit is set: operators of the runtime that have
#: not run yet. Measured: training touches up to 11 MiB of text beyond what importing touched.
TEXT_RESERVE = 12 * 2**20


def _status(*fields: str) -> list[int]:
    """Fields of /proc/self/status, in bytes."""
    values = {}
    for line in _STATUS.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in fields:
            values[name] = int(rest.split()[0]) * 1024
    return [values[field] for field in fields]


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes (VmRSS)."""
    return _status("VmRSS")[0]


def peak_resident_bytes() -> int:
    """The most resident memory this process has had since it started, in bytes (VmHWM)."""
    return _status("VmHWM")[0]


def parse_size(text: str | int) -> int:
    """A size in bytes from `128MiB`, `64 MB`, `1.5G` or plain `134217728`.

    KiB, MiB, GiB (and K, M, G) are powers of 1024; kB, MB, GB are powers of 1000 (IEC 80000-13). Raises ValueError.

    >>> parse_size("128MiB"), parse_size("64 MB"), parse_size("4096")
    (134217728, 64000000, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size: write a number and a unit, as in 128MiB, 64MB or 134217728")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def format_size(count: int) -> str:
    """Bytes for people.

    >>> format_size(134217728), format_size(2048), format_size(12)
    ('128.0 MiB', '2.0 KiB', '12 B')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def trim() -> None:
    """Return free heap pages to the operating system where the C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library: it has no such call, and nothing to return
        return


def return_freed_memory() -> None:
    """Make freed memory leave the process at once, for its whole life (glibc; nothing elsewhere).

    By default glibc raises the size from which a block has pages of its own with every block freed, up to 32 MiB, so
    that workspace stays resident after a step and the next layout does not fit the holes: measured, half as much
    again. One arena, because those of further threads reserve 64 MiB each and keep free memory from each other.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, 2**21)
        library.mallopt(_M_TRIM_THRESHOLD, 2**21)
    except (AttributeError, OSError):
        return


def enforce_limit(limit: int) -> None:
    """Make `limit` bytes of resident memory a hard limit for the rest of this process's life.

    Call it after the heavy imports and before work. From then on an allocation that could exceed the limit fails.
    Raises MemoryLimitError when what is resident already, plus the reserve for program text, leaves nothing.
    """
    return_freed_memory()
    trim()
    now, data, anonymous = _status("VmRSS", "VmData", "RssAnon")
    room = limit - now - TEXT_RESERVE
    if room <= 0:
        smallest = now + TEXT_RESERVE + 2**20
        raise MemoryLimitError(
            f"the memory limit of {format_size(limit)} is used up before training starts: this process already has "
            f"{format_size(now)} resident; allow at least {format_size(smallest)}",
            smallest,
        )
    # `data` counts reserved pages, touched or not. What is reserved and untouched now (thread stacks, tables of BLAS)
    # is almost never touched later; a share of it is held back all the same.
    untouched = max(data - anonymous, 0)
    room -= min(untouched // 16, room // 4)
    resource.setrlimit(resource.RLIMIT_DATA, (data + room, data + room))
