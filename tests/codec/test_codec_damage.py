"""Some thousands of damaged blobs of every kind: only values or `CodecError`, in bounded memory and time.

The same damage by the million is `benchmarks/fuzz.py`; guided by coverage it is `tests/codec/guided.py`.
"""

from __future__ import annotations

import tracemalloc
from collections import Counter
from functools import cache

import pytest

from sanderling.codec import CodecError
from tests.support import blobs as support
from tests.support.damage import DECODERS, LIMITS, Cases, DamageError, check_value, fixed, judge

COUNT, TRACED = 5000, 60
SECONDS = 0.05


@cache
def blobs() -> dict[str, bytes]:
    """Made once."""
    return support.blobs()


def test_true_blobs_are_taken_by_the_decoder_of_their_kind() -> None:
    """So damage starts from blobs that are within the limits, and the harness sees what is inside."""
    taken = Counter(name for blob in blobs().values() for name in judge(blob).taken)
    assert set(taken) == set(DECODERS)
    assert sum(taken.values()) >= len(blobs())
    for name, blob in blobs().items():
        assert judge(blob).taken, name
        assert fixed(blob) == blob


def test_damaged_blobs_give_values_or_reasons_in_time() -> None:
    cases = Cases(blobs())
    taken: Counter[str] = Counter()
    for number in range(COUNT):
        case = cases[number]
        verdict = judge(case.blob)
        if verdict.seconds > SECONDS:  # this machine may have other work: the fastest of three counts
            verdict = min((judge(case.blob) for _ in range(3)), key=lambda found: found.seconds)
        assert verdict.seconds <= SECONDS, f"case {number}: {verdict.slowest} took {verdict.seconds:.3f} s"
        taken.update(verdict.taken)
    # else damage would be too gross to reach beyond the first check
    assert set(taken) == set(DECODERS)
    assert sum(taken.values()) > COUNT // 100


def test_damaged_blobs_stay_within_the_memory_that_the_limits_declare() -> None:
    declared = LIMITS.memory_bytes(LIMITS.blob_bytes)
    cases = Cases(blobs(), seed=1)
    tracemalloc.start()
    try:
        for number in range(TRACED):
            case = cases[number]
            assert judge(case.blob).peak <= declared, f"case {number}: {case.source}, {case.damage}"
        for name, blob in blobs().items():
            assert judge(blob).peak <= declared, name
    finally:
        tracemalloc.stop()


def test_the_same_number_is_the_same_damage() -> None:
    one, other = Cases(blobs()), Cases(blobs())
    assert [one[n].blob for n in range(50)] == [other[n].blob for n in range(50)]
    assert len({Cases(blobs(), seed)[7].blob for seed in range(5)}) > 1


def test_the_judge_sees_what_must_not_happen() -> None:
    def raises(blob: bytes) -> object:
        raise KeyError("place")

    def silent(blob: bytes) -> object:
        raise CodecError("")

    for decoder, complaint in ((raises, "KeyError"), (silent, "without a reason")):
        with pytest.raises(DamageError, match=complaint):
            judge(b"", {"decoder": decoder})
    with pytest.raises(DamageError, match="beyond its limits"):
        check_value("decoder", ("name", bytes(LIMITS.decoded_bytes + 1)))
