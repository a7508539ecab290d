"""Operators of the domain com.microsoft that onnxruntime writes into optimized files, written out in standard ones.

Strategy: see `decompose.py`. The list is what the runtime's own graph optimizer makes at its basic and extended levels
(fused activations, GELU, layer normalization with its residual, BERT's attention); blocked layouts are not among them:
a file that was saved with those runs on one kind of processor only.
"""

from __future__ import annotations

import math

import numpy as np

from .decompose import (
    Rewriter,
    attend,
    causal_mask,
    heads_first,
    rewrites,
    root_mean_square,
)

MICROSOFT = "com.microsoft"


def _gelu(r: Rewriter, x: str) -> str:
    half = r.op("Mul", x, r.constant(0.5))
    bell = r.op("Erf", r.op("Mul", x, r.constant(math.sqrt(0.5))))
    return r.op("Mul", half, r.op("Add", bell, r.constant(1)), output=0)


@rewrites("Gelu", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    _gelu(r, r.x())
    return True


@rewrites("BiasGelu", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    _gelu(r, r.op("Add", r.x(0), r.x(1)))
    return True


@rewrites("FastGelu", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    x = r.op("Add", r.x(0), r.x(1)) if r.x(1) else r.x()
    square = r.op("Mul", x, x)
    k = math.sqrt(2 / math.pi)
    inner = r.op("Mul", x, r.op("Add", r.op("Mul", square, r.constant(k * 0.044715)), r.constant(k)))
    half = r.op("Mul", x, r.constant(0.5))
    r.op("Mul", half, r.op("Add", r.op("Tanh", inner), r.constant(1)), output=0)
    return True


@rewrites("QuickGelu", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    gate = r.op("Sigmoid", r.op("Mul", r.x(), r.constant(r.attribute("alpha", 1.702))))
    r.op("Mul", r.x(), gate, output=0)
    return True


def _activated(r: Rewriter, x: str) -> None:
    """The activation that was fused behind a convolution or product."""
    kind = r.attribute("activation", "")
    given = list(r.attribute("activation_params", []))
    names = ("activation_alpha", "activation_beta")
    given = given or [v for v in (r.attribute(n, None) for n in names) if v is not None]
    if kind in ("Relu", "Sigmoid", "Tanh", "HardSwish"):
        r.op(kind, x, output=0)
    elif kind == "LeakyRelu":
        r.op(kind, x, alpha=given[0] if given else 0.01, output=0)
    elif kind == "HardSigmoid":
        r.op(kind, x, alpha=given[0] if given else 0.2, beta=given[1] if len(given) > 1 else 0.5, output=0)
    elif kind == "Clip":
        r.op(kind, x, r.constant(given[0]), r.constant(given[1]), output=0)
    elif kind == "":
        r.op("Identity", x, output=0)
    else:
        r.refuse(f"fused with {kind}; save the model without the runtime's optimizations")


@rewrites("FusedConv", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    given = {n: r.attribute(n, None) for n in names}
    convolved = r.op("Conv", *(i for i in (r.x(0), r.x(1), r.x(2)) if i), **{k: v for k, v in given.items() if v})
    _activated(r, r.op("Add", convolved, r.x(3)) if r.x(3) else convolved)
    return True


@rewrites("FusedGemm", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    inputs = [i for i in (r.x(0), r.x(1), r.x(2)) if i]
    _activated(r, r.op("Gemm", *inputs, **{n: r.attribute(n, d) for n, d in given.items()}))
    return True


@rewrites("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    if not r.known(0, 1):
        return False
    factors = []
    for i, side in enumerate("AB"):
        rank = len(r.shape(i))
        order = [*range(rank)]
        if r.attribute(f"transBatch{side}", 0):  # the first axis stands before the last
            order = [*order[1:-1], order[0], order[-1]]
        if r.attribute(f"trans{side}", 0) and rank > 1:
            order[-1], order[-2] = order[-2], order[-1]
        factors.append(r.x(i) if order == [*range(rank)] else r.op("Transpose", r.x(i), perm=order))
    alpha = r.attribute("alpha", 1.0)
    product = r.op("MatMul", *factors, output=0 if alpha == 1.0 else None)
    if alpha != 1.0:
        r.op("Mul", product, r.constant(alpha), output=0)
    return True


@rewrites("SimplifiedLayerNormalization", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    root_mean_square(r, r.x(), r.x(1), r.ints(-1), r.attribute("epsilon", 1e-5))
    return True


@rewrites("LayerNormalization", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    inputs = [i for i in r.node.input if i]
    r.op("LayerNormalization", *inputs, axis=r.attribute("axis", -1), epsilon=r.attribute("epsilon", 1e-5), output=0)
    return True


@rewrites("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    if r.has(1) or r.has(2):
        r.refuse("its mean and deviation are used; save the model without the runtime's optimizations")
    simple = r.node.op_type == "SkipSimplifiedLayerNormalization"
    bias = r.x(3 if simple else 4)
    total = r.op("Add", r.x(0), r.x(1))
    if bias:
        total = r.op("Add", total, bias)
    if r.has(3):
        r.op("Identity", total, output=3)
    epsilon = r.attribute("epsilon", 1e-12)
    if simple:
        root_mean_square(r, total, r.x(2), r.ints(-1), epsilon)
    else:
        r.op("LayerNormalization", total, *(i for i in (r.x(2), r.x(3)) if i), axis=-1, epsilon=epsilon, output=0)
    return True


@rewrites("EmbedLayerNormalization", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    if not r.known(0):
        return False
    length = r.shape()[1]
    words = r.op("Gather", r.x(2), r.x(0), axis=0)
    places = r.op("Gather", r.x(3), r.x(8) or r.constant(np.arange(length), np.int64), axis=0)
    total = r.op("Add", words, places)
    if r.x(1) and r.x(4):
        total = r.op("Add", total, r.op("Gather", r.x(4), r.x(1), axis=0))
    if r.has(1):
        if r.x(7):
            counted = r.op("ReduceSum", r.op("Cast", r.x(7), to=6), r.ints(1), keepdims=0)
        else:
            counted = r.constant(np.full(r.shape()[0], 0), np.int32)
        r.op("Identity", counted, output=1)
    if r.has(2):
        r.op("Identity", total, output=2)
    r.op("LayerNormalization", total, r.x(5), r.x(6), axis=-1, epsilon=r.attribute("epsilon", 1e-12), output=0)
    return True


@rewrites("Attention", domain=MICROSOFT)
def _(r: Rewriter) -> bool:
    """x [N, T, C] times packed weights [C, 3 C], heads attend, heads side by side again."""
    if not r.known(0, 1) or (r.x(3) and not r.known(3)):
        return False
    if r.x(4) or r.has(1) or r.attribute("do_rotary", 0):
        r.refuse("a cache of keys and values, or rotary positions; save the model without the runtime's optimizations")
    batch, length, _ = r.shape()
    heads = r.attribute("num_heads", 1)
    third = r.shape(1)[1] // 3
    widths = list(r.attribute("qkv_hidden_sizes", [])) or [third] * 3
    packed = r.op("MatMul", r.x(0), r.x(1))
    if r.x(2):
        packed = r.op("Add", packed, r.x(2))
    q, k, v = (
        heads_first(r, part, batch, length, heads, width // heads)
        for part, width in zip(r.multi("Split", [packed, r.ints(*widths)], [None] * 3, axis=-1), widths, strict=True)
    )
    masks = _masks(r, batch, length)
    if r.attribute("unidirectional", 0):
        masks.append(causal_mask(r, length, length))
    if r.x(5):
        masks.append(r.x(5))
    scale = r.attribute("scale", 0.0) or 1 / math.sqrt(widths[0] // heads)
    mixed = attend(r, q, k, v, scale, masks)
    mixed = r.op("Transpose", mixed, perm=[0, 2, 1, 3])
    r.op("Reshape", mixed, r.ints(batch, length, widths[2]), output=0)
    return True


def _masks(r: Rewriter, batch: int, length: int) -> list[str]:
    """The mask input [N, T] or [N, T, T] of ones and zeros as something to add, or [N] numbers of valid places."""
    if not r.x(3):
        return []
    shape = r.shape(3)
    lowest = r.constant(r.attribute("mask_filter_value", -10000.0))
    if shape == (batch,):
        places = r.constant(np.arange(length)[None], np.int32)
        mask = r.op("Cast", r.op("Less", places, r.op("Unsqueeze", r.x(3), r.ints(1))), to=1)
        axes = [1, 2]
    elif len(shape) in (2, 3) and shape[-1] == length:
        mask = r.op("Cast", r.x(3), to=1)
        axes = [1, 2] if len(shape) == 2 else [1]
    else:
        r.refuse(f"a mask of shape {list(shape)}; save the model without the runtime's optimizations")
    away = r.op("Mul", r.op("Sub", r.constant(1), mask), lowest)
    return [r.op("Unsqueeze", away, r.ints(*axes))]
