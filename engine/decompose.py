"""Operators that are written out in others when a model is read, so that they need no rule of their own.

Strategy: a table from (domain, operator) to a function that appends nodes to a `Rewriter` and returns whether it could:
some need types or values that shape inference has not found yet, and are asked again later. What a function writes are
operators of opset 18. The file that is exported keeps the operators that the model came with. Here are those of the
standard that exporters write; `contrib.py` has the ones that onnxruntime's own optimizer writes into files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import helper

from .errors import UnsupportedOperatorError
from .graph import Array, TensorType

_FLOAT = 1


class Rewriter:
    """One node while others are written in its place."""

    def __init__(
        self, node: onnx.NodeProto, types: Mapping[str, TensorType], value: Callable[[str], Array | None],
        makers: Mapping[str, onnx.NodeProto], prefix: str, source: str,
    ) -> None:  # fmt: skip
        self.node = node
        self.types = types
        self.makers = makers
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self._value, self._prefix, self._source = value, prefix, source

    def x(self, index: int = 0) -> str:
        """An input, or the empty name where it is not given."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def known(self, *indices: int) -> bool:
        """Whether the types of these inputs are known."""
        return all(self.x(i) in self.types for i in indices)

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an input."""
        return self.types[self.x(index)].shape

    def value(self, name: str) -> Array | None:
        """The value of a constant."""
        return self._value(name)

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute of the node."""
        for given in self.node.attribute:
            if given.name == name:
                value = helper.get_attribute_value(given)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def op(self, op: str, *inputs: str, output: int | None = None, **attributes: Any) -> str:
        """Append a node; its output. `output`: it takes the place of this output of the node."""
        return self.multi(op, inputs, [self.node.output[output] if output is not None else None], **attributes)[0]

    def multi(self, op: str, inputs: Sequence[str], outputs: Sequence[str | None], **attributes: Any) -> list[str]:
        """Append a node with these outputs; None is a new name."""
        stem = f"{self._prefix}{len(self.nodes)}"
        names = [f"{stem}.{i}" if o is None else o for i, o in enumerate(outputs)]
        called = f"{self.node.name or stem}/{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), names, name=called, **attributes))
        return names

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant."""
        name = f"{self._prefix}c{len(self.constants)}"
        self.constants[name] = np.array(value, dtype)
        return name

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(values, np.int64)

    def reshape(self, tensor: str, *shape: int) -> str:
        """Append a Reshape."""
        return self.op("Reshape", tensor, self.ints(*shape))

    def has(self, index: int) -> bool:
        """Whether an optional output is asked for."""
        return index < len(self.node.output) and self.node.output[index] != ""

    def refuse(self, reason: str) -> NoReturn:
        """This form of the operator is not supported."""
        raise UnsupportedOperatorError(self.node.op_type, self.node.name, self._source, reason)


Rewrite = Callable[[Rewriter], bool]
#: (domain, operator) -> how it is written out.
REWRITES: dict[tuple[str, str], Rewrite] = {}


def rewrites(*ops: str, domain: str = "") -> Callable[[Rewrite], Rewrite]:
    """Register how operators are written out."""

    def register(rule: Rewrite) -> Rewrite:
        for op in ops:
            REWRITES[domain, op] = rule
        return rule

    return register


@rewrites("CastLike")
def _(r: Rewriter) -> bool:
    if not r.known(1):
        return False
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(r.types[r.x(1)].dtype))
    r.op("Cast", r.x(), to=kind, output=0)
    return True


@rewrites("If")
def _(r: Rewriter) -> bool:
    condition = r.value(r.x())
    if condition is None:
        return False
    branch = r.attribute("then_branch" if bool(condition.reshape(-1)[0]) else "else_branch", None)
    for tensor in branch.initializer:
        r.constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
    r.nodes.extend(branch.node)
    for inner, outer in zip(branch.output, r.node.output, strict=True):
        r.nodes.append(helper.make_node("Identity", [inner.name], [outer], name=f"{r.node.name}/{outer}"))
    return True


@rewrites("SequenceAt")
def _(r: Rewriter) -> bool:
    maker, index = r.makers.get(r.x()), r.value(r.x(1))
    if maker is None or index is None:
        return False
    place = int(index.reshape(-1)[0])
    if maker.op_type == "SequenceConstruct":
        r.op("Identity", maker.input[place], output=0)
        return True
    source = maker.input[0]
    if maker.op_type != "SplitToSequence" or source not in r.types:
        return False
    settings = {a.name: helper.get_attribute_value(a) for a in maker.attribute}
    axis = settings.get("axis", 0)
    length = r.types[source].shape[axis]
    given = len(maker.input) > 1 and maker.input[1] != ""
    sizes = r.value(maker.input[1]) if given else np.array(1)
    if sizes is None:
        return False
    step = int(sizes.reshape(-1)[0])
    ends = np.cumsum(sizes) if sizes.ndim else np.minimum(np.arange(step, length + step, step), length)
    bounds = [0, *(int(e) for e in ends)]
    place %= len(bounds) - 1
    part = r.op("Slice", source, r.ints(bounds[place]), r.ints(bounds[place + 1]), r.ints(axis))
    if given or settings.get("keepdims", 1):
        r.op("Identity", part, output=0)
    else:
        r.op("Squeeze", part, r.ints(axis), output=0)
    return True


@rewrites("ConcatFromSequence")
def _(r: Rewriter) -> bool:
    maker = r.makers.get(r.x())
    if maker is None or maker.op_type != "SequenceConstruct":
        return False
    axis = r.attribute("axis", 0)
    parts = list(maker.input)
    if r.attribute("new_axis", 0):
        parts = [r.op("Unsqueeze", part, r.ints(axis)) for part in parts]
    r.op("Concat", *parts, axis=axis, output=0)
    return True


@rewrites("GroupNormalization")
def _(r: Rewriter) -> bool:
    """Instance normalization over groups, then scale and shift: per group up to opset 20, per channel since."""
    if not r.known(0, 1):
        return False
    batch, channels, *space = r.shape()
    groups = r.attribute("num_groups", 1)
    scale, shift = r.x(1), r.x(2)
    rest = [1] * len(space)
    if r.shape(1) == (groups,) and groups != channels:
        wide = r.ints(groups, channels // groups)
        scale, shift = (r.op("Expand", r.reshape(t, groups, 1), wide) for t in (scale, shift))
    ones, zeros = r.constant(np.ones(groups)), r.constant(np.zeros(groups))
    flat = r.reshape(r.x(), batch, groups, -1)
    normal = r.op("InstanceNormalization", flat, ones, zeros, epsilon=r.attribute("epsilon", 1e-5))
    normal = r.reshape(normal, batch, channels, *space)
    scaled = r.op("Mul", normal, r.reshape(scale, channels, *rest))
    r.op("Add", scaled, r.reshape(shift, channels, *rest), output=0)
    return True


def root_mean_square(r: Rewriter, x: str, scale: str, axes: str, epsilon: float, output: int | None = 0) -> str:
    """x / sqrt(mean(x^2) + epsilon) * scale (Zhang, Sennrich 2019)."""
    mean = r.op("ReduceMean", r.op("Mul", x, x), axes)
    inverse = r.op("Reciprocal", r.op("Sqrt", r.op("Add", mean, r.constant(epsilon))))
    return r.op("Mul", r.op("Mul", x, inverse), scale, output=output)


@rewrites("RMSNormalization", "SimplifiedLayerNormalization")
def _(r: Rewriter) -> bool:
    if not r.known(0):
        return False
    rank = len(r.shape())
    axes = r.ints(*range(r.attribute("axis", -1) % rank, rank))
    root_mean_square(r, r.x(), r.x(1), axes, r.attribute("epsilon", 1e-5))
    return True


@rewrites("Swish")
def _(r: Rewriter) -> bool:
    alpha = r.attribute("alpha", 1.0)
    inner = r.x() if alpha == 1.0 else r.op("Mul", r.x(), r.constant(alpha))
    r.op("Mul", r.x(), r.op("Sigmoid", inner), output=0)
    return True


@rewrites("LRN")
def _(r: Rewriter) -> bool:
    """Divided by a power of the mean square over neighbouring channels (Krizhevsky 2012)."""
    if not r.known(0):
        return False
    batch, channels, *space = r.shape()
    size = r.attribute("size", 1)
    square = r.reshape(r.op("Mul", r.x(), r.x()), batch, 1, channels, -1)
    # a window of `size` channels that starts (size - 1) // 2 before; zeros outside count
    pads = [(size - 1) // 2, 0, size // 2, 0]
    mean = r.op("AveragePool", square, kernel_shape=[size, 1], pads=pads, count_include_pad=1)
    raised = r.op(
        "Add", r.op("Mul", mean, r.constant(r.attribute("alpha", 1e-4))), r.constant(r.attribute("bias", 1.0))
    )
    divisor = r.op("Pow", raised, r.constant(r.attribute("beta", 0.75)))
    r.op("Div", r.x(), r.reshape(divisor, batch, channels, *space), output=0)
    return True


@rewrites("MeanVarianceNormalization")
def _(r: Rewriter) -> bool:
    axes = r.ints(*r.attribute("axes", [0, 2, 3]))
    centred = r.op("Sub", r.x(), r.op("ReduceMean", r.x(), axes))
    deviation = r.op("Sqrt", r.op("ReduceMean", r.op("Mul", centred, centred), axes))
    r.op("Div", centred, r.op("Add", deviation, r.constant(1e-9)), output=0)
    return True


def heads_first(r: Rewriter, tensor: str, batch: int, length: int, heads: int, size: int) -> str:
    """[N, T, heads x size] -> [N, heads, T, size]."""
    return r.op("Transpose", r.reshape(tensor, batch, length, heads, size), perm=[0, 2, 1, 3])


def attend(r: Rewriter, q: str, k: str, v: str, scale: float, mask: Sequence[str], softcap: float = 0.0) -> str:
    """softmax(q k^T scale + masks) v over [N, heads, T, size] (Vaswani 2017)."""
    scores = r.op("MatMul", r.op("Mul", q, r.constant(scale)), r.op("Transpose", k, perm=[0, 1, 3, 2]))
    if softcap:
        scores = r.op("Mul", r.op("Tanh", r.op("Mul", scores, r.constant(1 / softcap))), r.constant(softcap))
    for name in mask:
        scores = r.op("Add", scores, name)
    return r.op("MatMul", r.op("Softmax", scores, axis=-1), v)


def causal_mask(r: Rewriter, queries: int, keys: int, offset: int = 0) -> str:
    """0 where a query may look, the lowest number elsewhere."""
    allowed = np.tri(queries, keys, offset, dtype=bool)
    return r.constant(np.where(allowed, 0, np.finfo(np.float32).min))


@rewrites("Attention")
def _(r: Rewriter) -> bool:
    """Attention of opset 23, without a cache: 4-D [N, heads, T, size], or 3-D with the heads side by side."""
    if not r.known(0, 1, 2) or (r.x(3) and not r.known(3)):
        return False
    window = [r.attribute("left_window_size", -1), r.attribute("right_window_size", -1)]
    if r.x(4) or r.x(5) or r.x(6) or any(r.has(i) for i in (1, 2, 3)) or window != [-1, -1]:
        r.refuse("a cache of keys and values, a window, or more than the first output; export it for whole sequences")
    flat = len(r.shape()) == 3
    batch, queries, keys = r.shape()[0], r.shape()[-2], r.shape(1)[-2]
    tensors, heads = [r.x(0), r.x(1), r.x(2)], [r.shape(i)[1] for i in range(3)]
    sizes = [r.shape(i)[-1] for i in range(3)]
    if flat:
        heads = [r.attribute("q_num_heads", 1), *[r.attribute("kv_num_heads", 1)] * 2]
        sizes = [size // count for size, count in zip(sizes, heads, strict=True)]
        lengths = [queries, keys, keys]
        tensors = [heads_first(r, *each) for each in zip(tensors, [batch] * 3, lengths, heads, sizes, strict=True)]
    for i in (1, 2):  # keys and values that several heads share
        if heads[i] != heads[0]:
            times = heads[0] // heads[i]
            wide = r.op("Unsqueeze", tensors[i], r.ints(2))
            wide = r.op("Expand", wide, r.ints(batch, heads[i], times, keys, sizes[i]))
            tensors[i] = r.reshape(wide, batch, heads[0], keys, sizes[i])
    masks = []
    if r.x(3):
        mask = r.x(3)
        if r.types[mask].dtype == "bool":
            mask = r.op("Where", mask, r.constant(0), r.constant(np.finfo(np.float32).min))
        masks.append(mask)
    if r.attribute("is_causal", 0):
        masks.append(causal_mask(r, queries, keys))
    scale = r.attribute("scale", None) or 1 / math.sqrt(sizes[0])
    mixed = attend(r, tensors[0], tensors[1], tensors[2], scale, masks, r.attribute("softcap", 0.0))
    if flat:
        mixed = r.reshape(r.op("Transpose", mixed, perm=[0, 2, 1, 3]), batch, queries, heads[0] * sizes[2])
    r.op("Identity", mixed, output=0)
    return True


@rewrites("RotaryEmbedding")
def _(r: Rewriter) -> bool:
    """Positions as rotations of pairs (Su 2021): 4-D [N, heads, T, size], or 3-D with the heads side by side."""
    if not r.known(0, 1, 2):
        return False
    flat = len(r.shape()) == 3
    batch, length = r.shape()[0], r.shape()[-2]
    heads = r.attribute("num_heads", 0) if flat else r.shape()[1]
    size = r.shape()[-1] // heads if flat else r.shape()[-1]
    x = heads_first(r, r.x(), batch, length, heads, size) if flat else r.x()
    turned = r.attribute("rotary_embedding_dim", 0) or size
    half = turned // 2
    waves = []
    for cache in (r.x(1), r.x(2)):
        wave = r.op("Gather", cache, r.x(3), axis=0) if r.x(3) else cache
        wave = r.op("Slice", wave, r.ints(0), r.ints(half), r.ints(-1))
        waves.append(r.op("Unsqueeze", wave, r.ints(1)))  # [N, 1, T, half]
    cos, sin = waves
    step = 2 if r.attribute("interleaved", 0) else 1
    starts = (0, 1) if step == 2 else (0, half)
    ends = (turned, turned) if step == 2 else (half, turned)
    a, b = (r.op("Slice", x, r.ints(s), r.ints(e), r.ints(-1), r.ints(step)) for s, e in zip(starts, ends, strict=True))
    real = r.op("Sub", r.op("Mul", cos, a), r.op("Mul", sin, b))
    imaginary = r.op("Add", r.op("Mul", sin, a), r.op("Mul", cos, b))
    if step == 2:
        pairs = r.op("Concat", *(r.op("Unsqueeze", t, r.ints(-1)) for t in (real, imaginary)), axis=-1)
        parts = [r.reshape(pairs, batch, heads, length, turned)]
    else:
        parts = [real, imaginary]
    if turned < size:
        parts.append(r.op("Slice", x, r.ints(turned), r.ints(size), r.ints(-1)))
    whole = r.op("Concat", *parts, axis=-1)
    if flat:
        whole = r.reshape(r.op("Transpose", whole, perm=[0, 2, 1, 3]), batch, length, heads * size)
    r.op("Identity", whole, output=0)
    return True


from . import contrib  # noqa: E402  # fills the table, and needs what is above

assert contrib
