"""What changed between two versions of a model, and the new version from the old one and that.

Tensors of the same name, type and shape are compared; what did not change costs nothing. Floats are exact, to the
bit, unless a quality is asked for: then their change goes through `encode_delta`, and the result is not the new
file, byte for byte, but as near to it as that. All else is exact in any case, and where the structure of a model has
changed, its bytes are compared. Both files are known by their digests, so a patch on the wrong file is refused.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from .. import delta
from ..coding.bits import BitReader, BitWriter
from ..container import Kind
from ..errors import CodecError
from ..limits import DEFAULT_LIMITS, CodecLimits
from . import forms, layout, sections
from .find import SMALLEST, find
from .forms import Form
from .pack import FileOutput, Output, check_name, read_name, sample, twins, worthwhile, write_name
from .pieces import GROUP_SYMBOLS, Link, Range
from .source import Source
from .stream import BlobReader, BlobWriter
from .tensors import Tensor, Type

F32 = npt.NDArray[np.float32]

#: Bytes of a SHA-256 digest that a patch keeps of either file: enough to tell files apart, not to stop forgers.
_DIGEST = 16
#: Tensors of fewer bytes are not compared as such.
_SMALLEST_COMPARED = 8
_READ = 1 << 20
#: Changes from here on are not those of one training run: such a tensor is exact in a lossy patch too.
_LARGEST_CHANGE = np.float32(2.0**100)


def make_patch(
    old: bytes, new: bytes, name: str, quality: float | None = None, *, limits: CodecLimits = DEFAULT_LIMITS
) -> bytes:
    """The patch from one file to another, which is to be called `name`; `apply_patch` is its inverse.

    With a `quality` (as in `encode_delta`) floats change only about as they should. Raises `CodecError` for a name
    that is none, a quality beyond 0 to 1, and files beyond `limits`.
    """
    result = io.BytesIO()
    patch_stream(io.BytesIO(old), io.BytesIO(new), name, result, quality, limits=limits)
    return result.getvalue()


def apply_patch(old: bytes, patch: bytes, *, limits: CodecLimits = DEFAULT_LIMITS) -> tuple[str, bytes]:
    """(name, bytes) of the new file. Raises `CodecError` if `patch` is damaged or was made for another file."""
    result = io.BytesIO()
    name = apply_stream(
        io.BytesIO(old), io.BytesIO(patch), FileOutput(result), limits=limits, largest=limits.decoded_bytes
    )
    return name, result.getvalue()


def patch_stream(
    old: BinaryIO,
    new: BinaryIO,
    name: str,
    into: BinaryIO,
    quality: float | None = None,
    *,
    limits: CodecLimits = DEFAULT_LIMITS,
) -> int:
    """Write the patch between two open files, piece by piece; returns its size. Raises as `make_patch` does."""
    check_name(name)
    before, after = Source(old), Source(new)
    for source in (before, after):
        if source.size > limits.file_bytes:
            raise CodecError(
                f"a file of {source.size} bytes cannot be compared, at most {limits.file_bytes} are: "
                "raise file_bytes of CodecLimits"
            )
    ranges = _ranges(before, after, lossy=quality is not None)
    changes = Changes(before, after, ranges)
    coded = b""
    if changes:
        assert quality is not None
        coded = delta.encode_each(changes, quality, limits=limits)
    result = _digest(_result(before, after, ranges, _lossy(coded, before, limits)))
    head = BitWriter()
    write_name(head, name)
    head.number(after.size, 16)
    head.number(before.size, 16)
    for digest in (_digest(_bytes(before)), result):
        head.bits(int.from_bytes(digest, "big"), 8 * _DIGEST)
    layout.write_table(head, ranges)
    blob = BlobWriter(into, Kind.PATCH)
    blob.section(head.to_bytes())
    if changes:
        blob.section(coded)
    sections.write(after, ranges, blob.section, before, layout.old_rest(before.size, ranges))
    blob.close()
    return blob.size


def apply_stream(
    old: BinaryIO,
    patch: BinaryIO,
    into: Output,
    *,
    limits: CodecLimits = DEFAULT_LIMITS,
    largest: int | None = None,
) -> str:
    """Write the new file, piece by piece; returns its name. Raises as `apply_patch` does.

    The old file is checked before anything is written, the new one at the end: after an error, what was written is
    of no use. At most `largest` bytes (`file_bytes` of `limits`, if not given) are.
    """
    blob = BlobReader(patch, Kind.PATCH, limits)
    before = Source(old)
    head = BitReader(blob.section())
    name = read_name(head)
    size = head.number(16, largest=limits.file_bytes if largest is None else largest)
    old_size = head.number(16)
    wanted, result = (head.bits(8 * _DIGEST).to_bytes(_DIGEST, "big") for _ in range(2))
    found = _digest(_bytes(before))
    if (old_size, wanted) != (before.size, found):
        raise CodecError(
            f"the patch was made for another old file: of {old_size} bytes with a SHA-256 that begins {wanted.hex()}, "
            f"and this one has {before.size} bytes and {found.hex()}; give the version that it was made from"
        )
    ranges = layout.read_table(head, size, before.size, limits)
    head.align()
    coded = blob.section(limits.blob_bytes) if any(item.link is Link.LOSSY for item in ranges) else b""
    checked = hashlib.sha256()
    for data in sections.contents(
        size, ranges, blob.section, before, layout.old_rest(before.size, ranges), limits,
        earlier=into.read_back, lossy=_lossy(coded, before, limits),
    ):  # fmt: skip
        checked.update(data)
        into.write(data)
    blob.finish()
    if checked.digest()[:_DIGEST] != result:
        raise CodecError("the new file does not have the digest that it should: the patch is damaged; fetch it again")
    return name


class Changes(Mapping[str, F32]):
    """The changes of the lossy tensors, each made when it is asked for."""

    def __init__(self, before: Source, after: Source, ranges: Sequence[Range]) -> None:
        self._sources = before, after
        self._ranges = {str(index): item for index, item in enumerate(r for r in ranges if r.link is Link.LOSSY)}

    def __getitem__(self, name: str) -> F32:
        item = self._ranges[name]
        return _change(*self._sources, item).reshape(item.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)


def _ranges(before: Source, after: Source, *, lossy: bool) -> list[Range]:
    """The table: tensors that changed, linked to what they were, and new ones."""
    linked: list[Range] = []
    unlinked: list[Tensor] = []
    for tensor, old in _matches(find(before, _SMALLEST_COMPARED), find(after, _SMALLEST_COMPARED)):
        if old is None:
            unlinked += [tensor] if tensor.size >= SMALLEST else []
        elif not _same(before, old.start, after, tensor.start, tensor.size):
            item = Range(tensor.start, tensor.size, tensor.type, tensor.shape, Link.OLD, old.start)
            if lossy and item.type is Type.FLOAT32 and (np.abs(_change(before, after, item)) < _LARGEST_CHANGE).all():
                linked.append(replace(item, link=Link.LOSSY))
            elif _related(before, after, item):
                linked.append(item)
            elif tensor.size >= SMALLEST:
                unlinked.append(tensor)
    return sorted([*linked, *twins(after, worthwhile(after, unlinked))], key=lambda item: item.start)


def _related(before: Source, after: Source, item: Range) -> bool:
    """Whether the old tensor helps to code the new one, as far as a sample shows."""
    piece = sample(item)
    found = forms.choose(piece, after.read(piece.start, piece.size), before.read(piece.place, piece.size))
    return found.form in (Form.SAME, Form.DIFFERENCE, Form.EXCLUSIVE)


def _matches(old: Sequence[Tensor], new: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Each new tensor with the old one that it comes from: of the same name, else the next like it without a heir."""
    by_name = {(t.name, t.type, t.size, t.shape): t for t in old}
    heirs = {id(by_name[key]) for t in new if (key := (t.name, t.type, t.size, t.shape)) in by_name}
    left: defaultdict[tuple[Type, int, tuple[int, ...]], deque[Tensor]] = defaultdict(deque)
    for tensor in old:
        if id(tensor) not in heirs:
            left[tensor.type, tensor.size, tensor.shape].append(tensor)
    for tensor in new:
        found = by_name.get((tensor.name, tensor.type, tensor.size, tensor.shape))
        if found is None and (queue := left[tensor.type, tensor.size, tensor.shape]):
            found = queue.popleft()
        if tensor.type is Type.VARINT and tensor.size > GROUP_SYMBOLS:
            found = None
        yield tensor, found


def _same(a: Source, a_start: int, b: Source, b_start: int, size: int) -> bool:
    return all(
        a.read(a_start + at, min(_READ, size - at)) == b.read(b_start + at, min(_READ, size - at))
        for at in range(0, size, _READ)
    )


def _change(before: Source, after: Source, item: Range) -> F32:
    with np.errstate(over="ignore", invalid="ignore"):
        return _floats(after.read(item.start, item.size)) - _floats(before.read(item.place, item.size))


def _floats(data: bytes) -> F32:
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def _lossy(coded: bytes, before: Source, limits: CodecLimits) -> Callable[[Range], bytes]:
    """Gives the bytes of one lossy tensor after the other: what it was, plus its change."""
    changes = delta.iterate_delta(coded, limits=limits) if coded else iter(())

    def following(item: Range) -> bytes:
        found = next(changes, None)
        if found is None or 4 * found[1].size != item.size:
            raise CodecError("the delta of a patch does not fit its tensors: the patch is damaged")
        with np.errstate(over="ignore", invalid="ignore"):
            result = _floats(before.read(item.place, item.size)) + found[1].reshape(-1)
        return result.astype("<f4", copy=False).tobytes()

    return following


def _result(before: Source, after: Source, ranges: Sequence[Range], lossy: Callable[[Range], bytes]) -> Iterator[bytes]:
    """What applying the patch will give."""
    at = 0
    for item in ranges:
        if item.link is Link.LOSSY:
            yield from _bytes(after, at, item.start)
            yield lossy(item)
            at = item.end
    yield from _bytes(after, at, after.size)


def _bytes(source: Source, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    end = source.size if end is None else end
    return (source.read(at, min(_READ, end - at)) for at in range(start, end, _READ))


def _digest(pieces: Iterator[bytes]) -> bytes:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.digest()[:_DIGEST]
