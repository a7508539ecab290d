"""One session of a training step: written as a model, with how far it reaches into its arena.

Strategy: whatever of the given nodes the outputs need is kept, lowered to what the runtime is to run (`passes/`),
and serialized. The order of the nodes is the order in which they run, so their lifetimes are known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import onnxio
from .costs import SESSION, total_seconds
from .graph import Array, Graph, Node, TensorType
from .kernels import work
from .lifetimes import ARENA_ROUNDING, Work, arena_bytes, fits, trace
from .passes import lower
from .plan import GRADIENT
from .rules import QUANTIZERS


@dataclass(frozen=True, slots=True)
class Step:
    """One session of a training step."""

    kind: str
    segment: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    model: bytes
    #: The smallest arena for the session, in bytes: what it allocates beyond what it reads and writes.
    workspace: int
    #: Bytes alive in the arena while each node runs.
    alive: tuple[int, ...]
    operators: int
    #: Predicted time of one run.
    seconds: float
    #: Types of all that is read or written.
    kinds: tuple[tuple[str, TensorType], ...]
    #: Its nodes as far as memory is concerned, the bytes of its tensors, and the names of those that lie elsewhere.
    works: tuple[Work, ...]
    sizes: Mapping[str, int]
    external: frozenset[str]

    def fits(self, arena: int) -> bool:
        """Whether the session runs in an arena of so many bytes."""
        return fits(self.works, self.sizes, self.external, arena)


@dataclass(slots=True)
class StepWriter:
    """Writes steps over one graph. `types` has all tensors that steps exchange, those of the graph among them."""

    graph: Graph
    weights: frozenset[str]
    block: int
    threads: int
    types: dict[str, TensorType] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()
    #: Tensors of the graph that steps exchange in the runtime's blocked layout; their gradients are exchanged so too.
    blocked: set[str] = field(default_factory=set)

    #: Whether forms of weights are made again for each reader rather than kept.
    lean: bool = False

    def __post_init__(self) -> None:
        self.types = dict(self.graph.types)
        if any(node.op in QUANTIZERS for node in self.graph.nodes):
            # the last bit of a sum may turn a rounding, and with it all that follows: the forward pass of a quantized
            # model is computed as its runtime does
            self.exact = frozenset(o for node in self.graph.nodes for o in node.outputs if o)

    def write(
        self,
        kind: str,
        segment: int,
        nodes: Sequence[Node],
        outputs: Mapping[str, str],
        constants: Mapping[str, Array],
    ) -> Step:
        """The step that computes `outputs` ({name outside: name inside}) from whatever it needs."""
        kept = _needed(nodes, outputs)
        produced = {o for n in kept for o in n.outputs}
        known = {**self.graph.constants, **constants}
        reads = [n for n in dict.fromkeys(i for k in kept for i in k.inputs if i)
                 if n not in produced and (n not in known or n in self.weights)]  # fmt: skip
        used = {n: v for n, v in known.items() if n not in self.weights}
        results = {name: self.types[name] for name in outputs}
        plain = onnxio.to_bytes(kept, {n: self.types[n] for n in reads}, results, used, self.graph.opset)
        types = onnxio.infer_types(plain) | self.types
        blocked = [n for n in (*reads, *outputs) if n.removeprefix(GRADIENT) in self.blocked]
        free = [n for n in outputs if kind == "forward" and n in self.graph.types and n not in self.graph.outputs]
        program = lower(
            kept, types, used, reads, list(outputs), self.graph.opset, self.block, self.threads, self.exact,
            blocked, free, [n for n in outputs if n.startswith(GRADIENT) and n.removeprefix(GRADIENT) in self.weights],
            self.weights.intersection(reads) if self.lean else (),
        )  # fmt: skip
        self.blocked.update(program.blocked.intersection(free))
        arguments, results = ({n: program.types[n] for n in names} for names in (reads, outputs))
        model = onnxio.to_bytes(program.nodes, arguments, results, program.constants, self.graph.opset)
        sizes = {n: t.nbytes for n, t in program.types.items()}
        external = {*reads, *outputs, *program.constants}
        works = tuple(work(n, program.types, self.threads) for n in program.nodes)
        kinds = tuple((n, program.types[n]) for n in (*reads, *outputs))
        return Step(
            kind, segment, tuple(reads), tuple(outputs), model, arena_bytes(works, sizes, external),
            tuple(trace(works, sizes, external)[1]), len(program.nodes),
            SESSION + total_seconds(program.nodes, program.types), kinds, works, sizes, frozenset(external),
        )  # fmt: skip


def _needed(nodes: Sequence[Node], outputs: Mapping[str, str]) -> list[Node]:
    """The nodes that outputs depend on, and copies for those that have another name inside."""
    produced = {o for n in nodes for o in n.outputs}
    copies = [
        Node("Identity", (inside,), (outside,), name=f"out_{outside}")
        for outside, inside in outputs.items()
        if outside != inside or inside not in produced
    ]
    alive = set(outputs)
    kept: list[Node] = []
    for node in reversed([*nodes, *copies]):
        if alive.intersection(node.outputs):
            kept.append(node)
            alive.update(i for i in node.inputs if i)
    return kept[::-1]


def shared_arena(steps: Sequence[Step]) -> int:
    """An arena that is large enough for every one of these, in bytes."""
    size = max((s.workspace for s in steps), default=0)
    while not all(s.fits(size) for s in steps):  # more room may be worse: other pieces become the smallest that fit
        size += ARENA_ROUNDING * max(1, size // (64 * ARENA_ROUNDING))
    return size
