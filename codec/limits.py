"""How much a decoder may be made to do, in one place.

Every size that a blob claims is checked against these before anything of that size is allocated, so bytes from a
stranger cost at most what is written here. The decoder holds one group of arrays at a time (`groups.py`): its own
working memory is at most `WORK_BYTES_PER_ELEMENT` for each element of the largest group (at most 2**20 elements
or one array, whichever is more) and `WORK_BYTES_PER_BLOB_BYTE` for each byte of that group, plus one copy of the
blob, plus what it hands out. `memory_bytes` adds that up, and `benchmarks/fuzz.py` holds every decoder to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .groups import GROUP_ELEMENTS

#: Bytes of scratch memory for each element of a group while decoding (64-bit symbols, tokens, raw bits, positions).
WORK_BYTES_PER_ELEMENT = 48
#: And for each byte of the coded group (64-bit windows on every second byte, of all bits forward and backward).
WORK_BYTES_PER_BLOB_BYTE = 20
#: And whatever the input is: tables, the inner state of zlib and lzma.
WORK_BYTES = 1 << 18


@dataclass(frozen=True)
class CodecLimits:
    """Limits of one decode. A server for big models may pass larger ones, a small device smaller ones."""

    #: Bytes of the blob itself.
    blob_bytes: int = 512 * 2**20
    #: Bytes of all decoded arrays together.
    decoded_bytes: int = 512 * 2**20
    #: Bytes of a file that is packed or unpacked piece by piece, onto a disk.
    file_bytes: int = 64 * 2**30
    #: Elements of all decoded arrays together.
    elements: int = 2**27
    #: Elements of one array: what working memory is proportional to, from 2**20 on.
    array_elements: int = 2**27
    #: Arrays in one blob, or tensors of a packed file. Each takes some 20 microseconds, and may be only two bits.
    arrays: int = 2**13
    #: Dimensions of one array (numpy 1.26 has no more).
    dimensions: int = 32
    #: UTF-8 bytes of one name, and of all names together.
    name_bytes: int = 1024
    names_bytes: int = 2**20
    #: Huffman codes in one group; each takes 16 KiB while decoding.
    codes: int = 1024

    def memory_bytes(self, blob: int) -> int:
        """Bytes that decoding a blob of `blob` bytes takes at most: results, scratch, a copy of the blob.

        Of a file or patch each byte may be an element, but no group has more than `GROUP_ELEMENTS`.
        """
        arrays = min(self.elements, max(self.array_elements, GROUP_ELEMENTS))
        largest = max(arrays, min(self.decoded_bytes, GROUP_ELEMENTS))
        scratch = WORK_BYTES_PER_ELEMENT * largest + WORK_BYTES_PER_BLOB_BYTE * blob + WORK_BYTES
        return self.decoded_bytes + blob + scratch


DEFAULT_LIMITS = CodecLimits()
