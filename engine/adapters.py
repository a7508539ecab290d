"""Low-rank adapters: a frozen weight W becomes W + s (product of two thin matrices), and only these are trained.

Strategy: beside the operator that reads W, two operators of the same kind go through `rank` channels and add to its
result, so neither the sum nor its gradient is ever a full matrix: a matrix product becomes two, a convolution one to
`rank` channels with the same window and a 1x1 one back. The first factor begins with small noise, the second with
zeros, so training begins at the model as it is. For export the product is added to W: the model keeps its structure.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021). Needs no `onnx`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import EngineError
from .graph import Graph, Node, TensorType
from .plan import Adapter

FloatArray = npt.NDArray[np.float32]
#: Numbers that are merged at once.
_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Wish:
    """What `compile(adapters=...)` asks for. `target`: patterns of weights, or None for all that shrink."""

    rank: int = 4
    alpha: float = 8.0
    target: tuple[str, ...] | None = None
    seed: int = 0


def as_wish(given: Mapping[str, Any]) -> Wish:
    """Checked options. Raises EngineError."""
    known = Wish.__dataclass_fields__
    if set(given) - set(known):
        raise EngineError(f"adapters have no option {sorted(set(given) - set(known))}; they have {sorted(known)}")
    target = given.get("target")
    patterns = (target,) if isinstance(target, str) else None if target is None else tuple(target)
    wish = replace(Wish(), **{**given, "target": patterns})
    if not (isinstance(wish.rank, int) and wish.rank >= 1 and math.isfinite(wish.alpha) and wish.alpha > 0):
        raise EngineError(
            f"adapters: rank={wish.rank} must be a whole number of at least 1, alpha={wish.alpha} above 0"
        )
    return wish


def find(graph: Graph, weights: Sequence[str], wish: Wish) -> list[Adapter]:
    """The adapters that a wish means for a graph. Raises EngineError when there are none."""
    able = _able(graph, weights)
    if wish.target is None:
        chosen = [w for w in able if _thin(graph.types[w].shape, wish.rank)]
    else:
        for pattern in wish.target:
            if not any(fnmatchcase(w, pattern) for w in able):
                raise EngineError(
                    f"adapters: no weight that can have one matches {pattern!r}; these can: "
                    f"{', '.join(able) or 'none'} (matrices of Gemm and MatMul, filters of Conv with one group)"
                )
        chosen = [w for w in able if any(fnmatchcase(w, p) for p in wish.target)]
    if not chosen:
        raise EngineError(f"adapters of rank {wish.rank} would be no smaller than any weight; lower the rank")
    scale = wish.alpha / wish.rank
    return [
        Adapter(w, f"{w}/adapter.down", f"{w}/adapter.up", wish.rank, scale, able[w], wish.seed) for w in chosen
    ]  # fmt: skip


def _thin(shape: Sequence[int], rank: int) -> bool:
    inside, outside = math.prod(shape[1:]), shape[0]
    return rank * (inside + outside) < inside * outside


def _origins(graph: Graph, weights: Collection[str]) -> dict[str, tuple[str, bool]]:
    """{tensor: (the weight that it is, whether it is turned)}, seen through Identity and Transpose of matrices."""
    found = {w: (w, False) for w in weights}
    for node in graph.nodes:
        if not node.inputs or node.inputs[0] not in found or node.domain not in ("", "ai.onnx"):
            continue
        weight, turned = found[node.inputs[0]]
        if node.op == "Identity":
            found[node.outputs[0]] = weight, turned
        elif node.op == "Transpose" and list(node.attributes.get("perm", [1, 0])) == [1, 0]:
            found[node.outputs[0]] = weight, not turned
    return found


def _able(graph: Graph, weights: Sequence[str]) -> dict[str, bool]:
    """{weight that may have an adapter: whether it is [in, out]}: all its readers are of a kind that we know."""
    origins = _origins(graph, weights)
    found: dict[str, set[bool | None]] = {}
    for node in graph.nodes:
        if node.outputs[0] in origins:
            continue
        for slot, name in enumerate(node.inputs):
            if name in origins:
                weight, turned = origins[name]
                rows = _rows(graph, node, turned) if slot == 1 and node.domain in ("", "ai.onnx") else None
                found.setdefault(weight, set()).add(rows)
    sure = {w: kinds.pop() for w, kinds in found.items() if len(kinds) == 1}
    return {w: rows for w in weights if (rows := sure.get(w)) is not None}


def _rows(graph: Graph, node: Node, turned: bool) -> bool | None:
    """Whether the weight that is the second input of a node is [in, out]; None where it can have no adapter."""
    ranks = [len(graph.types[i].shape) for i in node.inputs[:2]]
    if node.op == "Conv" and node.attributes.get("group", 1) == 1 and not turned:
        return False
    if node.op == "MatMul" and ranks[0] >= 2 and ranks[1] == 2:
        return not turned
    if node.op == "Gemm" and not node.attributes.get("transA", 0):
        return turned == bool(node.attributes.get("transB", 0))
    return None


def shapes(adapter: Adapter, weight: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the two factors of a weight of this shape."""
    if adapter.rows:
        return {adapter.down: (weight[0], adapter.rank), adapter.up: (adapter.rank, weight[1])}
    ones = (1,) * (len(weight) - 2)
    return {adapter.down: (adapter.rank, *weight[1:]), adapter.up: (weight[0], adapter.rank, *ones)}


def initial(adapter: Adapter, weight: Sequence[int]) -> dict[str, FloatArray]:
    """The factors that training begins with: uniform noise of variance 1/(3 in), and zeros."""
    both = shapes(adapter, weight)
    wide = weight[0] if adapter.rows else math.prod(weight[1:])
    count = math.prod(both[adapter.down])
    noise = _noise(count, adapter.seed, adapter.weight) / np.float32(math.sqrt(wide))
    return {adapter.down: noise.reshape(both[adapter.down]), adapter.up: np.zeros(both[adapter.up], np.float32)}


def _noise(count: int, seed: int, name: str) -> FloatArray:
    """Uniform numbers from -1 to 1 for a seed and a name, the same with every version of numpy.

    Importing numpy's generators takes 6 MB, which training under a limit can do without. SplitMix64 instead: Steele,
    Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    start = (seed * 0x9E3779B97F4A7C15 + (zlib.crc32(name.encode()) << 32)) % (1 << 64)
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
    z += np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def insert(graph: Graph, adapters: Sequence[Adapter]) -> None:
    """Write the adapters into a graph, their factors as constants beside the weights."""
    by_weight = {a.weight: a for a in adapters}
    for adapter in adapters:
        for name, value in initial(adapter, graph.types[adapter.weight].shape).items():
            graph.constants[name] = value
            graph.types[name] = TensorType("float32", value.shape)
    origins = _origins(graph, list(by_weight))
    nodes: list[Node] = []
    for node in graph.nodes:
        weight, turned = origins.get(node.inputs[1], ("", False)) if len(node.inputs) > 1 else ("", False)
        nodes += [node] if not weight else _beside(graph, node, by_weight[weight], turned)
    graph.nodes = nodes


def _beside(graph: Graph, node: Node, adapter: Adapter, turned: bool) -> list[Node]:
    """The operator with its adapter added to its result."""
    result = node.outputs[0]
    shape = graph.types[result].shape
    nodes: list[Node] = []

    def add(op: str, inputs: Sequence[str], kind: tuple[int, ...], name: str, **attributes: Any) -> str:
        made = f"{result}/adapter.{name}" if name else result
        graph.types[made] = TensorType("float32", kind)
        nodes.append(Node(op, tuple(inputs), (made,), attributes, f"{result}/adapter_{name or op}"))
        return made

    x, down, up = node.inputs[0], adapter.down, adapter.up
    if turned:
        for factor in (down, up):
            kind = graph.types[factor].shape[::-1]
            made = add("Transpose", [factor], kind, "turned" if factor == down else "turned back", perm=[1, 0])
            down, up = (made, up) if factor == down else (down, made)
    base = f"{result}/adapter.base"
    graph.types[base] = graph.types[result]
    nodes.append(replace(node, outputs=(base, *node.outputs[1:])))
    if node.op == "Gemm":
        across = node.attributes.get("transB", 0)
        low = add("Gemm", [x, down], (shape[0], adapter.rank), "low", transB=across)
        factor = adapter.scale * node.attributes.get("alpha", 1.0)
        add("Gemm", [low, up, base], shape, "", alpha=factor, beta=1.0, transB=across)
        return nodes
    scale = f"{adapter.weight}/adapter.scale"
    graph.constants[scale] = np.array(adapter.scale, np.float32)
    graph.types[scale] = TensorType("float32", ())
    if node.op == "Conv":
        kind = (shape[0], adapter.rank, *shape[2:])
        low = add("Mul", [add("Conv", [x, down], kind, "low", **node.attributes), scale], kind, "scaled")
        high = add("Conv", [low, up], shape, "high", kernel_shape=[1] * (len(shape) - 2))
    else:
        kind = (*shape[:-1], adapter.rank)
        low = add("Mul", [add("MatMul", [x, down], kind, "low"), scale], kind, "scaled")
        high = add("MatMul", [low, up], shape, "high")
    add("Add", [base, high], shape, "")
    return nodes


@dataclass(frozen=True, slots=True)
class Adapted:
    """A weight with its adapter added in, computed in rows so that it never lies in memory whole."""

    weight: FloatArray
    down: FloatArray
    up: FloatArray
    adapter: Adapter

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.weight.shape

    def rows(self) -> Iterator[FloatArray]:
        """Its rows, some at a time."""
        wide = math.prod(self.shape[1:])
        step = max(1, _ROWS // wide)
        left, right = (self.down, self.up) if self.adapter.rows else (self.up, self.down)
        left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
        for start in range(0, len(left), step):
            # not by the library of matrix routines, whose buffers alone may be more than a limit leaves
            product = np.einsum("or,ri->oi", left[start : start + step], right, optimize=False)
            product *= np.float32(self.adapter.scale)
            product += self.weight[start : start + step].reshape(product.shape)
            yield product

    def whole(self) -> FloatArray:
        """All of it."""
        return np.concatenate(list(self.rows())).reshape(self.shape)


class Merged(Mapping[str, Any]):
    """The weights of the model itself; one with an adapter is an `Adapted`."""

    def __init__(self, weights: Mapping[str, Any], adapters: Sequence[Adapter]) -> None:
        self._weights = weights
        self._adapters = {a.weight: a for a in adapters}
        self._hidden = {n for a in adapters for n in (a.down, a.up)}

    def __getitem__(self, name: str) -> Any:
        if name in self._hidden:
            raise KeyError(name)
        adapter = self._adapters.get(name)
        if adapter is None:
            return self._weights[name]
        return Adapted(self._weights[name], self._weights[adapter.down], self._weights[adapter.up], adapter)

    def __iter__(self) -> Iterator[str]:
        return (n for n in self._weights if n not in self._hidden)

    def __len__(self) -> int:
        return len(self._weights) - len(self._hidden)
