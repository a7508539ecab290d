"""Files packed without loss: what is known to be weights through our coder, all else through a general one.

Floats are turned left by one bit, so that the exponent fills the first byte and the sign goes last, and their bytes
are coded apart, plane by plane: exponents of weights take about 3 bits of 8. Integers are coded as they are. Weights
are cut into batches, each coded by itself, so that the memory for a batch is all that a large file takes. What lies
between the weights is deflated. If one general coder over the whole file is smaller, it is used instead.

::

    method, name, file size        numbers and bytes of the header (see the format's reference page)
    PLAIN, DEFLATE, LZMA           the file
    TYPED                          ranges, size of each batch; then the rest (deflated), the batches
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import container
from ..coding import arrays
from ..coding.bits import BitReader, BitWriter
from ..container import Kind
from ..errors import CodecError
from ..limits import DEFAULT_LIMITS, CodecLimits
from . import typed
from .typed import Range

I64 = npt.NDArray[np.int64]

PLAIN, DEFLATE, LZMA, TYPED = range(4)

#: Symbols of a batch at most: what bounds memory.
_BATCH = 1 << 20
#: Raw LZMA2 with these filters: a stream that cannot ask its reader for a larger dictionary.
_LZMA_FILTERS: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 23}]
#: Bytes of a file with weights up to which LZMA is tried too.
_LZMA_TRIED = 1 << 18
_LONGEST_NAME = 255
_WIDTHS = (1, 2, 4, 8)


def pack_file(data: bytes, name: str, *, limits: CodecLimits = DEFAULT_LIMITS) -> bytes:
    """The blob of a file; `unpack_file` gives back the same bytes and the name (without folders).

    Raises `CodecError` for a name that is empty, longer than 255 bytes or has a folder, and a file beyond `limits`.
    """
    _check_name(name)
    if len(data) > limits.decoded_bytes:
        raise CodecError(f"file {name!r} of {len(data)} bytes cannot be packed: at most {limits.decoded_bytes}")
    candidates = [(PLAIN, data), (DEFLATE, _deflate(data))]
    head = BitWriter()
    ranges = list(_pieces(typed.find(data)))
    if ranges:
        rest = _write_typed(head, data, ranges)
        candidates.append((TYPED, head.to_bytes() + rest))
    if not ranges or len(data) <= _LZMA_TRIED:  # slow, and on weights it hardly ever wins
        candidates.append((LZMA, _lzma(data)))
    method, body = min(candidates, key=lambda candidate: (len(candidate[1]), candidate[0]))
    front = BitWriter()
    front.number(method, 1)
    encoded = name.encode()
    front.bits(len(encoded), 8)
    for byte in encoded:
        front.bits(byte, 8)
    front.number(len(data), 16)
    return container.wrap(Kind.FILE, [front.to_bytes(), body])


def unpack_file(blob: bytes, *, limits: CodecLimits = DEFAULT_LIMITS) -> tuple[str, bytes]:
    """(name, bytes) of the file in a blob. Raises `CodecError` for any bytes that hold no file, within `limits`."""
    payload = container.unwrap(bytes(blob), Kind.FILE, limits)
    front = BitReader(payload)
    method = front.number(1)
    try:
        name = bytes(front.bits(8) for _ in range(front.bits(8))).decode()
    except UnicodeDecodeError as error:
        raise CodecError("the name of the packed file is not UTF-8: the blob is damaged") from error
    _check_name(name)
    size = front.number(16, largest=limits.decoded_bytes)
    body = payload[front.align() :]
    if method not in _READERS:
        raise CodecError(
            f"packing method {method} is not known here: a newer version wrote this blob; update this side"
        )
    data = _READERS[method](body, size, limits)
    if len(data) != size:
        raise CodecError(f"file {name!r} unpacks to {len(data)} bytes and should have {size}: the blob is damaged")
    return name, data


def _write_typed(head: BitWriter, data: bytes, ranges: Sequence[Range]) -> bytes:
    head.number(len(ranges), 4)
    rest: list[bytes] = []
    end = 0
    for item in ranges:
        head.number(item.start - end, 6)
        head.bits(_WIDTHS.index(item.width), 2)
        head.bits(item.floating, 1)
        head.number(item.size // item.width, 8)
        rest.append(data[end : item.start])
        end = item.start + item.size
    between = _deflate(b"".join([*rest, data[end:]]))
    head.number(len(between), 8)
    batches: list[bytes] = []
    for batch in _batches(ranges):
        inner = BitWriter()
        coded = arrays.encode(
            inner, [a for item in batch for a in _split(data[item.start : item.start + item.size], item)]
        )
        batches.append(inner.to_bytes() + coded)
        head.number(len(batches[-1]), 8)
    return b"".join([between, *batches])


def _read_typed(body: bytes, size: int, limits: CodecLimits) -> bytes:
    head = BitReader(body)
    ranges: list[Range] = []
    end = 0
    for _ in range(head.number(4, largest=size)):
        start = end + head.number(6, largest=size)
        width = _WIDTHS[head.bits(2)]
        floating = bool(head.bits(1))
        item = Range(start, width * head.number(8, largest=_BATCH), width, floating)
        end = item.start + item.size
        if end > size or len(_counts(item)) * (item.size // width) > _BATCH:
            raise CodecError("weights lie beyond the end of their file: the blob is damaged")
        ranges.append(item)
    between_size = head.number(8, largest=len(body))
    batches = list(_batches(ranges))
    sizes = [head.number(8, largest=len(body)) for _ in batches]
    at = head.align() + between_size
    if at + sum(sizes) != len(body):
        raise CodecError("the parts of a packed file do not add up to its size: the blob is damaged")
    between = _inflate(body[at - between_size : at], size - sum(item.size for item in ranges), limits)
    parts: list[bytes] = []
    taken = file_at = 0
    for batch, batch_size in zip(batches, sizes, strict=True):
        piece = body[at : at + batch_size]
        at += batch_size
        flat = iter(arrays.decode(BitReader(piece), piece, [n for item in batch for n in _counts(item)], limits))
        for item in batch:
            gap = item.start - file_at
            parts += [between[taken : taken + gap], _join([next(flat) for _ in _counts(item)], item)]
            taken, file_at = taken + gap, item.start + item.size
    return b"".join([*parts, between[taken:]])


def _pieces(ranges: Sequence[Range]) -> Iterator[Range]:
    """The same ranges, none with more symbols than a batch has."""
    for item in ranges:
        most = _BATCH // len(_counts(item)) * item.width
        for start in range(0, item.size, most):
            yield Range(item.start + start, min(most, item.size - start), item.width, item.floating)


def _batches(ranges: Sequence[Range]) -> Iterator[list[Range]]:
    """Consecutive ranges of together no more symbols than `_BATCH`: both ends cut alike."""
    batch: list[Range] = []
    symbols = 0
    for item in ranges:
        more = sum(_counts(item))
        if batch and symbols + more > _BATCH:
            yield batch
            batch, symbols = [], 0
        batch.append(item)
        symbols += more
    if batch:
        yield batch


def _counts(item: Range) -> list[int]:
    """The number of elements of each array that a range becomes."""
    return [item.size // item.width] * (item.width if item.floating else 1)


def _split(data: bytes, item: Range) -> list[I64]:
    if not item.floating:
        return [np.frombuffer(data, f"<i{item.width}").astype(np.int64)]
    words = np.frombuffer(data, f"<u{item.width}")
    turned = (words << 1) | (words >> (8 * item.width - 1))
    return [((turned >> (8 * plane)) & 255).astype(np.int64) for plane in range(item.width)]


def _join(values: Sequence[I64], item: Range) -> bytes:
    if not item.floating:
        integers = values[0].astype(f"<i{item.width}")
        if not np.array_equal(integers.astype(np.int64), values[0]):
            raise CodecError("a packed integer does not fit its type: the blob is damaged")
        return integers.tobytes()
    turned = np.zeros(item.size // item.width, f"<u{item.width}")
    for plane, digits in enumerate(values):
        if len(digits) and not 0 <= digits.min() <= digits.max() <= 255:
            raise CodecError("a packed byte is no byte: the blob is damaged")
        turned |= digits.astype(turned.dtype) << (8 * plane)
    return ((turned >> 1) | (turned << (8 * item.width - 1))).astype(turned.dtype).tobytes()


def _deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return coder.compress(data) + coder.flush()


def _inflate(data: bytes, size: int, limits: CodecLimits) -> bytes:
    decoder = zlib.decompressobj(-15)
    try:
        # One byte more than expected shows that there is too much, without producing it.
        result = decoder.decompress(data, max(size, 0) + 1)
    except zlib.error as error:
        raise CodecError(f"a deflated part cannot be inflated ({error}): the blob is damaged") from error
    if len(result) != size or not decoder.eof or decoder.unused_data:
        raise CodecError("a deflated part has not the size that it should have: the blob is damaged")
    return result


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA_FILTERS)


def _unlzma(data: bytes, size: int, limits: CodecLimits) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA_FILTERS)
    try:
        result = decoder.decompress(data, size + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise CodecError(f"the packed file cannot be unpacked ({error}): the blob is damaged") from error
    if not decoder.eof or decoder.unused_data:
        raise CodecError("the packed file is longer or shorter than it should be: the blob is damaged")
    return result


def _plain(data: bytes, size: int, limits: CodecLimits) -> bytes:
    return data


#: By the number that stands in the blob. Numbers are never reused.
_READERS = {PLAIN: _plain, DEFLATE: _inflate, LZMA: _unlzma, TYPED: _read_typed}


def _check_name(name: str) -> None:
    try:
        fits = 0 < len(name.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:
        fits = False
    if not fits or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise CodecError(f"{name[:80]!r} cannot be the name of a packed file: it must be short and without folders")
