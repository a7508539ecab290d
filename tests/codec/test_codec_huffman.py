"""Code lengths are optimal under the limit; only complete codes are read; numbers and bits are inverses."""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.codec import CodecError
from sanderling.codec.coding import bits, huffman, tokens
from sanderling.codec.coding.bits import BitReader, BitWriter


def huffman_cost(counts: list[int]) -> int:
    """The cost of an optimal code without a limit: the sum of all inner nodes."""
    heap = [c for c in counts if c]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        node = heapq.heappop(heap) + heapq.heappop(heap)
        cost += node
        heapq.heappush(heap, node)
    return cost


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200))
def test_codes_are_optimal_and_complete(counts: list[int]) -> None:
    lengths = huffman.code_lengths(np.array(counts))
    used = lengths[lengths >= 0]
    assert np.array_equal(lengths >= 0, np.array(counts) > 0)
    if len(used):
        assert sum(1 << (12 - int(length)) for length in used) == 1 << 12
        assert int((np.maximum(lengths, 0) * counts).sum()) == huffman_cost(counts)


def test_the_limit_of_12_bits_is_kept_at_the_least_cost() -> None:
    counts = [1]
    while len(counts) < 20:
        counts.append(sum(counts) + 1)  # Huffman's own code would have 19 bits
    lengths = huffman.code_lengths(np.array(counts))
    assert lengths.max() == 12
    assert sum(1 << (12 - int(length)) for length in lengths) == 1 << 12
    small = [1, 1, 2, 4, 8, 16]
    for limit in (3, 4, 5):
        best = min(
            sum(c * n for c, n in zip(small, choice, strict=True))
            for choice in itertools.product(range(1, limit + 1), repeat=len(small))
            if sum(2.0**-n for n in choice) <= 1
        )
        assert sum(c * n for c, n in zip(small, limited(small, limit), strict=True)) == best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=5), st.integers(3, 4))
def test_limited_codes_are_as_good_as_any(counts: list[int], limit: int) -> None:
    best = min(
        sum(c * n for c, n in zip(counts, choice, strict=True))
        for choice in itertools.product(range(1, limit + 1), repeat=len(counts))
        if sum(1 << (limit - n) for n in choice) <= 1 << limit
    )
    found = limited(sorted(counts), limit)
    assert sum(c * n for c, n in zip(sorted(counts), found, strict=True)) == best
    assert sum(1 << (limit - n) for n in found) == 1 << limit


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=60))
def test_code_words_are_in_order_and_no_prefix_of_another(counts: list[int]) -> None:
    lengths = huffman.code_lengths(np.array(counts))
    words = huffman.canonical_codes(lengths).tolist()
    texts = [
        format(word, f"0{length}b") if length else "" for word, length in zip(words, lengths.tolist(), strict=True)
    ]
    by_length = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    padded = [texts[i].ljust(12, "0") for i in by_length]
    assert padded == sorted(padded)
    assert not any(b.startswith(a) for a, b in itertools.pairwise(sorted(texts)))


def limited(counts: list[int], limit: int) -> list[int]:
    original = huffman.LONGEST
    huffman.LONGEST = limit
    try:
        return [int(length) for length in huffman._package_merge(np.array(counts))]
    finally:
        huffman.LONGEST = original


def test_a_full_alphabet_of_equal_counts_gets_12_bits_each() -> None:
    lengths = huffman.code_lengths(np.ones(4096, np.int64))
    assert set(lengths.tolist()) == {12}
    assert np.array_equal(huffman.decode_table(lengths) >> 4, np.arange(4096))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=100).filter(any))
def test_lengths_are_read_as_written(counts: list[int]) -> None:
    lengths = huffman.code_lengths(np.array(counts))
    head = BitWriter()
    huffman.write_lengths(head, lengths)
    assert head.length == huffman.written_size(lengths)
    assert np.array_equal(huffman.read_lengths(BitReader(head.to_bytes()), len(counts)), lengths)
    table, codes = huffman.decode_table(lengths), huffman.canonical_codes(lengths)
    for symbol in np.flatnonzero(lengths > 0).tolist():
        entry = int(table[int(codes[symbol]) << (int(lengths.max()) - int(lengths[symbol]))])
        assert (entry >> 4, entry & 15) == (symbol, lengths[symbol])


@pytest.mark.parametrize("lengths", [[1, 1, 1], [2, 1, 1], [13], [1, 2]])
def test_incomplete_and_overfull_codes_are_refused(lengths: list[int]) -> None:
    head = BitWriter()
    huffman.write_lengths(head, np.array(lengths))
    if lengths == [1, 1, 1]:  # complete after two symbols: the third is left for whoever reads next
        assert huffman.read_lengths(BitReader(head.to_bytes()), 3).tolist() == [1, 1, -1]
    else:
        with pytest.raises(CodecError):
            huffman.read_lengths(BitReader(head.to_bytes()), len(lengths))


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 12))))
def test_numbers_are_read_as_written(numbers: list[tuple[int, int]]) -> None:
    head = BitWriter()
    for value, order in numbers:
        head.signed(value, order)
    reader = BitReader(head.to_bytes())
    assert [reader.signed(order) for _, order in numbers] == [value for value, _ in numbers]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 64))))
def test_fields_are_gathered_as_placed(fields: list[tuple[int, int]]) -> None:
    lengths = np.array([length for _, length in fields], np.int64)
    values = np.array([value & ((1 << length) - 1) for value, length in fields], np.uint64)
    total = int(lengths.sum())
    data = bits.pack(values, lengths, total)
    assert len(data) == -(-total // 8)
    assert np.array_equal(bits.unpack(bits.words(data), 0, lengths), values)


@given(st.lists(st.one_of(st.integers(0, 600), st.integers(0, 2**64 - 1))), st.integers(1, 8))
def test_tokens_are_inverses(values: list[int], split: int) -> None:
    array = np.array(values, np.uint64)
    found, lengths, raw = tokens.split_tokens(array, split)
    assert found.max(initial=0) < tokens.token_count(split)
    assert np.array_equal(tokens.raw_length(found, split), lengths)
    assert np.array_equal(tokens.join_tokens(found, raw, split), array)
    assert np.array_equal(tokens.zigzag(tokens.unzigzag(array)), array)
    assert tokens.bit_length(array).tolist() == [value.bit_length() for value in values]
