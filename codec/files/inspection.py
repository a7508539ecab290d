"""What a model or a coded file consists of, tensor by tensor: what `sanderling inspect` shows.

Tensors of a group share codes, so what one of them takes is not written anywhere: each is coded by itself, and the
group's bytes are divided in proportion. So rows add up to the size of the blob.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .. import container, delta, directory, groups, integers
from ..coding import arrays as coding
from ..coding.bits import BitReader
from ..coding.summary import summary
from ..container import FRONT, MAGIC, Kind
from ..limits import CodecLimits
from . import forms, layout, sections
from .find import find, format_name
from .forms import Form, Parts
from .pack import FileOutput, pack_stream, read_name, unpack_stream
from .pieces import Link, Range
from .source import Source
from .stream import BlobReader
from .tensors import Tensor, Type

Array = npt.NDArray[Any]

#: Letters of a name that a table shows.
_WIDEST = 48


@dataclass
class Row:
    """A tensor. Bits are per item; None where they are not known."""

    name: str
    shape: tuple[int, ...]
    type: str
    items: int
    form: str
    mode: str = ""
    zeros: int | None = None
    entropy: float | None = None
    coded: float | None = None


@dataclass
class Inspection:
    """All of a file. `size` is what was looked at, `plain` what it stands for, `coded` what it takes or would take."""

    kind: str
    size: int
    plain: int
    coded: int
    rows: list[Row] = field(default_factory=list)
    #: What is no tensor, in words, and what it takes.
    others: list[tuple[str, int]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": self.kind, "bytes": self.size, "plain_bytes": self.plain, "coded_bytes": self.coded,
            "tensors": [
                {"name": row.name, "shape": list(row.shape), "type": row.type, "items": row.items, "zeros": row.zeros,
                 "entropy": _rounded(row.entropy), "coded": _rounded(row.coded), "form": row.form, "mode": row.mode}
                for row in self.rows
            ],
            "others": [{"what": what, "bytes": size} for what, size in self.others],
        }  # fmt: skip

    def as_text(self, name: str) -> str:
        """A table."""
        table = [("tensor", "shape", "type", "items", "zeros %", "entropy", "coded", "form", "mode")]
        for row in self.rows:
            zeros = "-" if row.zeros is None or not row.items else f"{100 * row.zeros / row.items:.1f}"
            table.append(
                (_short(row.name), "x".join(map(str, row.shape)) or "scalar", row.type, f"{row.items:,}", zeros,
                 _number(row.entropy), _number(row.coded), row.form, row.mode)
            )  # fmt: skip
        items = sum(row.items for row in self.rows)
        known = [(row.items, row.coded) for row in self.rows if row.coded is not None]
        bits = sum(count * coded for count, coded in known) / max(1, sum(count for count, _ in known))
        table.append(
            ("all", f"{len(self.rows)} tensors", "", f"{items:,}", "", "", _number(bits if known else None), "", "")
        )
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        left = (0, 1, 2, 7, 8)
        lines = [
            "  ".join(
                cell.ljust(width) if column in left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        lines += [f"{what}: {size:,} bytes" for what, size in self.others]
        share = f"{100 * self.coded / max(1, self.plain):.1f} %"
        takes = "would pack into" if self.coded != self.size else "packed into"
        lines.append(f"{name}: {self.kind}; {self.plain:,} bytes {takes} {self.coded:,} ({share})")
        return "\n".join(lines)


@dataclass
class _Coded:
    """What is known of the pieces of a tensor."""

    bits: float = 0.0
    forms: dict[str, None] = field(default_factory=dict)
    modes: dict[str, None] = field(default_factory=dict)


def inspect_file(file: BinaryIO, *, limits: CodecLimits) -> Inspection:
    """Look at an open file. Raises `CodecError` for a blob that is damaged; any other file is taken for a model."""
    source = Source(file)
    start = source.read(0, min(FRONT, source.size))
    if start[: len(MAGIC)] != MAGIC:
        with tempfile.TemporaryFile() as packed:
            size = pack_stream(file, "model", packed, limits=limits)
            found = _packed(packed, source, limits)
        what = f"{format_name(source)} model" if found.rows else "no tensors known here"
        return Inspection(what, source.size, source.size, size, found.rows, found.others)
    kind = container.check_front(start, source.size, None, limits)
    if kind is Kind.FILE:
        with tempfile.TemporaryFile() as plain:
            name = unpack_stream(file, FileOutput(plain), limits=limits)
            found = _packed(file, Source(plain), limits)
        found.kind = f"packed file {name!r}"
        return found
    if kind is Kind.PATCH:
        return _patch(file, limits)
    blob = source.read(0, source.size)
    return _arrays(blob, kind, limits)


def _arrays(blob: bytes, kind: Kind, limits: CodecLimits) -> Inspection:
    """Integers or a delta."""
    payload = container.unwrap(blob, kind, limits)
    head = BitReader(payload)
    entries = directory.read(head, limits, typed=kind is Kind.INTEGERS)
    members = list(groups.cut(entries, lambda entry: entry.count))
    parts = list(groups.split(payload, head.align(), len(members)))
    values = integers.iterate_integers(blob, limits=limits) if kind is Kind.INTEGERS else None
    found = Inspection(kind.name.lower(), len(blob), sum(e.count * e.dtype.itemsize for e in entries), len(blob))
    rows: dict[str, Row] = {e.name: Row(e.name, e.shape, str(e.dtype), 0, "empty") for e in entries}
    for group, data in zip(members, parts, strict=True):
        if values is not None:
            found_arrays: list[Array] = []
            while len(found_arrays) < len(group):
                array = next(values)[1]
                found_arrays += [array] if array.size else []
            words = ["integers"] * len(group)
        else:
            decoded = delta._decode_group(data, group, limits)
            found_arrays = [levels.reshape(e.shape) for e, (levels, _) in zip(group, decoded, strict=True)]
            words = [f"levels of {_step(number)}" for _, number in decoded]
        alone = [_alone([array]) for array in found_arrays]
        bits = _divided(8 * len(data), [cost for cost, _ in alone])
        for entry, array, form, (_, mode), share in zip(group, found_arrays, words, alone, bits, strict=True):
            rows[entry.name] = Row(
                entry.name, entry.shape, str(entry.dtype), entry.count, form, mode,
                int(np.count_nonzero(array == 0)), _entropy(array), share / entry.count,
            )  # fmt: skip
    found.rows = list(rows.values())
    found.others = [("frame and directory", len(blob) - sum(map(len, parts)))]
    return found


def _packed(packed: BinaryIO, plain: Source, limits: CodecLimits) -> Inspection:
    """A packed file, whose bytes are in `plain`."""
    blob = BlobReader(packed, Kind.FILE, limits, verified=True)
    first = blob.section()
    head = BitReader(first)
    read_name(head)
    size = head.number(16)
    ranges = layout.read_table(head, size, 0, limits)
    coded: dict[int, _Coded] = {}
    starts = [item.start for item in ranges]
    general = 0
    for step in sections.order(size, ranges):
        section = blob.section()
        if isinstance(step, tuple):
            general += len(section)
            continue
        chosen = [forms.choose(piece, plain.read(piece.start, piece.size), None) for piece in step]
        alone = [_alone(parts.arrays) for parts in chosen]
        costs = [8 * len(parts.raw) + cost for parts, (cost, _) in zip(chosen, alone, strict=True)]
        for piece, parts, (_, mode), bits in zip(step, chosen, alone, _divided(8 * len(section), costs), strict=True):
            start = starts[bisect_right(starts, piece.start) - 1]
            each = coded.setdefault(start, _Coded())
            each.bits += bits
            each.forms[_form(parts) if section[0] == 0 else "general"] = None
            each.modes[mode if section[0] == 0 else ""] = None
    by_start = {item.start: item for item in ranges}
    rows = [_row(plain, tensor, by_start.get(tensor.start), coded) for tensor in find(plain, 1)]
    others = [("all else, by general compression", general)]
    others.append(("frame and table", blob.size - general - int(sum(each.bits for each in coded.values())) // 8))
    return Inspection("packed file", blob.size, size, blob.size, rows, others)


def _row(plain: Source, tensor: Tensor, item: Range | None, coded: dict[int, _Coded]) -> Row:
    array = _items(plain, tensor)
    row = Row(tensor.name, tensor.shape, tensor.type.name.lower(), array.size, "general")
    row.zeros, row.entropy = int(np.count_nonzero(array == 0)), _entropy(array)
    if item is not None and item.link is Link.TWIN:
        row.form, row.coded = "twin", 0.0
    elif item is not None:
        each = coded[item.start]
        row.form, row.coded = ", ".join(each.forms), each.bits / max(1, array.size)
        row.mode = next(iter(each.modes)) + (", ..." if len(each.modes) > 1 else "")
    return row


def _patch(file: BinaryIO, limits: CodecLimits) -> Inspection:
    blob = BlobReader(file, Kind.PATCH, limits)
    head = BitReader(blob.section())
    name = read_name(head)
    size, old_size = head.number(16), head.number(16)
    digests = [head.bits(128).to_bytes(16, "big").hex() for _ in range(2)]
    ranges = layout.read_table(head, size, old_size, limits)
    words = {Link.NONE: "new", Link.OLD: "compared", Link.LOSSY: "about", Link.TWIN: "twin"}
    rows = [Row(f"at byte {r.start}", r.shape, r.type.name.lower(), _count(r), words[r.link]) for r in ranges]
    exact = general = tensors = 0
    if any(item.link is Link.LOSSY for item in ranges):
        changes = _arrays(blob.section(limits.blob_bytes), Kind.DELTA, limits)
        tensors = changes.size - sum(part for _, part in changes.others)
        for row, inner in zip((row for row in rows if row.form == "about"), changes.rows, strict=True):
            row.zeros, row.entropy, row.coded, row.mode = inner.zeros, inner.entropy, inner.coded, inner.mode
            row.form = f"about, {inner.form}"
    for step in sections.order(size, ranges):
        if isinstance(step, tuple):
            general += len(blob.section())
        else:
            exact += len(blob.section())
    others = [("tensors, exactly", exact), ("all else, exactly", general)]
    others.append(("frame and tables", blob.size - exact - general - tensors))
    kind = f"changes to {name!r} from a file of {old_size:,} bytes with SHA-256 {digests[0]}..."
    return Inspection(kind, blob.size, size, blob.size, rows, others)


def _items(plain: Source, tensor: Tensor) -> Array:
    """The items of a tensor as integers: floats as their bits, with one zero."""
    data = plain.read(tensor.start, tensor.size)
    if tensor.type.floating:
        words = np.frombuffer(data, f"<u{tensor.type.width}")
        return np.where(words << 1 == 0, words.dtype.type(0), words)
    parts = forms._values(Range(0, tensor.size, tensor.type, tensor.shape), data)
    return parts.arrays[0] if parts.form is Form.VALUES else np.frombuffer(data, np.uint8)


def _count(item: Range) -> int:
    return item.size if item.type is Type.VARINT else int(np.prod(item.shape, dtype=np.int64))


def _form(parts: Parts) -> str:
    if parts.form is Form.PALETTE:
        return f"palette of {len(parts.palette)}"
    if parts.form is Form.PLANES:
        return f"planes, {sum(parts.planes)} of {len(parts.planes)} plain"
    return "integers"


def _alone(coded: Sequence[Array]) -> tuple[int, str]:
    """The bits of arrays in a group of their own, and how the last of them is coded then."""
    if not coded:
        return 0, ""
    return 8 * len(coding.encode(coded)), summary(coded[-1].astype(np.int64))


def _divided(bits: int, costs: Sequence[int]) -> list[float]:
    total = max(1, sum(costs))
    return [bits * cost / total for cost in costs]


def _entropy(array: Array) -> float:
    counts = np.unique(array, return_counts=True)[1]
    return max(0.0, float(np.log2(array.size) - (counts * np.log2(counts)).sum() / array.size) if array.size else 0.0)


def _step(number: int) -> str:
    return f"{(8 + number % 8) * 2.0 ** (number // 8):.3g}"


def _short(name: str) -> str:
    name = "".join(c if c.isprintable() else "?" for c in name)
    return (name if len(name) <= _WIDEST else f"{name[:16]}...{name[19 - _WIDEST :]}") or "(no name)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
