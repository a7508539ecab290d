"""How one sequence of integers becomes symbols: the table `MODES` of ways, each with its inverse.

A way turns a sequence (already reduced by its base) into one stream of symbols plus raw bits. Which way
is the cheapest is the planner's business (`plan.py`); both ends find the ways here by number.

- `TUPLES`: k neighbouring values make one symbol. k = 1 is plain coding; k = 2 to 4 spreads the one bit that a
  Huffman code takes at least over k values.
- `RUNS`: a run of zeros and the value that ends it make one symbol: the way for sparse data, where a bit per value is
  too much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CodecError
from . import huffman, tokens
from .bits import BitReader, BitWriter

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

#: Values of one symbol at most.
LARGEST_TUPLE = 4
#: Largest `split` of the tokens: 8 codes every 8-bit value directly.
LARGEST_SPLIT = 8


@dataclass(frozen=True)
class Way:
    """One way with its parameters: what the header says of a sequence, besides its base and its Huffman code.

    `split` is that of the values' tokens. `extent` is k in `TUPLES`, and the split of the runs' tokens in `RUNS`.
    """

    mode: int
    split: int
    extent: int


@dataclass(frozen=True)
class Coded:
    """A sequence in one way: symbols below `alphabet`, and raw bits. A symbol has `radix` different value tokens."""

    way: Way
    radix: int
    alphabet: int
    symbols: I64
    raw_lengths: I64
    raw: U64


#: Gathers the next raw fields, given their lengths in bits.
RawReader = Callable[[I64], U64]


def _tuples(values: I64, way: Way) -> Coded | None:
    found, raw_lengths, raw = tokens.split_tokens(tokens.zigzag(values), way.split)
    radix = int(found.max(initial=0)) + 1
    alphabet = radix**way.extent
    if alphabet > huffman.LARGEST_ALPHABET:
        return None
    symbols = np.zeros(-(-len(found) // way.extent) * way.extent, np.int64)
    symbols[: len(found)] = found
    symbols = symbols.reshape(-1, way.extent) @ (radix ** np.arange(way.extent, dtype=np.int64))
    return Coded(way, radix, alphabet, symbols, raw_lengths, raw)


def _untuples(way: Way, count: int, radix: int, symbols: I64, raw: RawReader) -> I64:
    columns = np.empty((len(symbols), way.extent), np.int64)
    for column in range(way.extent):
        columns[:, column] = symbols % radix
        symbols = symbols // radix
    if columns.reshape(-1)[count:].any() or symbols.any():
        raise CodecError("the last symbol of a sequence goes beyond its end: the blob is damaged")
    found = columns.reshape(-1)[:count]
    return tokens.unzigzag(tokens.join_tokens(found, raw(tokens.raw_length(found, way.split)), way.split))


def _runs(values: I64, way: Way) -> Coded | None:
    at = np.flatnonzero(values)
    gaps = np.diff(at, prepend=-1) - 1
    gap_tokens, gap_lengths, gap_raw = tokens.split_tokens(gaps.astype(np.uint64), way.extent)
    found, raw_lengths, raw = tokens.split_tokens(tokens.zigzag(values[at]) - np.uint64(1), way.split)
    radix = int(found.max(initial=0)) + 1
    alphabet = radix * (int(gap_tokens.max(initial=0)) + 1)
    if alphabet > huffman.LARGEST_ALPHABET:
        return None
    return Coded(
        way, radix, alphabet, gap_tokens * radix + found,
        np.concatenate([gap_lengths, raw_lengths]), np.concatenate([gap_raw, raw]),
    )  # fmt: skip


def _unruns(way: Way, count: int, radix: int, symbols: I64, raw: RawReader) -> I64:
    gap_tokens, found = symbols // radix, symbols % radix
    gap_lengths = tokens.raw_length(gap_tokens, way.extent)
    if len(gap_tokens) and gap_lengths.max() > 40:
        raise CodecError("a run of zeros is longer than any sequence: the blob is damaged")
    gaps = tokens.join_tokens(gap_tokens, raw(gap_lengths), way.extent).astype(np.int64)
    nonzero = tokens.join_tokens(found, raw(tokens.raw_length(found, way.split)), way.split)
    # The sum is checked in floats first: it cannot wrap there, and below 2**52 it is exact.
    if gaps.sum(dtype=np.float64) + len(gaps) > count:
        raise CodecError("runs of zeros go beyond the end of their sequence: the blob is damaged")
    values = np.zeros(count, np.int64)
    values[np.cumsum(gaps + 1) - 1] = tokens.unzigzag(nonzero + np.uint64(1))
    return values


@dataclass(frozen=True)
class Mode:
    """A way's two directions. `encode` gives None where symbols would be too many for one code."""

    encode: Callable[[I64, Way], Coded | None]
    decode: Callable[[Way, int, int, I64, RawReader], I64]


TUPLES, RUNS = 0, 1
#: By the number that stands in the blob. Numbers are never reused.
MODES: dict[int, Mode] = {TUPLES: Mode(_tuples, _untuples), RUNS: Mode(_runs, _unruns)}


def write_way(head: BitWriter, coded: Coded) -> None:
    """Write the way, its radix, and for runs how many there are."""
    head.number(coded.way.mode, 1)
    head.bits(coded.way.split - 1, 3)
    head.bits(coded.way.extent - 1, 2)
    head.number(coded.radix - 1, 2)
    if coded.way.mode == RUNS:
        head.number(coded.alphabet // coded.radix - 1, 2)
        head.number(len(coded.symbols), 6)


def read_way(head: BitReader, count: int) -> tuple[Way, int, int, int]:
    """The inverse of `write_way` for a sequence of `count` values: (way, radix, alphabet, number of symbols)."""
    mode = head.number(1)
    if mode not in MODES:
        raise CodecError(f"coding mode {mode} is not known here: a newer version wrote this blob; update this side")
    way = Way(mode, head.bits(3) + 1, head.bits(2) + 1)
    radix = head.number(2, largest=tokens.token_count(way.split) - 1) + 1
    if mode == RUNS:
        alphabet = radix * (head.number(2, largest=tokens.token_count(way.extent) - 1) + 1)
        symbols = head.number(6, largest=count)
    else:
        alphabet = radix**way.extent
        symbols = -(-count // way.extent)
    if alphabet > huffman.LARGEST_ALPHABET:
        raise CodecError(
            f"an alphabet of {alphabet} symbols, and {huffman.LARGEST_ALPHABET} are most: the blob is damaged"
        )
    return way, radix, alphabet, symbols
