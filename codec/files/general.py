"""General compression from the standard library: for all that is no weights, and where it does better on weights."""

from __future__ import annotations

import lzma
import zlib
from typing import Any

from ..errors import CodecError

#: Numbers of the methods as they stand in blobs; never reused.
PLAIN, DEFLATE, LZMA = 1, 2, 3
#: Raw LZMA2 with a dictionary of at most this size: a stream that cannot ask its reader for a larger one.
_DICTIONARY = 1 << 22
#: Contexts of LZMA: for text and structure, and for items of four bytes. The stream itself says which.
_CONTEXTS: list[dict[str, Any]] = [{}, {"lc": 0, "lp": 2}]
#: For trials: half as good, and four times as fast.
_FAST: dict[str, Any] = {"preset": 1}
#: Pieces by which contexts are chosen, and bytes of one.
_PIECES, _PIECE = 4, 1 << 15


def squeeze(data: bytes, *, trial: bool = False) -> tuple[int, bytes]:
    """(method, bytes) of the smallest form; with less patience if it is only a `trial`."""
    found = [(PLAIN, data), (DEFLATE, deflate(data, 6 if trial else 9))]
    some = sample(data)
    contexts = min(_CONTEXTS, key=lambda contexts: len(_lzma(some, contexts | _FAST)))
    found.append((LZMA, _lzma(data, contexts | _FAST if trial else contexts)))
    return min(found, key=lambda form: (len(form[1]), form[0]))


def sample(data: bytes) -> bytes:
    """Some of the bytes, from all over: enough to tell how well they compress."""
    pitch = max(_PIECE, len(data) // _PIECES)
    return b"".join(data[index * pitch : index * pitch + _PIECE] for index in range(_PIECES))


def expand(method: int, data: bytes, size: int) -> bytes:
    """The inverse of `squeeze`. `CodecError` unless exactly `size` bytes come out; never more are produced."""
    if method == PLAIN:
        result, rest, complete = data, b"", True
    elif method == DEFLATE:
        inflater = zlib.decompressobj(-15)
        try:
            result = inflater.decompress(data, size + 1)  # one more than expected shows that there is too much
        except zlib.error as error:
            raise CodecError(f"a deflated part cannot be inflated ({error}): the blob is damaged") from error
        rest, complete = inflater.unused_data, inflater.eof
    elif method == LZMA:
        # A dictionary of no more than comes out: a few damaged bytes shall not cost megabytes.
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters({"dict_size": _dictionary(size)}))
        try:
            result = decoder.decompress(data, size + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise CodecError(f"an LZMA part cannot be unpacked ({error}): the blob is damaged") from error
        rest, complete = decoder.unused_data, decoder.eof
    else:
        raise CodecError(f"packing method {method} is not known here: a newer version wrote it; update this side")
    if len(result) != size or rest or not complete:
        raise CodecError("a compressed part has not the size that it should have: the blob is damaged")
    return result


def _lzma(data: bytes, contexts: dict[str, Any]) -> bytes:
    # No more dictionary than there are bytes: LZMA's own memory is about twelve times as large.
    filters = _filters({**contexts, "dict_size": _dictionary(len(data))})
    return lzma.compress(data, lzma.FORMAT_RAW, filters=filters)


def _dictionary(size: int) -> int:
    """Bytes of dictionary for data of this size: both ends need no more."""
    return min(_DICTIONARY, max(1 << 12, size))


def _filters(contexts: dict[str, Any]) -> list[dict[str, Any]]:
    preset = 6 | lzma.PRESET_EXTREME
    return [{"id": lzma.FILTER_LZMA2, "preset": preset, **contexts}]


def deflate(data: bytes, level: int = 9) -> bytes:
    """Raw deflate (RFC 1951)."""
    coder = zlib.compressobj(level, zlib.DEFLATED, -15, 9)
    return coder.compress(data) + coder.flush()
