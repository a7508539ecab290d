"""Matrix products: Gemm, (batched, broadcast) MatMul and Einsum."""

from __future__ import annotations

from string import ascii_letters

from .table import Site, gradient, gradient_each


def _gemm(s: Site, a: str, b: str, trans_a: int, trans_b: int) -> str:
    return s.op("Gemm", a, b, alpha=float(s.attribute("alpha", 1.0)), transA=trans_a, transB=trans_b)


@gradient("Gemm", 0)
def _(s: Site) -> str:
    trans_b = s.attribute("transB", 0)
    if s.attribute("transA", 0):
        return _gemm(s, s.x(1), s.g, trans_b, 1)
    return _gemm(s, s.g, s.x(1), 0, 1 - trans_b)


@gradient("Gemm", 1)
def _(s: Site) -> str:
    trans_a = s.attribute("transA", 0)
    if s.attribute("transB", 0):
        return _gemm(s, s.g, s.x(0), 1, trans_a)
    return _gemm(s, s.x(0), s.g, 1 - trans_a, 0)


@gradient("Gemm", 2)
def _(s: Site) -> str:
    beta = s.attribute("beta", 1.0)
    summed = s.unbroadcast(s.g, s.y_shape, 2)
    return summed if beta == 1.0 else s.op("Mul", summed, s.scalar(beta))


def _swap(s: Site, tensor: str, rank: int) -> str:
    order = [*range(rank)]
    order[-1], order[-2] = order[-2], order[-1]
    return s.op("Transpose", tensor, perm=order)


def _matrices(s: Site) -> tuple[str, tuple[int, ...], str, tuple[int, ...], str, tuple[int, ...]]:
    """Both factors and the result's gradient with vectors made matrices, and their shapes."""
    a, b, g = s.x(0), s.x(1), s.g
    a_shape, b_shape, g_shape = s.shape(0), s.shape(1), s.y_shape
    if len(b_shape) == 1:
        b_shape, g_shape = (*b_shape, 1), (*g_shape, 1)
        b, g = s.reshape(b, b_shape), s.reshape(g, g_shape)
    if len(a_shape) == 1:
        a_shape, g_shape = (1, *a_shape), (*g_shape[:-1], 1, g_shape[-1])
        a, g = s.reshape(a, a_shape), s.reshape(g, g_shape)
    return a, a_shape, b, b_shape, g, g_shape


@gradient("MatMul", 0)
def _(s: Site) -> str:
    _, a_shape, b, b_shape, g, g_shape = _matrices(s)
    product = s.op("MatMul", g, _swap(s, b, len(b_shape)))
    summed = s.sum_to(product, (*g_shape[:-1], a_shape[-1]), a_shape)
    return s.reshape(summed, s.shape(0)) if len(s.shape(0)) == 1 else summed


@gradient("MatMul", 1)
def _(s: Site) -> str:
    a, a_shape, _, b_shape, g, g_shape = _matrices(s)
    if len(b_shape) == 2:
        # one matrix for the whole batch: one product over all rows instead of a sum of products
        rows = s.reshape(a, (-1, a_shape[-1])) if len(a_shape) > 2 else a
        g_rows = s.reshape(g, (-1, g_shape[-1])) if len(g_shape) > 2 else g
        product = s.op("Gemm", rows, g_rows, transA=1)
    else:
        product = s.op("MatMul", _swap(s, a, len(a_shape)), g)
        product = s.sum_to(product, (*g_shape[:-2], a_shape[-1], g_shape[-1]), b_shape)
    return s.reshape(product, s.shape(1)) if len(s.shape(1)) == 1 else product


def _subscripts(s: Site) -> tuple[list[str], str]:
    """The subscripts of every factor and of the result, an ellipsis written out in unused letters."""
    equation = s.attribute("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    factors = left.split(",")
    free = [letter for letter in ascii_letters if letter not in equation]
    hidden = [len(s.shape(i)) - len(f.replace("...", "")) if "..." in f else 0 for i, f in enumerate(factors)]
    dots = "".join(free[: max(hidden)])
    if not arrow:
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    factors = [f.replace("...", dots[len(dots) - n :]) for f, n in zip(factors, hidden, strict=True)]
    return factors, right.replace("...", dots)


@gradient_each("Einsum")
def _(s: Site, index: int) -> str:
    # the gradient takes the factor's place in the sum; what only this factor was summed over is repeated
    factors, result = _subscripts(s)
    own, others = factors[index], [f for i, f in enumerate(factors) if i != index]
    if len(set(own)) != len(own):
        s.refuse("a subscript occurs twice in one factor (a diagonal); take the diagonal by Gather")
    around = set("".join([result, *others]))
    kept = "".join(c for c in own if c in around)
    sizes = {c: n for i, f in enumerate(factors) for c, n in zip(f, s.shape(i), strict=True) if n != 1}
    given = [s.x(i) for i in range(len(factors)) if i != index]
    g = s.op("Einsum", s.g, *given, equation=f"{','.join([result, *others])}->{kept}")
    shape = [sizes.get(c, 1) for c in kept]
    if kept != own:
        g = s.reshape(g, [sizes.get(c, 1) if c in around else 1 for c in own])
        shape = [sizes.get(c, 1) for c in own]
        g = s.op("Expand", g, s.ints(*shape))
    return s.sum_to(g, shape, s.shape(index))
