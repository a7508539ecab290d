"""A second decoder of packed files and patches, written from docs/reference/format.md alone, without numpy.

It shares the reading of coded arrays with the other reference decoder, and nothing with the real one.
"""

from __future__ import annotations

import hashlib
import lzma
import math
import runpy
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sanderling.codec import decode_delta, make_patch, pack_file
from sanderling.codec.files import blocks, pack, patch, pieces, sections

from .test_codec_files import archive, model
from .test_codec_find import TFLITE, tflite_model
from .test_codec_patch import network, trained
from .test_codec_reference import Bits, read_arrays, recent, reference_decode

VECTORS = Path(__file__).parent.parent / "vectors"
GENERATOR = runpy.run_path(str(VECTORS / "generate.py"))
WIDTHS = [1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8, 1, 1, 8]
HALVES, VARINT = (12, 13), 14
BLOCK, GROUP = 1 << 22, 1 << 20


class Sections:
    """The parts of a payload, each after its size."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def next(self) -> bytes:
        size = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        self.at += size
        return self.data[self.at - size : self.at]


def read_table(bits: Bits) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    types: list[int] = []
    ranks: list[int] = []
    sizes: list[int] = []
    total, linked, end, old_end = bits.number(4), None, 0, 0
    linked = bits.take(1)
    for index in range(total):
        gap = bits.number(6)
        type = recent(bits, types, lambda: bits.number(2))
        shape = [recent(bits, sizes, lambda: bits.number(4)) for _ in range(recent(bits, ranks, bits.number))]
        count = math.prod(shape)
        size = (count + 1) // 2 if type in HALVES else count * WIDTHS[type]
        if type == VARINT:
            size = bits.number(8)
        link = bits.take(2) if linked else 0
        each = {"start": end + gap, "size": size, "type": type, "shape": shape, "link": link}
        if link in (1, 2):
            each["old"] = old_end + gap + bits.signed()
            old_end = each["old"] + size
        if link == 3:
            each["twin"] = table[index - 1 - bits.number()]["start"]
        table.append(each)
        end += gap + size
    return table


def symbols(each: dict[str, Any]) -> int:
    if each["type"] in HALVES:
        return 2 * int(each["size"])
    return int(each["size"]) // (1 if 8 <= each["type"] <= 11 or each["type"] == VARINT else WIDTHS[each["type"]])


def cut_pieces(each: dict[str, Any], group: int) -> list[dict[str, Any]]:
    if symbols(each) <= group or each["type"] == VARINT:
        return [each]
    shape = [each["size"], 2] if each["type"] in HALVES else each["shape"]
    per_item = WIDTHS[each["type"]] if 8 <= each["type"] <= 11 else 1
    lead = next(n for n in range(1, len(shape) + 1) if math.prod(shape[n:]) * per_item <= group)
    rows, row = math.prod(shape[:lead]), shape[lead:]
    most, row_bytes = group // (math.prod(row) * per_item), each["size"] // rows
    result = []
    for first in range(0, rows, most):
        taken = min(most, rows - first)
        piece = {**each, "start": each["start"] + first * row_bytes, "size": taken * row_bytes, "shape": [taken, *row]}
        if "old" in each:
            piece["old"] = each["old"] + first * row_bytes
        result.append(piece)
    return result


def expand(coded: bytes) -> bytes:
    if coded[0] == 1:
        return coded[1:]
    if coded[0] == 2:
        return zlib.decompress(coded[1:], -15)
    assert coded[0] == 3
    return lzma.decompress(coded[1:], lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 22}])


def read_block(coded: bytes, place: int, old_rest: bytes, size: int) -> bytes:
    if coded[0] != 4:
        return expand(coded)
    bits = Bits(coded[1:])
    copies = [(bits.number(4), bits.number(6), bits.signed()) for _ in range(bits.number(2))]
    bits.align()
    literals = expand(coded[1 + bits.at // 8 :])
    result, expected = b"", place
    for before, length, jump in copies:
        result += literals[:before]
        literals = literals[before:]
        source = expected + before + jump
        result += old_rest[source : source + length]
        expected = source + length
    assert len(result + literals) == size
    return result + literals


def ordered(bits: int, width: int) -> int:
    """A float's bits as a number in the order of values."""
    sign = 1 << (width - 1)
    return bits ^ (2 * sign - 1) if bits & sign else bits | sign


def unordered(number: int, width: int) -> int:
    sign = 1 << (width - 1)
    return number ^ sign if number & sign else number ^ (2 * sign - 1)


def read_group(coded: bytes, group: list[dict[str, Any]], old: bytes) -> list[bytes]:
    if coded[0] != 0:
        data = expand(coded)
        return [data[sum(p["size"] for p in group[:i]) :][: p["size"]] for i, p in enumerate(group)]
    bits = Bits(coded[1:])
    for piece in group:
        piece["form"] = bits.take(3)
        width = 1 if piece["type"] == VARINT else WIDTHS[piece["type"]]
        piece["planes"] = [bits.take(1) for _ in range(width)] if piece["form"] in (1, 5) else []
        if piece["form"] == 2:
            total = bits.number(4)
            palette, k = [bits.take(8 * width)], bits.take(6)
            for _ in range(total):
                palette.append(palette[-1] + bits.number(k) + 1)
            piece["palette"] = palette
        if piece["form"] == 0 and piece["type"] == VARINT:
            piece["count"] = bits.number(8)
    bits.align()
    at = 1 + bits.at // 8
    shapes: list[list[int]] = []
    for piece in group:
        piece["kept"] = []
        items = piece["size"] if piece["type"] == VARINT else piece["size"] // WIDTHS[piece["type"]]
        for kept in piece["planes"]:
            if kept:
                piece["kept"].append(coded[at : at + items])
                at += items
        flat = [items] if piece["type"] in (*HALVES, VARINT) else piece["shape"]
        if piece["form"] in (1, 5):
            shapes += [flat] * piece["planes"].count(0)
        elif piece["form"] == 0 and piece["type"] == VARINT:
            shapes.append(piece["shape"] if math.prod(piece["shape"]) == piece["count"] else [piece["count"]])
        elif piece["form"] != 3:
            shapes.append(piece["shape"])
    arrays = iter(read_arrays(Bits(coded[at:]), [tuple(shape) for shape in shapes]) if shapes else [])
    return [restore(piece, arrays, old) for piece in group]


def restore(piece: dict[str, Any], arrays: Any, old: bytes) -> bytes:
    form, type = piece["form"], piece["type"]
    before = old[piece["old"] :][: piece["size"]] if "old" in piece else b""
    bytes_each = 1 if type == VARINT else WIDTHS[type]
    width = 8 * bytes_each
    floating = 8 <= type <= 11
    old_items = [int.from_bytes(before[i : i + bytes_each], "little") for i in range(0, len(before), bytes_each)]
    if form == 3:
        return before
    if form in (1, 5):
        kept = iter(piece["kept"])
        planes = [next(kept) if flag else next(arrays) for flag in piece["planes"]]
        items = [sum(plane[i] << (8 * p) for p, plane in enumerate(planes)) for i in range(len(planes[0]))]
        if floating:
            items = [item >> 1 | (item & 1) << (width - 1) for item in items]
        if form == 5:
            items = [item ^ other for item, other in zip(items, old_items, strict=True)]
        return b"".join(item.to_bytes(bytes_each, "little") for item in items)
    values: list[int] = next(arrays)
    if form == 2:
        palette = piece["palette"]
        zero = min(sum(entry < 1 << (width - 1) for entry in palette), len(palette) - 1)
        items = [unordered(palette[value + zero], width) for value in values]
    elif form == 4:
        turn: Callable[[int, int], int] = ordered if floating else lambda item, _: item
        back: Callable[[int, int], int] = unordered if floating else lambda item, _: item
        items = [
            back((turn(item, width) + value) % (1 << width), width)
            for item, value in zip(old_items, values, strict=True)
        ]
    elif type in HALVES:
        halves = [value & 15 for value in values] + [0]
        return bytes(halves[i] | halves[i + 1] << 4 for i in range(0, 2 * piece["size"], 2))
    elif type == VARINT:
        result = bytearray()
        for value in values:
            rest = value % 2**64
            while rest > 127:
                result.append(rest & 127 | 128)
                rest >>= 7
            result.append(rest)
        return bytes(result)
    else:
        items = [value % (1 << width) for value in values]
    return b"".join(item.to_bytes(bytes_each, "little") for item in items)


def reference_file(blob: bytes, old: bytes = b"", block: int = BLOCK, group: int = GROUP) -> tuple[str, bytes]:
    """(name, bytes) of the file in a packed file or patch."""
    assert blob[:4] == b"SNDL" and blob[4] in (0x22, 0x23)
    assert zlib.crc32(blob[:-4]) == int.from_bytes(blob[-4:], "little")
    parts = Sections(blob[5:-4])
    bits = Bits(parts.next())
    name = bytes(bits.take(8) for _ in range(bits.take(8))).decode()
    size = bits.number(16)
    digest = None
    if blob[4] == 0x23:
        assert bits.number(16) == len(old)
        assert bits.take(128).to_bytes(16, "big") == hashlib.sha256(old).digest()[:16]
        digest = bits.take(128).to_bytes(16, "big")
    table = read_table(bits)
    bits.align()
    lossy: Any = iter(())
    if any(each["link"] == 2 for each in table):
        lossy = iter(reference_decode(parts.next()).values())
    linked = sorted((each["old"], each["size"]) for each in table if "old" in each)
    compared = {place for start, length in linked for place in range(start, start + length)}
    old_rest = bytes(byte for place, byte in enumerate(old) if place not in compared)

    groups: list[list[dict[str, Any]]] = []
    room = 0
    for each in table:
        for piece in cut_pieces(each, group) if each["link"] < 2 else []:
            if not groups or symbols(piece) > room:
                groups.append([])
                room = group
            groups[-1].append(piece)
            room -= symbols(piece)
    rest_size = size - sum(each["size"] for each in table)
    rest, blocks_read, ready, result = b"", 0, list[bytes](), b""
    coming = iter(groups)
    for each in [*table, {"start": size, "size": 0, "link": 3, "twin": 0}]:
        gap = each["start"] - len(result)
        while len(rest) < gap:
            place = blocks_read * block
            rest += read_block(parts.next(), place, old_rest, min(block, rest_size - place))
            blocks_read += 1
        result, rest = result + rest[:gap], rest[gap:]
        if each["link"] == 3:
            result += result[each["twin"] :][: each["size"]]
        elif each["link"] == 2:
            values = next(lossy)[2]
            before = struct.unpack(f"<{len(values)}f", old[each["old"] :][: each["size"]])
            for value, change in zip(before, values, strict=True):
                result += struct.pack("<f", value + change)  # doubles: rounded once, as a sum of float32 is
        else:
            for _ in cut_pieces(each, group):
                if not ready:
                    ready = read_group(parts.next(), next(coming), old)
                result += ready.pop(0)
    assert parts.at == len(parts.data) and len(result) == size
    assert digest is None or hashlib.sha256(result).digest()[:16] == digest
    return name, result


def test_reads_the_golden_blobs() -> None:
    data, changed = GENERATOR["weights_file"](), GENERATOR["weights_file"](3)
    assert reference_file((VECTORS / "file-v2.sndl").read_bytes()) == ("weights.bin", data)
    assert reference_file((VECTORS / "patch-v2.sndl").read_bytes(), data) == ("weights.bin", changed)


@pytest.mark.parametrize("make", [model, archive, lambda: tflite_model(TFLITE), lambda: b"", lambda: b"text " * 99])
def test_reads_packed_files(make: Callable[[], bytes]) -> None:
    assert reference_file(pack_file(make(), "f")) == ("f", make())


@pytest.mark.parametrize("quality", [None, 0.9])
@pytest.mark.parametrize(("make", "seed"), [(model, 1), (network, 1), (network, 2)])
def test_reads_patches(make: Callable[[], bytes], seed: int, quality: float | None) -> None:
    old, new = make(), trained(make(), 1e-3, seed)
    name, found = reference_file(make_patch(old, new, "n", quality), old)
    assert name == "n" and (quality is not None or found == new)
    for other in (b"", archive(), model(4)):
        assert reference_file(make_patch(other, new, "n"), other) == ("n", new)


def test_reads_files_of_several_groups_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pieces, pack, patch):
        monkeypatch.setattr(module, "GROUP_SYMBOLS", 900)
    monkeypatch.setattr(sections, "BLOCK", 500)
    monkeypatch.setattr(blocks, "BLOCK", 500)
    old, new = model(), trained(model(), 1e-3)
    assert reference_file(pack_file(old, "n"), block=500, group=900) == ("n", old)
    assert reference_file(make_patch(old, new, "n"), old, 500, 900) == ("n", new)


def test_a_delta_in_a_patch_is_a_blob_like_any_other() -> None:
    blob = make_patch(network(), trained(network(), 1e-2), "n", 0.9)
    parts = Sections(blob[5:-4])
    parts.next()
    assert list(decode_delta(parts.next())) == ["0", "1", "2", "3", "4"]
