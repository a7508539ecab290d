"""Files packed without loss: what is known to be weights through our coder, all else through general ones.

The table says where tensors are, then come the sections (`sections.py`). Whatever is done better by a general coder
is left to it, block by block, so that a packed file is never larger than a deflated one plus a few bytes. A tensor
that is in the file twice is coded once.

::

    section: name, size, table      (bits; see the format's reference page)
    sections: blocks of the rest, groups of tensors
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, Protocol

from ..coding.bits import BitReader, BitWriter
from ..container import Kind
from ..errors import CodecError
from ..limits import DEFAULT_LIMITS, CodecLimits
from . import forms, general, layout, protobuf, sections
from .find import find
from .pieces import GROUP_SYMBOLS, Link, Range
from .source import Source
from .stream import BlobReader, BlobWriter
from .tensors import Tensor, Type

_LONGEST_NAME = 255
#: Bytes of a tensor by which it is judged whether a general coder does better: it is to take at most so many percent,
#: and is tried at all if deflate takes at most so many.
_SAMPLE, _BETTER, _LIKELY = 1 << 18, 90, 102
#: Bytes from which on a tensor that repeats another is looked for.
_SMALLEST_TWIN = 256
_READ = 1 << 20


class Output(Protocol):
    """Where a file is written to, and read back from while it is."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""

    def read_back(self, at: int, size: int) -> bytes:
        """Bytes that were written."""


class FileOutput:
    """A file that is open for writing and reading, from its place on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._first = self._end = file.tell()

    def write(self, data: bytes, /) -> None:
        """Append bytes."""
        self._file.seek(self._end)
        self._file.write(data)
        self._end += len(data)

    def read_back(self, at: int, size: int) -> bytes:
        """Bytes that were written."""
        self._file.seek(self._first + at)
        return self._file.read(size)


def pack_file(data: bytes, name: str, *, limits: CodecLimits = DEFAULT_LIMITS) -> bytes:
    """The blob of a file; `unpack_file` gives back the same bytes and the name (without folders).

    Raises `CodecError` for a name that is empty, longer than 255 bytes or has a folder, and a file beyond `limits`.
    """
    result = io.BytesIO()
    pack_stream(io.BytesIO(data), name, result, limits=limits)
    return result.getvalue()


def unpack_file(blob: bytes, *, limits: CodecLimits = DEFAULT_LIMITS) -> tuple[str, bytes]:
    """(name, bytes) of the file in a blob. Raises `CodecError` for any bytes that hold no file, within `limits`."""
    result = io.BytesIO()
    name = unpack_stream(io.BytesIO(bytes(blob)), FileOutput(result), limits=limits, largest=limits.decoded_bytes)
    return name, result.getvalue()


def pack_stream(file: BinaryIO, name: str, into: BinaryIO, *, limits: CodecLimits = DEFAULT_LIMITS) -> int:
    """Pack an open file into another, piece by piece; returns the size of the blob. Raises as `pack_file` does."""
    check_name(name)
    source = Source(file)
    if source.size > limits.file_bytes:
        raise CodecError(
            f"file {name!r} of {source.size} bytes cannot be packed, at most {limits.file_bytes} are: "
            "raise file_bytes of CodecLimits"
        )
    ranges = twins(source, worthwhile(source, find(source)))
    head = BitWriter()
    write_name(head, name)
    head.number(source.size, 16)
    layout.write_table(head, ranges)
    blob = BlobWriter(into, Kind.FILE)
    blob.section(head.to_bytes())
    sections.write(source, ranges, blob.section, None, None)
    blob.close()
    return blob.size


def unpack_stream(
    file: BinaryIO, into: Output, *, limits: CodecLimits = DEFAULT_LIMITS, largest: int | None = None
) -> str:
    """Unpack an open blob piece by piece; returns the name of the file. `CodecError` for bytes that hold no file.

    At most `largest` bytes (`file_bytes` of `limits`, if not given) are written. What was written before an error
    is of no use.
    """
    blob = BlobReader(file, Kind.FILE, limits)
    head = BitReader(blob.section())
    name = read_name(head)
    size = head.number(16, largest=limits.file_bytes if largest is None else largest)
    ranges = layout.read_table(head, size, 0, limits)
    head.align()
    if any(item.link not in (Link.NONE, Link.TWIN) for item in ranges):
        raise CodecError("a packed file is linked to an old one, as only patches are: it is damaged")
    for data in sections.contents(
        size, ranges, blob.section, None, None, limits, earlier=into.read_back, lossy=lambda _: b""
    ):
        into.write(data)
    blob.finish()
    return name


def packed_name(file: BinaryIO, *, limits: CodecLimits = DEFAULT_LIMITS) -> str:
    """The name of the file that a packed file or a patch gives. The rest of the blob is not looked at."""
    blob = BlobReader(file, None, limits, verified=True)
    if blob.kind not in (Kind.FILE, Kind.PATCH):
        raise CodecError(f"the blob holds {blob.kind.name.lower()}, and no file: decode it in Python")
    return read_name(BitReader(blob.section()))


def worthwhile(source: Source, tensors: Sequence[Tensor]) -> list[Range]:
    """The ranges that our coder is better at than a general one, as far as a sample of each shows."""
    return [item for tensor in tensors for item in _candidates(source, tensor) if _is_better(source, item)]


def twins(source: Source, ranges: Sequence[Range]) -> list[Range]:
    """The same, with each range that repeats an earlier one linked to it."""
    first: dict[bytes, Range] = {}
    times = Counter(item.size for item in ranges)
    repeated = {size for size, count in times.items() if size >= _SMALLEST_TWIN and count > 1}
    result: list[Range] = []
    for item in ranges:
        if item.size in repeated:
            twin = first.setdefault(_digest(source, item.start, item.size), item)
            if twin is not item:
                item = replace(item, link=Link.TWIN, place=twin.start)
        result.append(item)
    return result


def write_name(head: BitWriter, name: str) -> None:
    """Append the name of a file."""
    encoded = name.encode()
    head.bits(len(encoded), 8)
    for byte in encoded:
        head.bits(byte, 8)


def read_name(head: BitReader) -> str:
    """The inverse of `write_name`."""
    try:
        name = bytes(head.bits(8) for _ in range(head.bits(8))).decode()
    except UnicodeDecodeError as error:
        raise CodecError("the name of the packed file is not UTF-8: the blob is damaged") from error
    check_name(name)
    return name


def check_name(name: str) -> None:
    """`CodecError` for a name that is none, or that could lead into another folder."""
    try:
        fits = 0 < len(name.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:
        fits = False
    if not fits or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise CodecError(f"{name[:80]!r} is no name for a packed file: 1 to 255 bytes without a folder are")


def _candidates(source: Source, tensor: Tensor) -> Iterator[Range]:
    if tensor.type is not Type.VARINT or tensor.size <= GROUP_SYMBOLS:
        yield Range(tensor.start, tensor.size, tensor.type, tensor.shape)
        return
    at = tensor.start
    while at < tensor.end:  # varints are cut where one ends
        data = source.read(at, min(GROUP_SYMBOLS, tensor.end - at))
        while data and data[-1] > 127:
            data = data[:-1]
        numbers = protobuf.unpack_varints(data)
        if numbers is None:
            return
        yield Range(at, len(data), Type.VARINT, (len(numbers),))
        at += len(data)


def sample(item: Range) -> Range:
    """The beginning of a range, enough to judge it by. Varints are looked at whole."""
    if item.size <= _SAMPLE or item.type is Type.VARINT:
        return item
    halves = 2 if item.type in (Type.INT4, Type.UINT4) else 1
    return replace(item, size=_SAMPLE, shape=(halves * _SAMPLE // item.type.width,))


def _is_better(source: Source, item: Range) -> bool:
    piece = sample(item)
    data = source.read(piece.start, piece.size)
    ours = forms.choose(piece, data, None).bits // 8
    if 100 * len(general.deflate(data, 6)) > _LIKELY * ours:
        return True
    return 100 * len(general.squeeze(data, trial=True)[1]) >= _BETTER * ours


def _digest(source: Source, at: int, size: int) -> bytes:
    found = hashlib.sha256()
    for start in range(at, at + size, _READ):
        found.update(source.read(start, min(_READ, at + size - start)))
    return found.digest()
