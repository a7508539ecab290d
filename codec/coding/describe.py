"""What the headers of a group say of each array: its base, whether and how it is divided, what was done to signs.

The first header has what must be known before labels can be read; the second what labels must be known for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from . import division, mirror, modes
from .bits import BitReader, BitWriter
from .division import UNLABELLED, Division, Labels, Shape
from .signs import NO_SIGNS, Signs

Codes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

#: What an array is: one sequence, nothing but its base, divided; one sequence or divided, mirrored or with changed
#: signs; the same with a template, which is then described next.
WHOLE, CONSTANT, DIVIDED, WHOLE_SIGNS, DIVIDED_SIGNS, WHOLE_TEMPLATE, DIVIDED_TEMPLATE = range(7)


@dataclass(frozen=True)
class Described:
    """What the first header says of an array.

    `code` is its sequence if it is whole. Else rows have labels if `by_row`, columns as `by_column` says, and `sets`
    tells of each set of labels whether it is written as changes, and in which stream.
    """

    shape: Shape
    base: int
    kind: int
    code: int = 0
    by_row: bool = False
    by_column: int = UNLABELLED
    sets: Sequence[tuple[bool, int]] = ()

    @property
    def divided(self) -> bool:
        """Whether it is of several sequences."""
        return self.kind in (DIVIDED, DIVIDED_SIGNS, DIVIDED_TEMPLATE)

    @property
    def signs(self) -> bool:
        """Whether lines may be mirrored and signs changed."""
        return self.kind >= WHOLE_SIGNS

    @property
    def template(self) -> bool:
        """Whether a template was subtracted from some rows."""
        return self.kind >= WHOLE_TEMPLATE

    @property
    def lines(self) -> list[int]:
        """The sizes of its sets of labels."""
        return self.shape.lines(self.by_row, self.by_column)

    def write(self, head: BitWriter, codes: int, streams: int) -> None:
        """Append to the first header of a group with so many sequences, and streams of labels."""
        head.signed(self.base)
        if codes:  # without sequences, all arrays are constant
            head.number(self.kind)
        if self.divided:
            head.bits(self.by_row, 1)
            head.bits(self.by_column, 2)
            for changes, stream in self.sets:
                head.bits(changes, 1)
                head.bits(stream, width(streams))
        elif self.kind != CONSTANT:
            head.bits(self.code, width(codes))


def read(head: BitReader, shape: Shape, codes: int, streams: int) -> Described:
    """The inverse of `Described.write`."""
    base, kind = modes.read_base(head), head.number(largest=DIVIDED_TEMPLATE) if codes else CONSTANT
    if kind == CONSTANT:
        return Described(shape, base, kind)
    if kind in (WHOLE_TEMPLATE, DIVIDED_TEMPLATE) and shape.rows < 2:
        raise CodecError("an array of one row has a template: the blob is damaged")
    if kind in (WHOLE, WHOLE_SIGNS, WHOLE_TEMPLATE):
        return Described(shape, base, kind, _below(head.bits(width(codes)), codes))
    by_row, by_column = bool(head.bits(1)), head.bits(2)
    total = len(shape.lines(by_row, by_column))
    if not total:
        raise CodecError("an array is divided by nothing: the blob is damaged")
    sets = [(bool(head.bits(1)), _below(head.bits(width(streams)), streams)) for _ in range(total)]
    return Described(shape, base, kind, 0, by_row, by_column, sets)


@dataclass(frozen=True)
class Second:
    """What the second header says of an array: besides, how it is mirrored, and which rows use the template."""

    division: Division | None
    mirrored: int
    signs: Signs
    uses: Flags | None


def write_second(
    head: BitWriter, divided: Division | None, mirrored: int, signs: Signs, uses: Flags | None, codes: int
) -> None:
    """Append to the second header: the code of each context, how lines are mirrored, what was done to signs, which rows
    use the template.
    """
    if divided is not None:
        numbers: list[int] = divided.classes.tolist()
        head.bits(numbers[0], width(codes))
        for before, number in itertools.pairwise(numbers):
            head.signed(number - before)
    if mirrored or signs.changed or uses is not None:
        head.number(mirrored)
        head.bits(signs.chained, 1)
        for flags, lines in zip((signs.rows, signs.columns), _signed(divided, uses is not None), strict=True):
            head.bits(flags is not None, 1)
            if flags is not None:
                head.flags(flags if lines is None else flags[lines])
    if uses is not None:
        head.flags(uses)


def read_second(head: BitReader, each: Described, labels: Sequence[Labels], codes: int) -> Second:
    """The inverse of `write_second`, where the labels are known."""
    divided = None
    if each.divided:
        division.check(labels, each.by_row)
        numbers = [head.bits(width(codes))]
        for _ in range(division.contexts(labels) - 1):
            numbers.append(numbers[-1] + head.signed())
        if not 0 <= min(numbers) <= max(numbers) < codes:
            raise CodecError("a context is of a sequence that is not there: the blob is damaged")
        divided = Division(each.shape, each.by_row, each.by_column, labels, np.array(numbers, np.uint8))
    if not each.signs:
        return Second(divided, mirror.NOT, NO_SIGNS, None)
    mirrored = head.number(largest=mirror.PERIOD_ODD)
    chained = bool(head.bits(1))
    negated: list[Flags | None] = [None, None]
    for axis, (lines, size) in enumerate(
        zip(_signed(divided, each.template), (each.shape.rows, each.shape.columns), strict=True)
    ):
        if head.bits(1):
            flags = np.zeros(size, np.bool_)
            count = size if lines is None else int(np.count_nonzero(lines))
            flags[slice(None) if lines is None else lines] = head.flags(count)
            negated[axis] = flags
    uses = head.flags(each.shape.rows) if each.template else None
    return Second(divided, mirrored, Signs(negated[0], negated[1], chained), uses)


def _signed(divided: Division | None, template: bool) -> tuple[Flags | None, Flags | None]:
    """The rows and columns that may have values that are not zero; None for all."""
    if divided is None or template:
        return None, None
    return divided.row_labels() > 0, divided.column_labels() > 0


def width(total: int) -> int:
    """Bits for a number below `total`."""
    return max(total - 1, 0).bit_length()


def _below(number: int, total: int) -> int:
    if number >= total:
        raise CodecError("an array is of a sequence that is not there: the blob is damaged")
    return number
