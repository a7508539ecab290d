"""Damage done to blobs, and what a decoder may do with it: give a value or raise `CodecError`, in bounds.

Strategy: nothing here knows the format but for one thing, that the last four bytes are a CRC-32 of the rest (little-
endian); it is made right again after most damage, since a wrong one hides everything behind it. Whatever decoders there
are get every input. A case is one number: the same number gives the same input as long as the blobs stay the same.

What is checked of each case: nothing but `CodecError` is raised, and it says something; values are within the limits
and finite; the peak of traced memory stays below what the limits declare; processor time of this thread.
"""

from __future__ import annotations

import random
import time
import tracemalloc
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sanderling.codec import (
    CodecError,
    CodecLimits,
    accumulate,
    apply_patch,
    decode_delta,
    decode_integers,
    unpack_file,
)

from .blobs import delta_target, old_file

#: Room for every blob of `blobs`, and for little more.
LIMITS = CodecLimits(blob_bytes=1 << 14, decoded_bytes=1 << 17, elements=1 << 16, arrays=64)
CRC = 4

_OLD = old_file()
_TARGET = delta_target()

Decoder = Callable[[bytes], object]
DECODERS: dict[str, Decoder] = {
    "decode_integers": lambda blob: decode_integers(blob, limits=LIMITS),
    "decode_delta": lambda blob: decode_delta(blob, limits=LIMITS),
    "accumulate": lambda blob: accumulated(blob),
    "unpack_file": lambda blob: unpack_file(blob, limits=LIMITS),
    "apply_patch": lambda blob: apply_patch(_OLD, blob, limits=LIMITS),
}


class DamageError(AssertionError):
    """A decoder did what it must not do."""


def accumulated(blob: bytes) -> None:
    """Add to the target, which must be as it was when the blob is refused."""
    try:
        accumulate(blob, _TARGET, limits=LIMITS)
    except CodecError:
        if any(tensor.any() for tensor in _TARGET.values()):
            raise DamageError("accumulate has changed its target before it refused the blob") from None
        raise
    for tensor in _TARGET.values():
        tensor[...] = 0


def fixed(blob: bytes) -> bytes:
    """The same with a right checksum."""
    return blob[:-CRC] + zlib.crc32(blob[:-CRC]).to_bytes(CRC, "little")


# ---- damage: each takes bytes without their checksum, and another blob's


def flip(body: bytearray, other: bytes, draw: random.Random) -> None:
    """A few bits."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        body[_place(body, draw)] ^= 1 << draw.randrange(8)


def replace(body: bytearray, other: bytes, draw: random.Random) -> None:
    """Bytes by extreme or random ones."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        body[_place(body, draw)] = draw.choice((0, 1, 127, 128, 254, 255, draw.randrange(256)))


def _place(body: bytearray, draw: random.Random) -> int:
    """Most of the meaning is in the first bytes, so damage falls there more often; but seldom on the very first, where
    any damage ends the reading.
    """
    low = min(draw.choice((0, 5, 5, 5, 5, 5, 5, 5)), len(body) - 1)
    return draw.randrange(low, max(low + 1, min(draw.choice((24, 120, len(body))), len(body))))


def truncate(body: bytearray, other: bytes, draw: random.Random) -> None:
    """Cut off anywhere."""
    del body[draw.randrange(len(body)) :]


def extend(body: bytearray, other: bytes, draw: random.Random) -> None:
    """Go on with zeros or noise."""
    count = draw.choice((1, 2, 8, 300))
    body += bytes(count) if draw.random() < 0.5 else draw.randbytes(count)


def splice(body: bytearray, other: bytes, draw: random.Random) -> None:
    """The beginning of one blob and the end of another."""
    body[draw.randrange(len(body)) :] = other[draw.randrange(len(other)) :]


def exchange(body: bytearray, other: bytes, draw: random.Random) -> None:
    """A piece of one blob in the place of as long a piece of another."""
    size = draw.randrange(1, 1 + min(len(body), len(other), 64))
    at, source = draw.randrange(len(body) - size + 1), draw.randrange(len(other) - size + 1)
    body[at : at + size] = other[source : source + size]


def drop(body: bytearray, other: bytes, draw: random.Random) -> None:
    """A piece is missing, or comes twice."""
    at, size = draw.randrange(len(body)), draw.choice((1, 2, 5, 30))
    if draw.random() < 0.5:
        del body[at : at + size]
    else:
        body[at:at] = body[at : at + size]


def noise(body: bytearray, other: bytes, draw: random.Random) -> None:
    """Random bytes behind a true beginning."""
    keep = draw.choice((4, 5, 6, 8, 12, 20, 40))
    body[keep:] = draw.randbytes(draw.choice((3, 20, 100, 1000)))


def invent(body: bytearray, other: bytes, draw: random.Random) -> None:
    """Random bytes only."""
    body[:] = draw.randbytes(draw.choice((1, 8, 60, 500)))


#: With how often each is drawn.
DAMAGES: dict[Callable[[bytearray, bytes, random.Random], None], int] = {
    flip: 8, replace: 4, truncate: 2, extend: 1, splice: 3, exchange: 3, drop: 2, noise: 2, invent: 1,
}  # fmt: skip
#: One input in this many keeps the checksum that the damage left it with.
_UNFIXED = 16


@dataclass(frozen=True)
class Case:
    """A damaged blob, and how it came about."""

    number: int
    blob: bytes
    damage: str
    source: str


class Cases:
    """Damaged blobs by number."""

    def __init__(self, blobs: Mapping[str, bytes], seed: int = 0) -> None:
        self._names: Sequence[str] = sorted(blobs)
        self._bodies = [blobs[name][:-CRC] for name in self._names]
        self._seed = seed << 40
        self._kinds, self._weights = list(DAMAGES), list(DAMAGES.values())

    def __getitem__(self, number: int) -> Case:
        draw = random.Random(self._seed + number)
        one = draw.randrange(len(self._bodies))
        body = bytearray(self._bodies[one])
        names = []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            kind = draw.choices(self._kinds, self._weights)[0]
            if body:  # nothing is left to damage once all was cut off
                kind(body, self._bodies[draw.randrange(len(self._bodies))], draw)
                names.append(kind.__name__)
        blob = bytes(body) + bytes(CRC)
        if draw.randrange(_UNFIXED):
            blob = fixed(blob)
        return Case(number, blob, "+".join(names), self._names[one])


# ---- what decoders do with it


@dataclass
class Verdict:
    """What one input came to."""

    #: Decoders that gave a value.
    taken: list[str]
    #: Messages of those that refused.
    refused: list[str]
    #: Processor time of the slowest decoder, and its name.
    seconds: float
    slowest: str
    #: Peak of traced memory above what there was before, in bytes; 0 if tracemalloc does not run.
    peak: int


def judge(blob: bytes, decoders: Mapping[str, Decoder] = DECODERS) -> Verdict:
    """Give `blob` to every decoder. Raises `DamageError` for what none may do, except being slow or large."""
    verdict = Verdict([], [], 0.0, "", 0)
    traced = tracemalloc.is_tracing()
    for name, decode in decoders.items():
        before = 0
        if traced:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
        start = time.thread_time()
        try:
            value = decode(blob)
        except CodecError as error:
            value = None
            verdict.refused.append(str(error))
            if not str(error):
                raise DamageError(f"{name} refuses without a reason") from error
        except BaseException as error:
            raise DamageError(f"{name} raised {type(error).__name__}: {error}") from error
        else:
            verdict.taken.append(name)
        seconds = time.thread_time() - start
        if traced:
            verdict.peak = max(verdict.peak, tracemalloc.get_traced_memory()[1] - before)
        if seconds > verdict.seconds:
            verdict.seconds, verdict.slowest = seconds, name
        check_value(name, value)
    return verdict


def check_value(name: str, value: object) -> None:
    """Raise `DamageError` for values beyond the limits, or floats that are not finite."""
    if isinstance(value, dict):
        size = sum(array.nbytes for array in value.values())
        elements = sum(array.size for array in value.values())
        if size > LIMITS.decoded_bytes or elements > LIMITS.elements or len(value) > LIMITS.arrays:
            raise DamageError(f"{name} gave {len(value)} arrays, {elements} elements, {size} bytes: beyond its limits")
        if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in value.values()):
            raise DamageError(f"{name} gave values that are not finite")
    elif isinstance(value, tuple) and len(value[1]) > LIMITS.decoded_bytes:
        raise DamageError(f"{name} gave a file of {len(value[1])} bytes: beyond its limits")
