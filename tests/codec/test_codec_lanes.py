"""Lanes give back what was dealt to them, both ways to decode agree with a plain loop, and damage is found."""

from __future__ import annotations

import random
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.codec import CodecError
from sanderling.codec.coding import bits, huffman, lanes, lockstep
from sanderling.codec.coding.bits import BitReader, BitWriter

I64 = npt.NDArray[np.int64]
Stream = tuple[I64, I64]


def stream(seed: int, count: int, alphabet: int, skew: float) -> Stream:
    """`count` symbols, the later ones rarer, and their code."""
    generator = np.random.default_rng(seed)
    symbols = np.minimum(generator.exponential(skew, count).astype(np.int64), alphabet - 1)
    return symbols, huffman.code_lengths(np.bincount(symbols, minlength=alphabet))


def coded(streams: list[Stream]) -> tuple[bytes, bytes]:
    """(sizes of segments, codes)."""
    head = BitWriter()
    codes = lanes.encode(head, streams)
    return head.to_bytes(), codes


def decoded(head: bytes, codes: bytes, streams: list[Stream]) -> list[I64]:
    return lanes.decode(codes, lanes.read_layout(BitReader(head), [(len(s), lengths) for s, lengths in streams]))


def check(streams: list[Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    head, codes = coded(streams)
    for price in (0, 10**9):  # in lockstep, and symbol by symbol
        monkeypatch.setattr(lockstep, "_STEP_SYMBOLS", price)
        found = decoded(head, codes, streams)
        assert all(np.array_equal(a, b) for a, (b, _) in zip(found, streams, strict=True))
        assert {a.dtype for a in found} <= {np.dtype(np.int64)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 40), st.integers(2000, 2100), st.integers(0, 9000)),
            st.sampled_from([1, 2, 3, 40, 300, 4096]),
            st.sampled_from([0.3, 2.0, 60.0, 3000.0]),
        ),
        max_size=6,
    ),
    st.integers(0, 99),
)
def test_streams_come_back(shapes: list[tuple[int, int, float]], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        check([stream(seed + i, *shape) for i, shape in enumerate(shapes)], patch)


def test_many_symbols_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    check([stream(1, 600_000, 90, 4.0), stream(2, 5, 3, 2.0), stream(3, 4097, 4096, 900.0)], monkeypatch)


def test_a_segment_is_a_lane_from_each_end() -> None:
    symbols = np.array([0, 1, 2, 0, 2, 2, 1], np.int64)  # words 0 -> 10, 1 -> 11, 2 -> 0; lanes 0 2 2 1 and 1 0 2
    head, codes = coded([(symbols, np.array([2, 2, 1]))])
    written = "".join(f"{byte:08b}" for byte in codes)
    assert written == "10" + "0" + "0" + "11" + ("11" + "10" + "0")[::-1] + "00000"
    # 2 bits for the length of lanes; 11 bits are one more than 7 symbols at 1.5 bits each: folded, of order 1.
    assert head == bytes([0b10_01_00_00])


def test_few_bits_are_spent_on_sizes() -> None:
    for count, alphabet, skew, share in ((1000, 50, 5.0, 0.006), (10**5, 50, 5.0, 0.002), (10**6, 50, 5.0, 0.001)):
        head, codes = coded([stream(4, count, alphabet, skew)])
        assert len(head) < share * len(codes)


def test_streams_without_bits_need_no_sizes() -> None:
    lone: Stream = (np.full(9, 3), np.array([-1, -1, -1, 0]))
    none: Stream = (np.zeros(0, np.int64), np.full(4, -1))
    head, codes = coded([lone, none])
    assert (head, codes) == (b"", b"")
    assert [s.tolist() for s in decoded(head, codes, [lone, none])] == [[3] * 9, []]


@pytest.mark.parametrize("price", [0, 10**9])
def test_damage_gives_values_or_an_error(price: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "_STEP_SYMBOLS", price)
    streams = [stream(5, 3000, 30, 4.0), stream(6, 700, 200, 40.0), stream(7, 1, 2, 1.0)]
    head, codes = coded(streams)
    source = random.Random(price)
    refused = 0
    for _ in range(300):
        damaged = bytearray(head + codes)
        for _ in range(source.choice([1, 1, 9])):
            damaged[source.randrange(source.choice([len(head), len(damaged)]))] ^= 1 << source.randrange(8)
        try:
            found = decoded(bytes(damaged[: len(head)]), bytes(damaged[len(head) :]), streams)
            assert [len(s) for s in found] == [3000, 700, 1]
            assert all(s.min() >= 0 and s.max() < len(lengths) for s, (_, lengths) in zip(found, streams, strict=True))
        except CodecError as error:
            refused += 1
            assert "damaged" in str(error) or "cut off" in str(error) or "limit" in str(error)
    assert refused > 200
    for size in (0, len(codes) // 2, len(codes) - 1):
        with pytest.raises(CodecError, match="cut off"):
            decoded(head, codes[:size], streams)


def test_segments_whose_sizes_are_impossible_are_refused_before_anything_is_made() -> None:
    lengths = np.array([1, 1])
    for count, size in ((1 << 27, 5), (100, 10**6), (100, -3)):
        head = BitWriter()
        head.bits(3, 2)
        pairs = -(-count // 4096)
        guess = count // pairs
        order = max(guess.bit_length() // 2 - 1, guess.bit_length() - 6, 0)
        head.signed(size - guess, order)
        if pairs > 1:
            head.bits(0, 4)
            for _ in range(pairs):
                head.number(0)
        with pytest.raises(CodecError, match="size"):
            lanes.read_layout(BitReader(head.to_bytes()), [(count, lengths)])


@pytest.mark.parametrize(
    "shapes",
    [[(80_000, 2)], [(20_000, 2)] * 4, [(2_600, 2)] * 30, [(2 + 2 * i, 2) for i in range(256)], [(20, 4096)] * 256],
    ids=["one", "few", "some", "uneven", "large codes"],
)
def test_ten_kilobytes_never_take_long(shapes: list[tuple[int, int]]) -> None:
    generator = np.random.default_rng(0)
    streams = [
        (generator.integers(0, alphabet, count), np.full(alphabet, alphabet.bit_length() - 1))
        for count, alphabet in shapes
    ]
    head, codes = coded(streams)
    assert 7_000 < len(head) + len(codes) < 11_000
    taken = []
    for _ in range(3):
        begin = time.process_time()
        decoded(head, codes, streams)
        taken.append(time.process_time() - begin)
    assert min(taken) < 0.05


@given(st.binary(max_size=100))
def test_reversing_bits(data: bytes) -> None:
    text = "".join(f"{byte:08b}" for byte in data)
    assert "".join(f"{byte:08b}" for byte in bits.reverse(data)) == text[::-1]


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 64), st.integers(0, 2**64 - 1))))
def test_fields_are_placed_where_they_should_be(fields: list[tuple[int, int, int]]) -> None:
    starts, lengths, values, text = [], [], [], ""
    for gap, length, value in fields:
        text += "0" * gap
        starts.append(len(text))
        lengths.append(length)
        values.append(value & ((1 << length) - 1))
        text += format(values[-1], f"0{length}b") if length else ""
    total = -(-len(text) // 64) * 64
    placed = bits.place(np.array(values, np.uint64), np.array(lengths, np.int64), np.array(starts, np.int64), total)
    assert "".join(f"{byte:08b}" for byte in placed) == text.ljust(total, "0")
