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


COMMON = (
    ". weight bias _ conv 0 1 2 3 layer layers blocks block features norm bn fc head linear attn mlp proj out in "
    "depthwise pointwise stem embed running mean var gamma beta kernel ih hh l dense / 4 5 6 7 w b"
)


def is_number(part: bytes) -> bool:
    return re.fullmatch(rb"0|[1-9]\d{0,8}", part) is not None


def following_name(names: list[list[bytes]], back: int) -> list[bytes]:
    c, b = names[-back], names[-1]
    if back + 1 > len(names):
        return c
    a = names[-back - 1]
    if len(a) > 64 or len(b) > 64 or len(c) > 64:
        return c
    if len(a) != len(b):
        same = next(n for n in range(min(len(a), len(b)), -1, -1) if a[len(a) - n :] == b[len(b) - n :])
        head = a[: len(a) - same]
        return b[: len(b) - same] + c[len(head) :] if c[: len(head)] == head else c
    name = list(c)
    for place in range(min(len(c), len(b))):
        if a[place] != b[place] and all(is_number(name[place]) for name in (a, b, c)):
            total = int(c[place]) + int(b[place]) - int(a[place])
            name[place] = str(total).encode() if 0 <= total <= 999_999_999 else c[place]
        elif a[place] != b[place] and c[place] == a[place]:
            name[place] = b[place]
    return name


def following_shape(shapes: list[tuple[int, ...]], back: int) -> tuple[int, ...]:
    changes = {}
    for k in range(min(back, 8), 0, -1):
        if k + back <= len(shapes) and len(shapes[-k]) == len(shapes[-k - back]):
            for size, changed in zip(shapes[-k - back], shapes[-k], strict=True):
                changes[size] = changed
    return tuple(changes.get(size, size) for size in shapes[-back])


def read_directory(bits: Bits, typed: bool) -> list[tuple[str, tuple[int, ...], str]]:
    entries = []
    parts: list[bytes] = [part.encode() for part in COMMON.split()]
    ranks: list[int] = []
    sizes: list[int] = []
    types: list[int] = []
    names: list[list[bytes]] = []
    shapes: list[tuple[int, ...]] = []
    back = 1
    for _ in range(bits.number(4)):
        how = bits.number() if names else 1
        if how == 1:
            name = names[-1][: len(names[-1]) - bits.number()] if names else [][: bits.number()]
            name = name + [recent(bits, parts, lambda: spelled_part(bits)) for _ in range(bits.number(1))]
        else:
            back = how - 1 if how else back
            name = following_name(names, back)
        if how != 1 and bits.take(1):
            shape = following_shape(shapes, back)
        else:
            rank = recent(bits, ranks, bits.number)
            shape = tuple(recent(bits, sizes, lambda: bits.number(4)) for _ in range(rank))
        names.append(name)
        shapes.append(shape)
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
    return words_of({symbol: length for length, symbol in lengths})


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


def read_streams(bits: Bits, streams: list[tuple[int, dict[tuple[int, int], int]]]) -> list[list[int]]:
    """The symbols of each stream of (symbols, code), from their sizes on; what follows begins at a whole byte."""
    sizes = read_sizes(bits, streams)
    bits.align()
    result = []
    for (symbols, code), segments in zip(streams, sizes, strict=True):
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
        result.append(stream)
    bits.align()
    return result


def words_of(lengths: dict[int, int]) -> dict[tuple[int, int], int]:
    """(length, word) -> symbol, from symbol -> length."""
    words = {}
    word, before = 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
        word <<= length - before
        words[length, word] = symbol
        word, before = word + 1, length
    assert sum(Fraction(1, 1 << length) for length, _ in words) == 1
    return words


DIFFERENCES = words_of(dict(enumerate([1, 3, 4, 5, 5, 6, 6, 7, 7, 6, 6, 6, 5, 3])))


def matrix_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(rows, channels, taps)."""
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    cut = min(range(1, len(shape)), key=lambda i: (math.prod(shape[:i]) + math.prod(shape[i:]), i))
    return math.prod(shape[:cut]), shape[cut], math.prod(shape[cut + 1 :])


def width(total: int) -> int:
    return (total - 1).bit_length() if total else 0


def read_arrays(bits: Bits, shapes: list[tuple[int, ...]]) -> list[list[int]]:
    total, label_streams = bits.number(), bits.number()
    arrays: list[dict[str, Any]] = []
    waiting = list(shapes)
    while waiting:
        rows, channels, taps = matrix_of(waiting.pop(0))
        each: dict[str, Any] = {"rows": rows, "columns": channels * taps, "taps": taps, "by": (0, 0), "sets": []}
        each["base"], each["kind"] = bits.signed(), bits.number() if total else 1
        if each["kind"] in (0, 3, 5):
            each["code"] = bits.take(width(total))
        elif each["kind"] in (2, 4, 6):
            by = each["by"] = bits.take(1), bits.take(2)
            sizes = [rows] * by[0] + [[], [channels * taps], [channels], [channels, taps]][by[1]]
            each["sets"] = [(size, bits.take(1), bits.take(width(label_streams))) for size in sizes]
        if each["kind"] in (5, 6):
            waiting.insert(0, (channels * taps,))
        arrays.append(each)
    joined = [(bits.take(2) + 1, bits.number(3) + 1, read_code(bits)) for _ in range(label_streams)]
    ways = []
    for _ in range(total):
        base = bits.signed()
        mode, signed, split, extent = bits.number(1), bits.take(1), bits.take(3) + 1, bits.take(2) + 1
        radix = bits.number(2) + 1
        runs, symbols = (bits.number(2) + 1, bits.number(6)) if mode == 1 else (0, 0)
        alphabet = radix * runs if mode == 1 else radix**extent
        stride = [1, 2, radix, radix * radix][bits.take(2)]
        ways.append((mode, signed, split, extent, radix, symbols, base, alphabet, stride))
    labels = [sum(size for each in arrays for size, _, of in each["sets"] if of == s) for s in range(label_streams)]
    first = [(math.ceil(count / extent), code) for count, (extent, _, code) in zip(labels, joined, strict=True)]
    first += [(sum(way[7] for way in ways), DIFFERENCES)] if total else []
    streams = read_streams(bits, first)
    for number, (extent, radix, _) in enumerate(joined):
        streams[number] = [symbol // radix**place % radix for symbol in streams[number] for place in range(extent)]
        assert not any(streams[number][labels[number] :])
    codes = []
    for *_, alphabet, stride in ways:
        numbers: list[int] = []
        for index in range(alphabet):
            before = numbers[index - stride] if index >= stride else numbers[-1] if numbers else 4
            numbers.append((before + streams[-1].pop(0)) % 14)
        codes.append(words_of({symbol: number - 1 for symbol, number in enumerate(numbers) if number}))
    for each in arrays:
        read_second(bits, each, streams, total)
    sizes = [0] * total
    for each in arrays:
        for code in [each["code"]] * (each["rows"] * each["columns"]) if each["kind"] in (0, 3, 5) else each["order"]:
            sizes[code if isinstance(code, int) else code[0]] += 1
    lengths = [w[5] if w[0] == 1 else math.ceil(size / w[3]) for w, size in zip(ways, sizes, strict=True)]
    symbols_of = read_streams(bits, list(zip(lengths, codes, strict=True)))
    values = [read_sequence(bits, size, way, stream) for size, way, stream in zip(sizes, ways, symbols_of, strict=True)]
    assert len(bits.text) - bits.at < 8 and "1" not in bits.text[bits.at :]
    result = []
    waiting_arrays = list(arrays)
    while waiting_arrays:
        each = waiting_arrays.pop(0)
        matrix = matrix_values(each, values)
        if each["kind"] in (5, 6):
            template = array_of(waiting_arrays[0], matrix_values(waiting_arrays.pop(0), values))
            for use, line in zip(each["uses"], matrix, strict=True):
                line[:] = [value + use * other for value, other in zip(line, template, strict=True)]
        result.append(array_of(each, matrix))
    return result


def read_second(bits: Bits, each: dict[str, Any], streams: list[list[int]], total: int) -> None:
    """Labels, the sequence of each element in the order of elements, and negated lines."""
    rows, columns = each["rows"], each["columns"]
    sets = []
    for size, changes, stream in each["sets"]:
        symbols = [streams[stream].pop(0) for _ in range(size)]
        if changes:
            label, labels = 1, []
            for symbol in symbols:
                folded = symbol - 1
                label += (folded // 2 if folded % 2 == 0 else -(folded + 1) // 2) if symbol else 0
                labels.append(label if symbol else 0)
            symbols = labels
        sets.append(symbols)
    by_row, by_column = each["by"]
    row = sets[0] if by_row else [1] * rows
    if by_column == 0:
        column = [1] * columns
    elif by_column == 3:
        column = [c + t - 1 if c and t else 0 for c in sets[-2] for t in sets[-1]]
    else:
        column = [label for label in sets[-1] for _ in range(each["taps"] if by_column == 2 else 1)]
    if each["kind"] in (2, 4, 6):
        table = [bits.take(width(total))]
        for _ in range(max(sum(map(max, sets)) - len(sets), 0)):
            table.append(table[-1] + bits.signed())
        each["order"] = [
            (table[a + b - 2], i, j)
            for a in range(1, max(row) + 1)
            for b in range(1, max(column) + 1)
            for i in range(rows)
            if row[i] == a
            for j in range(columns)
            if column[j] == b
        ]
    elif each["kind"] in (0, 3, 5):
        each["order"] = [(each["code"], i, j) for i in range(rows) for j in range(columns)]
    else:
        each["order"] = []
    each["signs"], each["chained"], each["mirrored"] = [[1] * rows, [1] * columns], 0, 0
    if each["kind"] >= 3:
        each["mirrored"] = bits.number()
        each["chained"] = bits.take(1)
        for signs, labels in zip(each["signs"], (row, column), strict=True):
            if bits.take(1):
                for line, label in enumerate(labels):
                    if label or each["kind"] >= 5:
                        signs[line] = -1 if bits.take(1) else 1
    if each["kind"] >= 5:
        each["uses"] = [bits.take(1) for _ in range(rows)]


def matrix_values(each: dict[str, Any], values: list[list[int]]) -> list[list[int]]:
    matrix = [[0] * each["columns"] for _ in range(each["rows"])]
    for code, i, j in each["order"]:
        matrix[i][j] = values[code].pop(0)
    return matrix


def array_of(each: dict[str, Any], matrix: list[list[int]]) -> list[int]:
    for line in matrix if each["chained"] else []:
        sign = 1
        for j, value in enumerate(line):
            sign = -sign if value < 0 else sign
            line[j] = sign * abs(value)
    signed = [
        sign * other * value
        for sign, line in zip(each["signs"][0], matrix, strict=True)
        for other, value in zip(each["signs"][1], line, strict=True)
    ]
    if each["mirrored"]:
        length = each["taps"] if each["taps"] > 1 else each["columns"]
        for start in range(0, len(signed), length):
            for place in range(length):
                image = length - 1 - place if each["mirrored"] <= 2 else length - place
                if image < place:
                    signed[start + place] += signed[start + image] * (1 if each["mirrored"] in (1, 3) else -1)
    return [(each["base"] + value + 2**63) % 2**64 - 2**63 for value in signed]


def natural(bits: Bits, token: int, split: int) -> int:
    if token < 1 << split:
        return token
    octave, half = divmod(token - (1 << split), 2)
    raw = split + octave - 1
    return ((2 + half) << raw) + bits.take(raw)


def read_sequence(bits: Bits, size: int, way: tuple[int, ...], stream: list[int]) -> list[int]:
    mode, signed, split, extent, radix, _, base, *_ = way
    if mode == 0:
        tokens = [symbol // radix**place % radix for symbol in stream for place in range(extent)]
        assert not any(tokens[size:])
        found = [natural(bits, token, split) for token in tokens[:size]]
    else:
        gaps = [natural(bits, symbol // radix, extent) for symbol in stream]
        found = []
        for gap, symbol in zip(gaps, stream, strict=True):
            found += [0] * gap + [natural(bits, symbol % radix, split) + 1]
        found += [0] * (size - len(found))
    values = [f // 2 if f % 2 == 0 else -(f + 1) // 2 for f in found] if signed else found
    values = [value + base for value in values]
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
        bits.align()
        for place, levels in zip(group, read_arrays(bits, [entries[i][1] for i in group]), strict=True):
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


NAMES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["layer", "0", "1", "7", ".", "weight", "x", "ü"]), max_size=4).map("".join),
        st.lists(st.sampled_from([0, 1, 3, 8]), max_size=3),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(NAMES, st.integers(1, 4))
def test_reads_the_names_and_shapes_of_networks_like_the_real_one(
    block: list[tuple[str, list[int]]], repeat: int
) -> None:
    arrays = {f"{i}.{name}": np.zeros([s + i for s in shape], np.int8) for i in range(repeat) for name, shape in block}
    blob = encode_integers(arrays)
    found = reference_decode(blob)
    assert {name: (dtype, shape) for name, (dtype, shape, _) in found.items()} == {
        name: ("int8", array.shape) for name, array in arrays.items()
    }
    assert [(n, a.shape) for n, a in decode_integers(blob).items()] == [(n, a.shape) for n, a in arrays.items()]


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


def structured(seed: int, shape: tuple[int, ...], template: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Values as large as a number for each row times one for each column, some lines zero, signs in common."""
    source = np.random.default_rng(seed)
    rows, columns = shape[0], math.prod(shape[1:])
    row, column = (
        2.0 ** source.integers(-2, 4, size) * source.choice([-1, 1], size) * (source.random(size) > 0.2)
        for size in (rows, columns)
    )
    noise = source.normal(source.choice([0, 1.5]), 1, (rows, columns))
    values = np.rint(np.multiply.outer(row, column) * noise * source.choice([0.05, 1, 50]))
    if template:
        values = values // 16 + np.multiply.outer(source.random(rows) > 0.3, source.integers(-30, 30, columns))
    if not template and source.random() < 0.4:
        half = values.reshape(-1, columns if len(shape) == 2 else math.prod(shape[2:]))
        width, first, sign = half.shape[1], source.integers(2), source.choice([-1, 1])
        for place in range(width):
            image = width - 1 - place + first
            if image < place:
                half[:, place] = sign * half[:, image] + (source.random(len(half)) < 0.1)
    if source.random() < 0.3:
        values = np.abs(values) * np.sign(np.cumsum(source.normal(0, 1, (rows, columns)), axis=1))
    result: np.ndarray[Any, np.dtype[np.int64]] = values.astype(np.int64).reshape(shape)
    return result


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 40), st.integers(1, 30)),
            st.tuples(st.integers(1, 16), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3)),
            st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.integers(1, 12)),
        ),
        min_size=1, max_size=3,
    ),
    st.booleans(),
)  # fmt: skip
def test_reads_divided_arrays_like_the_real_one(seed: int, shapes: list[tuple[int, ...]], template: bool) -> None:
    arrays = {f"a{i}.w": structured(seed + i, shape, template) for i, shape in enumerate(shapes)}
    blob = encode_integers(arrays)
    assert all(np.array_equal(value, arrays[name]) for name, value in decode_integers(blob).items())
    found = reference_decode(blob)
    assert {n: values for n, (_, _, values) in found.items()} == {n: a.reshape(-1).tolist() for n, a in arrays.items()}
