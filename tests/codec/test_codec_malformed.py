"""Any bytes give a value or `CodecError`, in bounded memory: damaged, cut, invented, also with a right checksum."""

from __future__ import annotations

import random
import runpy
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.codec import CodecError, CodecLimits, decode_delta, decode_integers, encode_delta, encode_integers
from sanderling.codec.coding.bits import BitWriter
from sanderling.codec.container import Kind, wrap
from sanderling.codec.files.pack import pack_file, unpack_file
from sanderling.codec.files.patch import apply_patch
from sanderling.codec.limits import WORK_BYTES_PER_BLOB_BYTE, WORK_BYTES_PER_ELEMENT

VECTORS = Path(__file__).parent.parent / "vectors"
GENERATOR = runpy.run_path(str(VECTORS / "generate.py"))
SMALL = CodecLimits(elements=1 << 16, decoded_bytes=1 << 19)
DECODERS: list[Callable[[bytes], object]] = [
    lambda blob: decode_integers(blob, limits=SMALL),
    lambda blob: decode_delta(blob, limits=SMALL),
    lambda blob: unpack_file(blob, limits=SMALL),
    lambda blob: apply_patch(GENERATOR["weights_file"](), blob, limits=SMALL),
]


def fixed(blob: bytes) -> bytes:
    """The same with a right checksum."""
    return blob[:-4] + zlib.crc32(blob[:-4]).to_bytes(4, "little")


def attempt(blob: bytes) -> int:
    """How many decoders took it; anything but a value or `CodecError` fails the test."""
    taken = 0
    for decode in DECODERS:
        try:
            decode(blob)
            taken += 1
        except CodecError as error:
            assert str(error)
    return taken


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(Kind))
def test_invented_payloads(payload: bytes, kind: Kind) -> None:
    attempt(payload)
    attempt(wrap(kind, [payload]))


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.sndl")), ids=lambda path: path.stem)
def test_damaged_golden_blobs(path: Path) -> None:
    blob = path.read_bytes()
    source = random.Random(path.stem)
    assert attempt(blob) == 1
    for _ in range(60):
        damaged = bytearray(blob)
        # Most of the meaning is in the first bytes, so damage falls there more often.
        for _ in range(source.choice([1, 1, 1, 2, 8])):
            reach = source.choice([20, 120, len(blob)])
            damaged[source.randrange(5, max(6, min(reach, len(blob) - 4)))] ^= 1 << source.randrange(8)
        if bytes(damaged) != blob:
            assert attempt(bytes(damaged)) == 0 or zlib.crc32(damaged[:-4]) == zlib.crc32(blob[:-4])
        attempt(fixed(bytes(damaged)))
    for size in [*range(min(40, len(blob))), *(source.randrange(len(blob)) for _ in range(20))]:
        assert attempt(blob[:size]) == 0
        attempt(fixed(blob[:size] + bytes(4)))
    assert attempt(blob + b"\0") == 0
    assert attempt(fixed(blob[:-4] + b"\0\0\0" + blob[-4:])) == 0


def test_versions_and_kinds_that_are_not_known() -> None:
    blob = bytearray(encode_integers({"w": [1, 2]}))
    for version, side in ((1, "wrote"), (3, "this side")):
        blob[4] = version << 4
        with pytest.raises(CodecError, match=f"version {version}.*update .*{side}"):
            decode_integers(fixed(bytes(blob)))
    blob[4] = 2 << 4 | 9
    with pytest.raises(CodecError, match="kind 9"):
        decode_integers(fixed(bytes(blob)))


def test_a_small_blob_cannot_ask_for_much_memory() -> None:
    bomb = BitWriter()
    bomb.number(1, 4)  # one array
    for value, order in ((0, 0), (0, 1), (0, 0), (3, 0)):  # the empty name; its rank is new, and is 3
        bomb.number(value, order)
    for size in (1 << 20, 1 << 20, 1 << 20):
        bomb.number(bomb_place(size), 0)
        bomb.number(size, 4)
    blob = wrap(Kind.DELTA, [bomb.to_bytes(), bytes(20)])
    large = encode_integers({"w": np.zeros(1 << 20, np.int8)})
    assert len(large) < 30
    tracemalloc.start()
    try:
        for data in (blob, large):
            assert attempt(data) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def bomb_place(size: int) -> int:
    """All dimensions are spelled: the list of recent ones is empty or too short for this place."""
    return 0 if size else 1


def test_working_memory_stays_below_what_the_limits_document() -> None:
    generator = np.random.default_rng(0)
    count = 1 << 18
    for values in (
        generator.integers(-(2**62), 2**62, count),
        generator.integers(-3, 4, count),
        generator.integers(-3, 4, count) * (generator.random(count) < 0.02),
    ):
        blob = encode_integers({"w": values})
        tracemalloc.start()
        try:
            decode_integers(blob)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < WORK_BYTES_PER_ELEMENT * count + values.nbytes + WORK_BYTES_PER_BLOB_BYTE * len(blob)


def test_levels_and_steps_beyond_float32_are_refused() -> None:
    blob, _ = encode_delta({"w": np.array([2.0**119], np.float32)})
    assert decode_delta(blob)["w"][0] == pytest.approx(2.0**119, rel=0.3)
    found = 0
    for position in range(5, len(blob) - 4):
        for bit in range(8):
            damaged = bytearray(blob)
            damaged[position] ^= 1 << bit
            try:
                assert np.isfinite(decode_delta(fixed(bytes(damaged))).popitem()[1]).all()
            except (CodecError, KeyError) as error:
                found += "float32" in str(error) or "quantizer" in str(error)
    assert found


def test_packed_files_that_lie_about_their_size() -> None:
    weights = GENERATOR["weights_file"]()
    for data in (b"", b"plain" * 2, b"deflated " * 99, bytes(random.Random(1).choices(b"abc", k=9000)), weights):
        blob = pack_file(data, "f")
        with pytest.raises(CodecError):
            unpack_file(blob, limits=CodecLimits(decoded_bytes=len(data) - 1))
        assert unpack_file(blob, limits=CodecLimits(decoded_bytes=len(data)))[1] == data
