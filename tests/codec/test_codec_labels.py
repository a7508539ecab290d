"""Streams of labels are joined to tuples where that pays, and come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.codec import CodecError
from sanderling.codec.coding import huffman, lanes, lines
from sanderling.codec.coding.bits import BitReader, BitWriter


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, lines.ALPHABET - 1)), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_joined_symbols_come_back(symbols: list[int], repeat: int) -> None:
    found = np.array(symbols * repeat, np.int64)
    head = BitWriter()
    joined, lengths = lines.join(head, found)
    codes = lanes.encode(head, [(joined, lengths)])
    reader = BitReader(head.to_bytes())
    read = lines.read_joined(reader, len(found))
    assert np.array_equal(read.lengths, lengths)
    [decoded] = lanes.decode(codes, lanes.read_layout(reader, [read.coded]))
    assert np.array_equal(read.split(decoded), found)


def test_a_frequent_label_takes_less_than_a_bit() -> None:
    found = (np.random.default_rng(0).random(4000) < 0.03).astype(np.int64)
    joined, lengths = lines.join(BitWriter(), found)
    assert int(lengths[joined].sum()) < 0.4 * len(found)


def test_symbols_beyond_the_end_are_refused() -> None:
    joined = lines.Joined(5, 2, 3, np.zeros(9, np.int64))
    assert joined.split(np.array([8, 4, 2])).tolist() == [2, 2, 1, 1, 2]
    with pytest.raises(CodecError, match="beyond their end"):
        joined.split(np.array([8, 4, 5]))


def test_tuples_of_too_many_symbols_are_refused() -> None:
    head = BitWriter()
    head.bits(3, 2)
    head.number(8, 3)
    huffman.write_lengths(head, np.array([1, 1]))
    with pytest.raises(CodecError, match="6561 symbols"):
        lines.read_joined(BitReader(head.to_bytes()), 9)
