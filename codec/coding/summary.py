"""In words, how an array was coded: for people who look at a blob, not for decoders."""

from __future__ import annotations

import math

from ..limits import DEFAULT_LIMITS
from . import describe, huffman, lines, modes, tables
from .bits import BitReader
from .describe import CONSTANT
from .division import UNLABELLED, Shape
from .modes import RUNS


def summary(data: bytes, shape: tuple[int, ...]) -> str:
    """How the one array of a group was coded: its classes, by which lines, and the modes of their sequences."""
    head = BitReader(data)
    total = head.number(largest=DEFAULT_LIMITS.codes)
    streams = head.number(largest=lines.MOST_STREAMS)
    each = describe.read(head, Shape.of(shape), total, streams)
    if each.kind == CONSTANT:
        return "constant"
    for _ in range(streams):
        huffman.read_lengths(head, lines.ALPHABET)
    found: dict[str, None] = {}
    for _ in range(total):
        way = modes.read_way(head, math.prod(shape))
        head.bits(tables.STRIDE_BITS)
        found["runs" if way.mode == RUNS else "plain" if way.extent == 1 else f"{way.extent}-tuples"] = None
    by = [name for name, used in (("rows", each.by_row), ("columns", each.by_column != UNLABELLED)) if used]
    classes = f"{total} class{'es' if total > 1 else ''}{' of ' + ' and '.join(by) if by else ''}"
    return f"{classes}, {'/'.join(found)}{', signs by line' if each.negated else ''}"
