"""Random graphs of operators, in ONNX and in PyTorch at once, and the comparison of their gradients.

Strategy: a graph grows step by step from tensors of a pool; a step is drawn from a table, and draws its own settings
from what the shapes allow. Tensors are read again later (shared), weights broadcast, and every tensor that nothing
reads is an output that sends a gradient back. Steps keep values moderate, so that single precision stays meaningful.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st

from sanderling.engine import onnxio
from sanderling.engine.checker import pull_back
from sanderling.engine.graph import Builder, TensorType

Array = npt.NDArray[Any]
F = torch.nn.functional
_LARGEST = 600


class Drawing:
    """A graph while it is drawn: pool of tensors with shapes, nodes, and the same as a PyTorch program."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self._draw = draw
        self.builder = Builder("n")
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.program: list[tuple[Callable[..., Any], tuple[str, ...], tuple[str, ...]]] = []
        self.used: set[str] = set()

    def pick(self, options: Sequence[Any]) -> Any:
        """One of these."""
        return self._draw(st.sampled_from(list(options)))

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self._draw(st.integers(low, high)))

    def leaf(self, *shape: int) -> str:
        """A new input that gradients are compared for."""
        name = f"w{len(self.inputs)}"
        self.inputs[name] = self.shapes[name] = shape
        return name

    def ints(self, *values: int) -> str:
        """A constant."""
        return self.builder.ints(*values)

    def emit(self, function: Callable[..., Any], op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Append a node and what it is in PyTorch, a function of the inputs in the pool; the first output."""
        names = self.builder.multi(op, inputs, outputs, **attributes)
        read = tuple(dict.fromkeys(i for i in inputs if i in self.shapes))
        self.used.update(read)
        self.program.append((function, read, names))
        results = function(*(torch.zeros(self.shapes[i]) for i in read))
        for name, result in zip(names, results if isinstance(results, tuple) else (results,), strict=True):
            self.shapes[name] = tuple(result.shape)
        return names[0]


Step = Callable[[Drawing, str, tuple[int, ...]], None]

_UNARY: dict[str, Callable[[Any], Any]] = {
    "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": torch.relu, "Elu": F.elu, "Softplus": F.softplus,
    "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos, "Abs": torch.abs, "Neg": torch.neg, "Atan": torch.atan,
    "HardSwish": F.hardswish, "LeakyRelu": F.leaky_relu, "Softsign": F.softsign, "Mish": F.mish, "Selu": F.selu,
    "Celu": F.celu,
}  # fmt: skip


def _unary(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    op = d.pick(sorted(_UNARY))
    d.emit(_UNARY[op], op, x)


def _binary(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    op, function = d.pick(
        [("Add", torch.add), ("Sub", torch.sub), ("Mul", torch.mul), ("Max", torch.maximum), ("Min", torch.minimum)]
    )
    fitting = [n for n, s in d.shapes.items() if _fits(s, shape)]
    if fitting and d.number(0, 1):
        other = d.pick(fitting)
    else:
        other = d.leaf(*(1 if d.number(0, 2) == 0 else n for n in shape[d.number(0, len(shape)) :]))
    pair = (x, other) if d.number(0, 1) else (other, x)
    d.emit((lambda a: function(a, a)) if pair[0] == pair[1] else function, op, *pair)


def _fits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes broadcast, and not to something large."""
    try:
        return int(np.prod(np.broadcast_shapes(a, b))) <= _LARGEST
    except ValueError:
        return False


def _quotient(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    below = d.emit(lambda t: 1 + t, "Add", d.emit(lambda t: t * t, "Mul", x, x), d.builder.scalar(1))
    d.emit(torch.div, "Div", d.leaf(*shape), below)


def _reduce(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    axes = sorted({d.number(0, len(shape) - 1) for _ in range(d.number(1, 2))})
    keep = bool(d.number(0, 1))
    op, function = d.pick(
        [
            ("ReduceSum", lambda t: t.sum(axes, keep)), ("ReduceMean", lambda t: t.mean(axes, keep)),
            ("ReduceMax", lambda t: t.amax(axes, keep)), ("ReduceMin", lambda t: t.amin(axes, keep)),
            ("ReduceLogSumExp", lambda t: t.logsumexp(axes, keep)),
            ("ReduceSumSquare", lambda t: (t * t).mean(axes, keep) * np.prod([shape[a] for a in axes])),
            ("ReduceL1", lambda t: t.abs().sum(axes, keep)),
        ]
    )  # fmt: skip
    d.emit(function, op, x, d.ints(*axes), keepdims=int(keep))


def _softmax(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    axis = d.number(0, len(shape) - 1)
    op, function = d.pick([("Softmax", torch.softmax), ("LogSoftmax", torch.log_softmax)])
    d.emit(lambda t: function(t, axis), op, x, axis=axis)


def _instance(x: Any, scale: Any, shift: Any) -> Any:
    """PyTorch's own refuses a single element per channel."""
    axes, channels = [*range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
    deviation = (x.var(axes, correction=0, keepdim=True) + 0.1).sqrt()
    return (x - x.mean(axes, True)) / deviation * scale.reshape(channels) + shift.reshape(channels)


def _normalize(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    if len(shape) < 3 or d.number(0, 1):
        weights = d.leaf(shape[-1]), d.leaf(shape[-1])
        d.emit(lambda t, s, b: F.layer_norm(t, shape[-1:], s, b, 0.1), "LayerNormalization", x, *weights, epsilon=0.1)
        return
    weights = d.leaf(shape[1]), d.leaf(shape[1])
    if d.number(0, 1):
        d.emit(_instance, "InstanceNormalization", x, *weights, epsilon=0.1)
        return
    mean, var = np.linspace(-1, 1, shape[1], dtype=np.float32), np.linspace(1, 2, shape[1], dtype=np.float32)
    d.emit(lambda t, s, b: F.batch_norm(t, torch.tensor(mean, dtype=t.dtype), torch.tensor(var, dtype=t.dtype), s, b),
           "BatchNormalization", x, *weights, d.builder.constant(mean), d.builder.constant(var))  # fmt: skip


def _move(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    kind = d.pick(["transpose", "reshape", "unsqueeze", "flatten"])
    if kind == "transpose":
        order = d._draw(st.permutations(range(len(shape))))
        d.emit(lambda t: t.permute(*order), "Transpose", x, perm=list(order))
    elif kind == "reshape" and len(shape) > 1:
        at = d.number(0, len(shape) - 2)
        target = [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
        d.emit(lambda t: t.reshape(target), "Reshape", x, d.ints(*target))
    elif kind == "unsqueeze" and len(shape) < 4:
        at = d.number(0, len(shape))
        d.emit(lambda t: t.unsqueeze(at), "Unsqueeze", x, d.ints(at))
    else:
        d.emit(lambda t: t.flatten(1) if t.ndim > 1 else t[None], "Flatten", x, axis=min(1, len(shape) - 1))


def _concat(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    axis = d.number(0, len(shape) - 1)
    fitting = [n for n, s in d.shapes.items() if len(s) == len(shape) and n != x
               and all(a == b for i, (a, b) in enumerate(zip(s, shape, strict=True)) if i != axis)]  # fmt: skip
    if fitting:
        d.emit(lambda *t: torch.cat(t, axis), "Concat", x, d.pick(fitting), axis=axis)
    else:
        d.emit(lambda t: torch.cat([t, t], axis), "Concat", x, x, axis=axis)


def _split(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    axis = d.pick([i for i, n in enumerate(shape) if n == max(shape)])
    if shape[axis] < 2:
        return
    first = d.number(1, shape[axis] - 1)
    sizes = [first, shape[axis] - first]
    d.emit(lambda t: tuple(t.split(sizes, axis)), "Split", x, d.ints(*sizes), axis=axis, outputs=2)


def _slice(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    axis = d.number(0, len(shape) - 1)
    start = d.number(0, shape[axis] - 1)
    step = d.number(1, 2)
    index = (*[slice(None)] * axis, slice(start, None, step))
    d.emit(lambda t: t[index], "Slice", x, d.ints(start), d.ints(2**40), d.ints(axis), d.ints(step))


def _pad(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    axis = len(shape) - 1
    before, behind = d.number(0, 2), d.number(0, 2)
    mode = d.pick(["constant", "reflect", "edge", "wrap"])
    if mode != "constant":
        before, behind = min(before, shape[axis] - 1), min(behind, shape[axis] - 1)
    places = None if mode == "constant" else np.pad(np.arange(shape[axis]), (before, behind), mode)
    pads = d.ints(*[0] * axis, before, *[0] * axis, behind)
    if places is None:
        d.emit(lambda t: F.pad(t, (before, behind), value=0.5), "Pad", x, pads, d.builder.scalar(0.5))
    else:
        d.emit(lambda t: t[..., torch.from_numpy(places)], "Pad", x, pads, mode=mode)


def _gather(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    axis = d.number(0, len(shape) - 1)
    places = [d.number(-shape[axis], shape[axis] - 1) for _ in range(d.number(1, 4))]
    taken = torch.tensor([p % shape[axis] for p in places])
    d.emit(lambda t: t.index_select(axis, taken), "Gather", x, d.ints(*places), axis=axis)


def _spread(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    kind = d.pick(["tile", "expand", "cumsum", "trilu", "where"])
    axis = d.number(0, len(shape) - 1)
    if kind == "tile":
        repeats = [2 if i == axis else 1 for i in range(len(shape))]
        d.emit(lambda t: t.tile(repeats), "Tile", x, d.ints(*repeats))
    elif kind == "expand" and len(shape) < 4:
        d.emit(lambda t: t.expand(2, *t.shape), "Expand", x, d.ints(2, *shape))
    elif kind == "trilu" and len(shape) > 1:
        d.emit(lambda t: t.tril(), "Trilu", x, upper=0)
    elif kind == "where":
        other = d.leaf(*shape)
        condition = d.builder.op("Greater", x, d.builder.scalar(0))
        d.emit(lambda t, o: torch.where(t > 0, t, o), "Where", condition, x, other)
    else:
        d.emit(lambda t: t.cumsum(axis), "CumSum", x, d.builder.constant(np.array(axis)))


def _product(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    kind = d.pick(["weight", "self", "gemm", "einsum"])
    wide = d.number(1, 3)
    if kind == "self" and len(shape) > 1:
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        turned = d.emit(lambda t: t.mT, "Transpose", x, perm=order)
        d.emit(torch.matmul, "MatMul", x, turned)
    elif kind == "gemm" and len(shape) == 2:
        other, bias = d.leaf(wide, shape[1]), d.leaf(wide)
        d.emit(lambda a, b, c: 0.5 * a @ b.T + c, "Gemm", x, other, bias, transB=1, alpha=0.5)
    elif kind == "einsum" and len(shape) == 3:
        other = d.leaf(shape[0], shape[2], wide)
        equation = d.pick(["bij,bjk->bik", "bij,bjk->ki", "bij,bjk->bk"])
        d.emit(lambda a, b: torch.einsum(equation, a, b), "Einsum", x, other, equation=equation)
    else:
        d.emit(torch.matmul, "MatMul", x, d.leaf(shape[-1], wide))


def _convolve(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    rank = len(shape) - 2
    if rank not in (1, 2):
        return _product(d, x, shape)
    kernel = [d.number(1, min(3, n)) for n in shape[2:]]
    stride, groups = [d.number(1, 2)] * rank, d.pick([g for g in (1, 2, shape[1]) if shape[1] % g == 0])
    pads = [d.number(0, k - 1) for k in kernel]
    wide = groups * d.number(1, 2)
    given = {"strides": stride, "pads": [*pads, *pads], "group": groups, "kernel_shape": kernel}
    if d.number(0, 2):
        conv = F.conv1d if rank == 1 else F.conv2d
        weight, bias = d.leaf(wide, shape[1] // groups, *kernel), d.leaf(wide)
        d.emit(lambda t, w, b: conv(t, w, b, stride, pads, 1, groups), "Conv", x, weight, bias, **given)
        return None
    turned = F.conv_transpose1d if rank == 1 else F.conv_transpose2d
    if any(stride[0] * (n - 1) + k - 2 * p < 1 for n, k, p in zip(shape[2:], kernel, pads, strict=True)):
        return None
    d.emit(lambda t, w: turned(t, w, None, stride, pads, 0, groups), "ConvTranspose", x,
           d.leaf(shape[1], wide // groups, *kernel), **given)  # fmt: skip
    return None


def _pool(d: Drawing, x: str, shape: tuple[int, ...]) -> None:
    rank = len(shape) - 2
    if rank not in (1, 2):
        return _reduce(d, x, shape)
    kernel, stride = [min(2, n) for n in shape[2:]], [d.number(1, 2)] * rank
    given: dict[str, Any] = {"kernel_shape": kernel, "strides": stride}
    kind = d.pick(["max", "average", "global", "resize"])
    if kind == "max":
        pool = F.max_pool1d if rank == 1 else F.max_pool2d
        d.emit(lambda t: pool(t, kernel, stride), "MaxPool", x, **given)
    elif kind == "average":
        average = F.avg_pool1d if rank == 1 else F.avg_pool2d
        d.emit(lambda t: average(t, kernel, stride), "AveragePool", x, **given)
    elif kind == "global":
        d.emit(lambda t: t.mean([*range(2, t.ndim)], True), "GlobalAveragePool", x)
    else:
        scales = d.builder.constant(np.array([1, 1, *[2] * rank], np.float32))
        d.emit(lambda t: F.interpolate(t, scale_factor=2), "Resize", x, "", scales, mode="nearest",
               coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    return None


STEPS: tuple[Step, ...] = (
    _unary, _unary, _binary, _binary, _quotient, _reduce, _softmax, _normalize, _move, _move, _concat, _split, _slice,
    _pad, _gather, _spread, _product, _product, _convolve, _convolve, _pool,
)  # fmt: skip


@st.composite
def graphs(draw: Any, steps: tuple[int, int] = (3, 10)) -> Drawing:
    """A random graph of some steps."""
    d = Drawing(draw)
    rank = d.number(2, 4)
    d.leaf(*(d.number(1, 4) for _ in range(rank)))
    for _ in range(d.number(*steps)):
        # the last tensors more often, so that graphs become deep; the others so that tensors are shared
        names = [n for n in d.shapes if len(d.shapes[n]) > 0 and np.prod(d.shapes[n]) <= _LARGEST]
        name = d.pick(names[-2:] if d.number(0, 2) else names)
        d.pick(STEPS)(d, name, d.shapes[name])
    return d


def disagreement(d: Drawing, seed: int = 0) -> tuple[float, float]:
    """The largest relative error of a gradient against PyTorch in double precision, ours and PyTorch's in single.

    Relative to the largest element of each input's gradient; where that is zero, to the graph's largest.
    """
    rng = np.random.default_rng(seed)
    values = {n: np.asarray(0.7 * rng.standard_normal(s), np.float32) for n, s in d.inputs.items()}
    made = [n for _, _, names in d.program for n in names]
    outputs = [n for n in made if n not in d.used]
    seeds = {o: np.asarray(rng.standard_normal(d.shapes[o]), np.float32) for o in outputs}
    kinds = {n: TensorType("float32", s) for n, s in d.inputs.items()}
    model = onnxio.to_bytes(d.builder.nodes, kinds, dict.fromkeys(outputs), d.builder.constants, 18)
    proto, name = onnxio.load_model(model)
    graph = onnxio.to_graph(proto, None, frozenset(), name)
    ours = pull_back(graph, values, seeds, list(values))
    single, double = (_torch(d, values, seeds, kind) for kind in (torch.float32, torch.float64))
    errors = [0.0, 0.0]
    largest = max(float(np.abs(t).max(initial=0)) for t in double.values())
    for leaf, truth in double.items():
        scale = float(np.abs(truth).max(initial=0))
        if scale <= 1e-10 * largest:
            scale = largest or 1.0  # zero but for rounding
        given = ours.get(leaf, np.zeros(truth.shape))
        for i, value in enumerate((given, single[leaf])):
            errors[i] = max(errors[i], float(np.abs(value - truth).max()) / scale) if truth.size else errors[i]
    return errors[0], errors[1]


def _torch(d: Drawing, values: dict[str, Array], seeds: dict[str, Array], kind: torch.dtype) -> dict[str, Array]:
    tensors: dict[str, Any] = {n: torch.tensor(v, dtype=kind, requires_grad=True) for n, v in values.items()}
    leaves = dict(tensors)
    for function, read, names in d.program:
        results = function(*(tensors[i] for i in read))
        tensors.update(zip(names, results if isinstance(results, tuple) else (results,), strict=True))
    total = sum((tensors[o] * torch.tensor(s, dtype=kind)).sum() for o, s in seeds.items())
    if not isinstance(total, torch.Tensor) or not total.requires_grad:
        return {n: np.zeros(v.shape) for n, v in values.items()}
    total.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    return {n: np.zeros(t.shape) if t.grad is None else t.grad.numpy() for n, t in leaves.items()}
