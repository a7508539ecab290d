"""Runs the passes and checks what each leaves behind.

A program is whole when every tensor is made once and before it is read, every output is made, nothing is read that
neither arrives, nor is a constant, nor is made, and every tensor has a type.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from ..errors import EngineError
from ..graph import Array, Node, TensorType
from . import (
    activations,
    blocks,
    broadcasts,
    common,
    dead,
    dequantize,
    fold,
    functions,
    leaving,
    masks,
    maxima,
    noops,
    pieces,
    plain,
    products,
    rederive,
)
from .program import Program

#: A pass changes a program and says whether it did.
Pass = Callable[[Program], bool]

_CLEAN: tuple[tuple[str, Pass], ...] = (
    ("no-ops", noops.remove),
    ("constants", fold.fold),
    ("common subexpressions", common.merge),
    ("dead code", dead.remove),
)
_PASSES: tuple[tuple[str, Pass], ...] = (
    *_CLEAN,
    ("pieces", pieces.join),
    ("broadcasts", broadcasts.absorb_expands),
    ("products", products.absorb_transposes),
    ("blocked layout", blocks.lay_out),
    *_CLEAN,
    ("activations", activations.absorb),
    ("plain convolutions", plain.expand),
    ("plain maxima", maxima.expand),
    *_CLEAN,
    ("products", products.absorb_transposes),
    *_CLEAN,
    ("results", leaving.drop_reshapes),
    # the order of nodes, last: equal nodes stay apart from here on
    ("functions", functions.write_out),
    ("masks", masks.hoist),
    ("dequantized again", dequantize.again),
    ("forms of weights", rederive.rederive),
)


def lower(
    nodes: Sequence[Node],
    types: Mapping[str, TensorType],
    constants: Mapping[str, Array],
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    block: int = 0,
    threads: int = 1,
    exact: frozenset[str] = frozenset(),
    blocked: Collection[str] = (),
    free: Collection[str] = (),
    loose: Collection[str] = (),
    lean: Collection[str] = (),
) -> Program:
    """The program that computes what `nodes` do, as the runtime is to run it.

    `types` covers what is known; the result has the type of every tensor that has one. `exact` tensors keep the bits
    that their operators give as they are written. `blocked` inputs arrive in blocks and `blocked` outputs leave so;
    `free` outputs leave so where that is how they are made (the program's `blocked` says). `loose` outputs leave
    in any shape of their size (`types` says). Forms of `lean` inputs are made again for each reader. Raises EngineError
    when a pass leaves something incomplete behind (a defect of this package).
    """
    program = Program(
        list(nodes), dict(types), dict(constants), tuple(inputs), tuple(outputs), opset, block, threads, exact,
        frozenset(blocked), frozenset(free), frozenset(loose), frozenset(lean),
    )  # fmt: skip
    for name, value in constants.items():
        program.types.setdefault(name, TensorType(value.dtype.name, value.shape))
    untyped = check(program, "the rules", None)
    for name, change in _PASSES:
        if change(program):
            check(program, f"pass {name!r}", untyped)
    return program


def check(program: Program, author: str, untyped: frozenset[str] | None) -> frozenset[str]:
    """Raise EngineError for a program that is not whole; returns its tensors without type.

    `untyped`: those that may lack one because inference found none; None when checking what arrived.
    """
    known = {*program.inputs, *program.constants, ""}
    without: set[str] = set()
    for node in program.nodes:
        for name in node.inputs:
            if name not in known:
                raise EngineError(f"{author} left {node.op} {node.name!r} reading {name!r} before it is made")
        for name in node.outputs:
            if name in known and name:
                raise EngineError(f"{author} left {name!r} made twice, by {node.op} {node.name!r}")
            if name and name not in program.types:
                without.add(name)
        known.update(node.outputs)
    lost = [name for name in program.outputs if name not in known]
    if lost:
        raise EngineError(f"{author} left the output {lost[0]!r} unmade")
    if untyped is not None and not without <= untyped:
        raise EngineError(f"{author} left {min(without - untyped)!r} without a type")
    return frozenset(without)
