"""What a training process will hold, item by item: the model of cost for memory. Pure arithmetic.

Strategy: everything of size has its place before training starts, so the most that is resident at once is a sum:
what a process has before it trains (measured once per machine in a fresh process), the arrays of the trainer, the
buffer between sessions, the arena inside them (computed by repeating what the runtime's allocator does), and the
sessions themselves (measured per node). A trial run corrects the sum where it is wrong by what it measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from .lifetimes import ALIGNMENT

#: Of a session: a fixed part, and one per node (its kernel, names and types). Measured, linear from 8 to 928 nodes.
SESSION_BYTES, OPERATOR_BYTES = 45_000, 5_300
#: The arena's own book-keeping: 8 bytes for each 256.
ARENA_BOOKS = 32
#: Program text that a first step touches beyond the baseline's, and temporaries of optimizer and batches.
STEP_BYTES = 3 * 2**20
#: Program text that sessions of quantized models touch besides. Measured, the same from 250 to 1,800 nodes.
QUANTIZED_BYTES = 6 * 2**20


class Footprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Resident bytes of a process that trains, by what they are for."""

    baseline: int = 0
    weights: int = 0
    optimizer: int = 0
    #: Gradients that are held until a whole batch has passed; 0 where each is applied as it arrives.
    gradients: int = 0
    #: One micro-batch of inputs and targets.
    inputs: int = 0
    #: Between sessions: tensors that cross cuts, their gradients, and those of weights.
    exchange: int = 0
    #: Inside the largest session.
    arena: int = 0
    sessions: int = 0
    #: Program text and temporaries of a step.
    step: int = 0
    #: What the caller needs besides.
    reserve: int = 0
    #: What a trial run measured beyond the sum of the others (or below it).
    correction: int = 0

    @property
    def total(self) -> int:
        """The most that is resident at once."""
        return sum(getattr(self, name) for name in self.__struct_fields__)

    def rows(self) -> list[tuple[str, int]]:
        """(what, bytes) for people, what is nothing left out."""
        names = {
            "baseline": "interpreter and libraries",
            "weights": "weights",
            "optimizer": "optimizer state",
            "gradients": "gradients of a batch",
            "inputs": "inputs and targets",
            "exchange": "between sessions",
            "arena": "inside sessions",
            "sessions": "the sessions themselves",
            "step": "program text and temporaries",
            "reserve": "reserved by the caller",
            "correction": "found by the trial run",
        }
        return [(text, getattr(self, name)) for name, text in names.items() if getattr(self, name)]


def arena_resident(size: int) -> int:
    """Resident bytes of an arena of which `size` bytes are used."""
    return size + size // ARENA_BOOKS


def session_bytes(operators: int, model: int) -> int:
    """Resident bytes of a session of so many nodes, made from so many bytes of model (its constants among them)."""
    return SESSION_BYTES + OPERATOR_BYTES * operators + model


def flat_bytes(shapes: list[tuple[int, ...]]) -> int:
    """Bytes of float32 tensors of these shapes in one flat array."""
    return aligned_bytes(4 * math.prod(shape) for shape in shapes)


def aligned_bytes(sizes: Iterable[int]) -> int:
    """Bytes of arrays of these sizes, each on a cache line."""
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
