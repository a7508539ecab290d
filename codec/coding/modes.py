"""How one sequence of integers becomes symbols: the table `MODES` of ways, each with its inverse.

A way turns a sequence into one stream of symbols plus raw bits. Which way is the cheapest is the encoder's business
(`ways.py`); both ends find the ways here by number.

- `TUPLES`: k neighbouring values make one symbol. k = 1 is plain coding; k = 2 to 4 spreads the one bit that a
  Huffman code takes at least over k values.
- `RUNS`: a run of zeros and the value that ends it make one symbol: the way for sparse data, where a bit per value is
  too much.

Decoding looks every symbol up in a small table of what it means, so there is one take for a whole sequence.
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
Integers = npt.NDArray[np.signedinteger]

#: Largest `split` of the tokens: 8 codes every 8-bit value directly.
LARGEST_SPLIT = 8
#: Values whose tokens have fewer raw bits than this fit 32 bits.
_NARROW = 28
#: A run of zeros has at most this many raw bits: longer ones are in no sequence.
_LONGEST_RUN = 40


@dataclass(frozen=True)
class Way:
    """One way with its parameters: what the header says of a sequence, besides its Huffman code.

    `signed` values are folded into natural ones; others are natural already. `split` is that of the values' tokens.
    `extent` is k in `TUPLES`, and the split of the runs' tokens in `RUNS`. A symbol has `radix` different value tokens,
    and in `RUNS` `runs` different run tokens and `symbols` symbols in all. `base` was subtracted from all values.
    """

    mode: int
    signed: bool
    split: int
    extent: int
    radix: int = 1
    runs: int = 1
    symbols: int = 0
    base: int = 0

    @property
    def alphabet(self) -> int:
        """The number of different symbols."""
        return self.radix * self.runs if self.mode == RUNS else self.radix**self.extent

    def length(self, count: int) -> int:
        """The number of symbols for `count` values."""
        return self.symbols if self.mode == RUNS else -(-count // self.extent)

    @property
    def dtype(self) -> np.dtype[np.signedinteger]:
        """The type that holds all its values less their base."""
        return np.dtype(np.int32 if _raw_bits(self.radix - 1, self.split) < _NARROW else np.int64)


@dataclass(frozen=True)
class Coded:
    """A sequence in one way: symbols below the way's alphabet, and raw bits."""

    way: Way
    symbols: npt.NDArray[np.integer]
    raw_lengths: I64
    raw: U64


#: Gathers the next raw fields, given their lengths in bits (none of them 0).
RawReader = Callable[[I64], U64]
#: Tokens of natural numbers, lengths and values of the raw fields that have bits.
Split = tuple[npt.NDArray[np.integer], I64, U64]
_NO_RAW = (np.zeros(0, np.int64), np.zeros(0, np.uint64))


def natural(values: Integers, signed: bool) -> npt.NDArray[np.integer]:
    """Values as natural numbers (in their own type if that holds them)."""
    if not signed:
        return values
    if values.itemsize < 8:
        return (values << 1) ^ (values >> (8 * values.itemsize - 1))
    return tokens.zigzag(values.astype(np.int64, copy=False))


def split_naturals(values: npt.NDArray[np.integer], split: int) -> Split:
    """Natural numbers as tokens and raw fields."""
    if not len(values) or values.max() < 1 << split:
        return (values.view(np.int64) if values.itemsize == 8 else values), *_NO_RAW
    found, lengths, raw = tokens.split_tokens(values.astype(np.uint64), split)
    used = np.flatnonzero(lengths)
    return found, lengths[used], raw[used]


def _join(found: npt.NDArray[np.integer], way: tuple[int, int, bool], offset: int, raw: RawReader) -> Integers:
    """Numbers from tokens, `offset` added to their natural ones. `way` is (largest token, split, signed)."""
    top, split, signed = way
    every = np.arange(top + 1)
    if top < 1 << split:
        return _integers((every + offset).astype(np.int32), signed).take(found)
    lengths = tokens.raw_length(every, split)
    dtype = np.dtype(np.int32 if lengths[-1] < _NARROW else np.int64)
    lowest = (tokens.join_tokens(every, np.zeros(top + 1, np.uint64), split).view(np.int64) + offset).astype(dtype)
    values = _integers(lowest, signed).take(found)
    at = np.flatnonzero(lengths.astype(bool).take(found))
    if len(at):
        chosen = found[at]
        values[at] = _integers(lowest.take(chosen) + raw(lengths.take(chosen)).view(np.int64).astype(dtype), signed)
    return values


def _integers(values: Integers, signed: bool) -> Integers:
    """The inverse of `natural`."""
    if not signed:
        return values
    if values.itemsize == 8:
        return tokens.unzigzag(values.view(np.uint64))
    return (values >> 1) ^ -(values & 1)


def _tuples(values: Integers, way: Way) -> Coded | None:
    return code_tuples(split_naturals(natural(values, way.signed), way.split), way)


def code_tuples(values: Split, way: Way) -> Coded | None:
    """A sequence, its naturals being split as the way says, in one way of `TUPLES`."""
    found, raw_lengths, raw = values
    radix = int(found.max(initial=0)) + 1
    if radix**way.extent > huffman.LARGEST_ALPHABET:
        return None
    if way.extent > 1:
        padded = np.zeros(-(-len(found) // way.extent) * way.extent, np.uint16)
        padded[: len(found)] = found
        columns = padded.reshape(-1, way.extent)
        found = columns[:, -1].copy()
        for place in range(way.extent - 2, -1, -1):
            found *= np.uint16(radix)
            found += columns[:, place]
    return Coded(Way(TUPLES, way.signed, way.split, way.extent, radix), found, raw_lengths, raw)


def _untuples(way: Way, count: int, symbols: I64, raw: RawReader) -> Integers:
    if way.extent == 1:
        return _join(symbols, (way.radix - 1, way.split, way.signed), 0, raw)
    every = np.arange(way.alphabet)[:, np.newaxis] // way.radix ** np.arange(way.extent) % way.radix
    if count % way.extent and every[symbols[-1], count % way.extent :].any():
        raise CodecError("the last symbol of a sequence goes beyond its end: the blob is damaged")
    if way.radix <= 1 << way.split:
        table = _integers(every.astype(np.int32), way.signed)
        return table.take(symbols, axis=0).reshape(-1)[:count]
    found = every.take(symbols, axis=0).reshape(-1)[:count]
    return _join(found, (way.radix - 1, way.split, way.signed), 0, raw)


def runs(values: Integers) -> tuple[I64, Integers]:
    """The run of zeros before each value that is not zero, and these values."""
    at = np.flatnonzero(values)
    return np.diff(at, prepend=-1) - 1, values[at]


def ends(values: Integers, signed: bool) -> npt.NDArray[np.integer]:
    """The values that end runs as natural numbers: none of them is 0, so these begin at 0."""
    naturals = natural(values, signed)
    return naturals - naturals.dtype.type(1)


def code_runs(gaps: Split, values: Split, way: Way) -> Coded | None:
    """What `runs` gave, split as the way says, in one way of `RUNS`."""
    gap_tokens, gap_lengths, gap_raw = gaps
    found, raw_lengths, raw = values
    radix, longest = int(found.max(initial=0)) + 1, int(gap_tokens.max(initial=0)) + 1
    if radix * longest > huffman.LARGEST_ALPHABET:
        return None
    symbols = gap_tokens * radix + found.astype(np.int64)
    return Coded(
        Way(RUNS, way.signed, way.split, way.extent, radix, longest, len(symbols)), symbols,
        np.concatenate([gap_lengths, raw_lengths]), np.concatenate([gap_raw, raw]),
    )  # fmt: skip


def _runs(values: Integers, way: Way) -> Coded | None:
    gaps, nonzeros = runs(values)
    return code_runs(split_naturals(gaps, way.extent), split_naturals(ends(nonzeros, way.signed), way.split), way)


def _unruns(way: Way, count: int, symbols: I64, raw: RawReader) -> Integers:
    every = np.arange(way.alphabet)
    if _raw_bits(way.runs - 1, way.extent) > _LONGEST_RUN:
        raise CodecError("a run of zeros is longer than any sequence: the blob is damaged")
    gaps = _join((every // way.radix).take(symbols), (way.runs - 1, way.extent, False), 0, raw)
    found = _join((every % way.radix).take(symbols), (way.radix - 1, way.split, way.signed), 1, raw)
    # The sum is checked in floats first: it cannot wrap there, and below 2**52 it is exact.
    if gaps.sum(dtype=np.float64) + len(gaps) > count:
        raise CodecError("runs of zeros go beyond the end of their sequence: the blob is damaged")
    values = np.zeros(count, way.dtype)
    values[np.cumsum(gaps + 1, dtype=np.int64) - 1] = found
    return values


def _raw_bits(token: int, split: int) -> int:
    return int(tokens.raw_length(np.array([token]), split)[0])


@dataclass(frozen=True)
class Mode:
    """A way's two directions. `encode` gives None where symbols would be too many for one code."""

    encode: Callable[[Integers, Way], Coded | None]
    decode: Callable[[Way, int, I64, RawReader], Integers]


TUPLES, RUNS = 0, 1
#: By the number that stands in the blob. Numbers are never reused.
MODES: dict[int, Mode] = {TUPLES: Mode(_tuples, _untuples), RUNS: Mode(_runs, _unruns)}


def decode(way: Way, count: int, symbols: I64, raw: RawReader) -> Integers:
    """The `count` values of a sequence."""
    values = MODES[way.mode].decode(way, count, symbols, raw)
    if not way.base:
        return values
    if values.itemsize == 8 or abs(way.base) >= 1 << _NARROW:
        return values.astype(np.int64, copy=False) + np.int64(way.base)
    return values + np.int32(way.base)


def write_way(head: BitWriter, way: Way) -> None:
    """Write the way, its radix, and for runs how many there are."""
    head.signed(way.base)
    head.number(way.mode, 1)
    head.bits(way.signed, 1)
    head.bits(way.split - 1, 3)
    head.bits(way.extent - 1, 2)
    head.number(way.radix - 1, 2)
    if way.mode == RUNS:
        head.number(way.runs - 1, 2)
        head.number(way.symbols, 6)


def read_base(head: BitReader) -> int:
    """A number that is added to others of 64 bits."""
    base = head.signed()
    if not -(2**63) <= base < 2**63:
        raise CodecError("a base does not fit 64 bits: the blob is damaged")
    return base


def read_way(head: BitReader, largest: int) -> Way:
    """The inverse of `write_way`; no sequence has more than `largest` symbols."""
    base = read_base(head)
    mode = head.number(1)
    if mode not in MODES:
        raise CodecError(f"coding mode {mode} is not known here: a newer version wrote this blob; update this side")
    signed, split, extent = bool(head.bits(1)), head.bits(3) + 1, head.bits(2) + 1
    radix = head.number(2, largest=tokens.token_count(split) - 1) + 1
    runs, symbols = 1, 0
    if mode == RUNS:
        runs = head.number(2, largest=tokens.token_count(extent) - 1) + 1
        symbols = head.number(6, largest=largest)
    way = Way(mode, signed, split, extent, radix, runs, symbols, base)
    if way.alphabet > huffman.LARGEST_ALPHABET:
        raise CodecError(
            f"an alphabet of {way.alphabet} symbols, and {huffman.LARGEST_ALPHABET} are most: the blob is damaged"
        )
    return way
