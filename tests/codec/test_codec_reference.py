"""A second decoder, written from docs/reference/format.md alone: one bit at a time, a dictionary for each code, no
numpy.

It must read the golden blobs and fresh ones exactly as the real decoder does. It shares nothing with it, so a
mistake in the one does not hide in the other.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.codec import decode_delta, decode_integers, encode_integers

VECTORS = Path(__file__).parent.parent / "vectors"
TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]


class Bits:
    """Bits of bytes, the most significant first."""

    def __init__(self, data: bytes) -> None:
        self.text = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def take(self, count: int) -> int:
        text = self.text[self.at : self.at + count]
        assert len(text) == count
        self.at += count
        return int(text or "0", 2)

    def number(self, order: int = 0) -> int:
        zeros = 0
        while self.take(1) == 0:
            zeros += 1
        rest = zeros + order
        return ((1 << rest) | self.take(rest)) - (1 << order)

    def signed(self, order: int = 0) -> int:
        folded = self.number(order)
        return folded // 2 if folded % 2 == 0 else -(folded + 1) // 2

    def align(self) -> None:
        while self.at % 8:
            assert self.take(1) == 0


def recent(bits: Bits, items: list[Any], spelled: Callable[[], Any]) -> Any:
    place = bits.number()
    item = items.pop(place) if place < len(items) else spelled()
    items.insert(0, item)
    del items[256:]
    return item


def spelled_part(bits: Bits) -> bytes:
    if bits.take(1) == 0:
        return bytes(97 + bits.take(5) for _ in range(bits.number(2)))
    if bits.take(1) == 0:
        return str(bits.number(2)).encode()
    return bytes(bits.take(8) for _ in range(bits.number()))


def read_directory(bits: Bits, typed: bool) -> list[tuple[str, tuple[int, ...], str]]:
    entries = []
    parts: list[bytes] = []
    ranks: list[int] = []
    sizes: list[int] = []
    types: list[int] = []
    name: list[bytes] = []
    for _ in range(bits.number(4)):
        name = name[: len(name) - bits.number()]
        name = name + [recent(bits, parts, lambda: spelled_part(bits)) for _ in range(bits.number(1))]
        rank = recent(bits, ranks, bits.number)
        shape = tuple(recent(bits, sizes, lambda: bits.number(4)) for _ in range(rank))
        dtype = TYPES[recent(bits, types, lambda: bits.number(2))] if typed else "float32"
        entries.append((b"".join(name).decode(), shape, dtype))
    return entries


def read_code(bits: Bits) -> dict[tuple[int, int], int]:
    """(length, word) -> symbol."""
    lengths: list[tuple[int, int]] = []
    symbol, length, room = -1, 3, Fraction(1)
    while room:
        symbol += bits.number() + 1
        length += bits.signed()
        lengths.append((length, symbol))
        room -= Fraction(1, 1 << length)
    words = {}
    word, before = 0, 0
    for length, symbol in sorted(lengths):
        word <<= length - before
        words[length, word] = symbol
        word, before = word + 1, length
    return words


def read_symbol(bits: Bits, code: dict[tuple[int, int], int]) -> int:
    length, word = 0, 0
    while (length, word) not in code:
        length, word = length + 1, word << 1 | bits.take(1)
    return code[length, word]


def read_sizes(bits: Bits, streams: list[tuple[int, dict[tuple[int, int], int]]]) -> list[list[int]]:
    """The sizes of the segments of each stream of (symbols, code)."""
    result: list[list[int]] = []
    longest = 0
    for symbols, code in streams:
        result.append([])
        if not symbols or (0, 0) in code:
            continue
        longest = longest or 2 ** (8 + bits.take(2))
        pairs = math.ceil(symbols / (2 * longest))
        total = math.floor(symbols * sum(Fraction(length, 1 << length) for length, _ in code))
        guess = total // pairs
        digits = len(f"{guess:b}") if guess else 0
        mean = guess + bits.signed(max(digits // 2 - 1, digits - 6, 0))
        order = bits.take(4) if pairs > 1 else 0
        result[-1] = [mean + bits.signed(order) for _ in range(pairs)] if pairs > 1 else [mean]
    return result


def read_arrays(bits: Bits, counts: list[int]) -> list[list[int]]:
    assert bits.number() == 0
    total = bits.number()
    owners = [bits.take((total - 1).bit_length() if total else 0) for _ in counts]
    sequences = []
    for index in range(total):
        size = sum(count for count, owner in zip(counts, owners, strict=True) if owner == index)
        base, mode, split, extent, radix = (
            bits.signed(),
            bits.number(1),
            bits.take(3) + 1,
            bits.take(2) + 1,
            bits.number(2) + 1,
        )
        if mode == 1:
            bits.number(2)
            symbols = bits.number(6)
        else:
            symbols = math.ceil(size / extent)
        code = read_code(bits) if symbols else {}
        sequences.append((size, base, mode, split, extent, radix, symbols, code))
    sizes = read_sizes(bits, [(s[6], s[7]) for s in sequences])
    bits.align()
    streams = []
    for (*_, symbols, code), segments in zip(sequences, sizes, strict=True):
        stream = [code.get((0, 0), 0)] * symbols
        lanes = 2 * len(segments)
        for index, size in enumerate(segments):
            text = bits.text[bits.at : bits.at + size]
            forward, backward = Bits(b""), Bits(b"")
            forward.text, backward.text = text, text[::-1]
            for lane, half in ((index, forward), (index + lanes // 2, backward)):
                for place in range(lane, symbols, lanes):
                    stream[place] = read_symbol(half, code)
            assert forward.at + backward.at == len(text) == size
            bits.at += size
        streams.append(stream)
    bits.align()
    values = [read_sequence(bits, s, stream) for s, stream in zip(sequences, streams, strict=True)]
    assert len(bits.text) - bits.at < 8
    result = []
    for count, owner in zip(counts, owners, strict=True):
        result.append(values[owner][:count])
        del values[owner][:count]
    return result


def natural(bits: Bits, token: int, split: int) -> int:
    if token < 1 << split:
        return token
    octave, half = divmod(token - (1 << split), 2)
    raw = split + octave - 1
    return ((2 + half) << raw) + bits.take(raw)


def read_sequence(bits: Bits, sequence: tuple[Any, ...], stream: list[int]) -> list[int]:
    size, base, mode, split, extent, radix, _, _ = sequence
    if mode == 0:
        tokens = [symbol // radix**place % radix for symbol in stream for place in range(extent)]
        folded = [natural(bits, token, split) for token in tokens[:size]]
    else:
        gaps = [natural(bits, symbol // radix, extent) for symbol in stream]
        folded = []
        for gap, symbol in zip(gaps, stream, strict=True):
            folded += [0] * gap + [natural(bits, symbol % radix, split) + 1]
        folded += [0] * (size - len(folded))
    values = [base + (f // 2 if f % 2 == 0 else -(f + 1) // 2) for f in folded]
    return [(value + 2**63) % 2**64 - 2**63 for value in values]


def cut(counts: list[int]) -> list[list[int]]:
    """The places of the arrays of each group."""
    groups: list[list[int]] = []
    room = 0
    for place, count in enumerate(counts):
        if count == 0:
            continue
        if not groups or count > room:
            groups.append([])
            room = 2**20
        groups[-1].append(place)
        room -= count
    return groups


def reference_decode(blob: bytes) -> dict[str, tuple[str, tuple[int, ...], list[float]]]:
    """name -> (type, shape, flat values)."""
    assert blob[:4] == b"SNDL" and blob[4] >> 4 == 2
    assert zlib.crc32(blob[:-4]) == int.from_bytes(blob[-4:], "little")
    bits = Bits(blob[5:-4])
    delta = blob[4] & 15 == 1
    entries = read_directory(bits, typed=not delta)
    bits.align()
    flat: list[list[float]] = [[] for _ in entries]
    payload, at = blob[5:-4], bits.at // 8
    groups = cut([math.prod(shape) for _, shape, _ in entries])
    for index, group in enumerate(groups):
        size = len(payload) - at
        if index < len(groups) - 1:
            size = shift = 0
            while True:
                at += 1
                size |= (payload[at - 1] & 127) << shift
                shift += 7
                if payload[at - 1] < 128:
                    break
        bits = Bits(payload[at : at + size])
        at += size
        steps, step = [], 0
        for _ in group if delta else []:
            step += bits.signed(2)
            steps.append((8 + step % 8) * 2.0 ** (step // 8))
        for place, levels in zip(group, read_arrays(bits, [math.prod(entries[i][1]) for i in group]), strict=True):
            flat[place] = [level * steps[group.index(place)] for level in levels] if delta else list(levels)
    assert at == len(payload)
    result: dict[str, tuple[str, tuple[int, ...], list[float]]] = {}
    for (name, shape, dtype), values in zip(entries, flat, strict=True):
        result[name] = (dtype, shape, [v % 2**64 for v in values] if dtype == "uint64" else values)
    return result


@pytest.mark.parametrize("path", sorted(VECTORS.glob("[id]*-v2.sndl")), ids=lambda path: path.stem)
def test_reads_the_golden_blobs_like_the_real_one(path: Path) -> None:
    blob = path.read_bytes()
    real: dict[str, Any] = decode_delta(blob) if path.name.startswith("delta") else decode_integers(blob)
    found = reference_decode(blob)
    assert list(found) == list(real)
    for name, (dtype, shape, values) in found.items():
        assert (real[name].dtype, real[name].shape) == (np.dtype(dtype), shape)
        assert real[name].reshape(-1).tolist() == values


def test_there_are_golden_blobs_of_both_kinds_and_all_modes() -> None:
    names = {re.sub(r"-v2$", "", path.stem) for path in VECTORS.glob("*.sndl")}
    assert {"integers-dense", "integers-tuples", "integers-runs", "integers-lanes", "delta-0", "delta-1"} <= names


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(st.just(0), st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1)), max_size=40), max_size=4
    ),
    st.integers(1, 30),
)
def test_reads_fresh_blobs_like_the_real_one(lists: list[list[int]], repeat: int) -> None:
    arrays = {f"a{index}.w": np.array(values * repeat, np.int64) for index, values in enumerate(lists)}
    found = reference_decode(encode_integers(arrays))
    assert {name: values for name, (_, _, values) in found.items()} == {n: a.tolist() for n, a in arrays.items()}
