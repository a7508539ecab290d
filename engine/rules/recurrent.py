"""Recurrent layers: LSTM, GRU and RNN, in either direction or both, with sequences of different lengths.

Strategy: backpropagation through time, with as little as possible in time. Gates are recomputed for all steps at
once, as products with the inputs and with the outputs one step earlier; so are the slopes, everything that a step
multiplies its incoming gradient with. Only the chain itself is a loop (`Builder.scan`): a handful of element-wise
operators and one product per step, over contiguous slices. Gradients of weights are products over all steps again.
The rules of one node share all of this (`Site.shared`). A step beyond the end of its sequence has slopes of zero and
hands on what arrives.

Notation as in the ONNX specification: gates i, o, f, c (LSTM) and z, r, h (GRU); T steps, N samples, I inputs, H
hidden units, D directions. Tensors of all steps are [T N, .] in products and [T, N, H] in loops.

Sources: Hochreiter, Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of Gers et al. (2000);
Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014); Werbos, "Backpropagation Through
Time" (1990).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph import Builder
from .directions import Direction
from .table import Site, gradient

_Names = Sequence[str]
_Turn = tuple[list[str], list[str]]


@dataclass(frozen=True, slots=True)
class _Grown:
    """The gradients of one direction before they meet the weights.

    `inputs`: for consecutive gates, the gradient [T N, gates H] of what was added up before the activation, on the side
    of the inputs. `hidden`: the same on the recurrent side, each with what its weights were multiplied with [T N, H].
    """

    inputs: list[str]
    hidden: list[tuple[str, str]]
    initial_h: str
    initial_c: str = ""


def _lstm(d: Direction) -> _Grown:
    s = d.s
    i, o, f = (d.activation(0, d.before_activation(gate)) for gate in (0, 1, 2))
    g = d.activation(1, d.before_activation(3))
    added = s.op("Mul", i, g)
    new = d.masked(d.steps(added))
    keep = d.handed_on(d.steps(f))

    def cell(b: Builder, states: _Names, slices: _Names, _: _Names) -> _Turn:
        after = b.op("Add", b.op("Mul", states[0], slices[0]), slices[1])
        return [after], [after]

    first = d.initial(6)
    _, (cells,) = s.builder.scan(
        [s.reshape(first, [d.batch, d.hidden])], [keep, new], [], cell, d.reverse
    )  # fmt: skip
    shown = d.activation(2, d.flat(cells))
    y = d.flat(d.y)
    to_cell = d.scaled_slope(2, shown, o, y)
    to_gates = (
        d.scaled_slope(0, i, g, added),
        d.scaled_slope(0, o, shown, y),
        d.scaled_slope(0, f, d.flat(d.earlier(cells, first))),
        d.scaled_slope(1, g, i, added),
    )
    arriving = d.arriving_steps()
    passing = [s.op("Sub", s.scalar(1), d.mask)] if d.mask else []

    def step(b: Builder, states: _Names, slices: _Names, fixed: _Names) -> _Turn:
        h, c = states
        keep, to_c, to_i, to_o, to_f, to_g, *more = slices
        if arriving:
            h = b.op("Add", h, more[0])
        c = b.op("Add", c, b.op("Mul", h, to_c))
        gates = b.op("Concat", b.op("Mul", c, to_i), b.op("Mul", h, to_o), b.op("Mul", c, to_f), b.op("Mul", c, to_g),
                     axis=1)  # fmt: skip
        before = [b.op("Mul", h, more[-1])] if passing else []
        return [b.op("Gemm", gates, fixed[0], *before), b.op("Mul", c, keep)], [gates]

    slices = [keep, *d.shared_slices((to_cell, *to_gates)), *arriving, *passing]
    (h, c), (gates,) = s.builder.scan(
        [d.arriving(1), d.arriving(2)], slices, [d.recurrent()], step, not d.reverse
    )  # fmt: skip
    rows = s.reshape(gates, [d.time * d.batch, 4 * d.hidden])
    return _Grown([rows], [(rows, d.before)], h, c)


def _gru(d: Direction) -> _Grown:
    s = d.s
    late = bool(s.attribute("linear_before_reset", 0))
    z, r = (d.activation(0, d.before_activation(gate)) for gate in (0, 1))
    inputs, recurrent = d.biases()
    weights = d.weights(2)[2]
    if late:  # the reset gate scales what comes out of the product
        reset = d.product(d.before, weights, recurrent[2] if recurrent else "")
        own = d.product(d.x, d.weights(1)[2], inputs[2] if inputs else "")
        n = d.activation(1, s.op("Add", own, s.op("Mul", r, reset)))
    else:  # it scales what goes into it
        reset = s.op("Mul", r, d.before)
        own = d.product(d.x, d.weights(1)[2], s.op("Add", inputs[2], recurrent[2]) if inputs else "")
        n = d.activation(1, d.product(reset, weights, own))
    to_z = s.op("Mul", s.op("Sub", d.before, n), d.slope(0, z))
    to_n = s.op("Mul", s.op("Sub", s.scalar(1), z), d.slope(1, n))
    arriving = d.arriving_steps()
    keep = d.handed_on(d.steps(z))

    def late_step(b: Builder, states: _Names, slices: _Names, fixed: _Names) -> _Turn:
        keep, to_z, to_r, to_p, *more = slices
        h = b.op("Add", states[0], more[0]) if more else states[0]
        gates = b.op("Concat", b.op("Mul", h, to_z), b.op("Mul", h, to_r), b.op("Mul", h, to_p), axis=1)
        return [b.op("Gemm", gates, fixed[0], b.op("Mul", h, keep))], [h]

    def early_step(b: Builder, states: _Names, slices: _Names, fixed: _Names) -> _Turn:
        keep, to_z, to_n, to_r, r, *more = slices
        h = b.op("Add", states[0], more[0]) if more else states[0]
        n = b.op("Mul", h, to_n)
        back = b.op("Gemm", n, fixed[1])
        reset = b.op("Mul", back, to_r)
        gates = b.op("Concat", b.op("Mul", h, to_z), reset, axis=1)
        kept = b.op("Add", b.op("Mul", h, keep), b.op("Mul", back, r))
        return [b.op("Gemm", gates, fixed[0], kept)], [h, reset]

    if late:
        to_r = s.op("Mul", s.op("Mul", to_n, reset), d.slope(0, r))
        to_p = s.op("Mul", to_n, r)
        z_, n_, r_, p_ = d.shared_slices((to_z, to_n, to_r, to_p))
        (h,), (all_h,) = s.builder.scan(
            [d.arriving(1)], [keep, z_, r_, p_, *arriving], [d.recurrent()], late_step, not d.reverse
        )  # fmt: skip
        gate_z, gate_n, gate_r, gate_p = (d.flat(s.op("Mul", all_h, slope)) for slope in (z_, n_, r_, p_))
        before = d.before
    else:
        to_r = s.op("Mul", d.before, d.slope(0, r))
        z_, n_, r_, back = d.shared_slices((to_z, to_n, to_r, r))
        parts = d.weights(2)
        (h,), (all_h, all_r) = s.builder.scan(
            [d.arriving(1)], [keep, z_, n_, r_, back, *arriving],
            [s.op("Concat", parts[0], parts[1], axis=0), parts[2]], early_step, not d.reverse,
        )  # fmt: skip
        gate_z, gate_n, gate_r = d.flat(s.op("Mul", all_h, z_)), d.flat(s.op("Mul", all_h, n_)), d.flat(all_r)
        gate_p, before = gate_n, reset
    return _Grown([gate_z, gate_r, gate_n], [(gate_z, d.before), (gate_r, d.before), (gate_p, before)], h)


def _rnn(d: Direction) -> _Grown:
    arriving = d.arriving_steps()
    (slope,) = d.shared_slices([d.slope(0, d.flat(d.y))])
    passing = [d.s.op("Sub", d.s.scalar(1), d.mask)] if d.mask else []

    def step(b: Builder, states: _Names, slices: _Names, fixed: _Names) -> _Turn:
        h = b.op("Add", states[0], slices[1]) if arriving else states[0]
        gate = b.op("Mul", h, slices[0])
        before = [b.op("Mul", h, slices[-1])] if passing else []
        return [b.op("Gemm", gate, fixed[0], *before)], [gate]

    (h,), (gates,) = d.s.builder.scan(
        [d.arriving(1)], [slope, *arriving, *passing], [d.recurrent()], step, not d.reverse
    )  # fmt: skip
    rows = d.flat(gates)
    return _Grown([rows], [(rows, d.before)], h)


_KINDS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _grown(s: Site) -> list[tuple[Direction, _Grown]]:
    """What all rules of one node share."""
    for name, fine in (("clip", 0.0), ("input_forget", 0), ("layout", 0)):
        if s.attribute(name, fine) != fine:
            s.refuse(f"it has {name}={s.attribute(name)}; export it without")
    if s.attribute("activation_alpha") or s.attribute("activation_beta"):
        s.refuse("its activations have parameters; those with their default parameters can be trained")
    if s.has(7):
        s.refuse("it has peepholes; export it without")
    directions = [Direction(s, index) for index in range(s.shape(2)[0])]
    return [(d, _KINDS[s.node.op](d)) for d in directions]


def _together(s: Site, parts: Sequence[str], axis: int = 0) -> str:
    return s.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _of_inputs(s: Site) -> str:
    total = ""
    for d, grown in s.shared(_grown):
        weights = d.weights(1)
        per = d.gates // len(grown.inputs)
        for k, gates in enumerate(grown.inputs):
            matrix = _together(s, weights[k * per : (k + 1) * per])
            total = s.op("Gemm", gates, matrix, *([total] if total else []))
    return s.reshape(total, s.shape(0))


def _of_weights(s: Site) -> str:
    parts = [s.op("Gemm", g, d.x, transA=1) for d, grown in s.shared(_grown) for g in grown.inputs]
    return s.reshape(_together(s, parts), s.shape(1))


def _of_recurrence(s: Site) -> str:
    parts = [s.op("Gemm", g, left, transA=1) for _, grown in s.shared(_grown) for g, left in grown.hidden]
    return s.reshape(_together(s, parts), s.shape(2))


def _of_biases(s: Site) -> str:
    parts = []
    for _, grown in s.shared(_grown):
        parts += [s.total(g, [0], keepdims=0) for g in (*grown.inputs, *(g for g, _ in grown.hidden))]
    return s.reshape(_together(s, parts), s.shape(3))


def _of_initial_h(s: Site) -> str:
    return s.reshape(_together(s, [grown.initial_h for _, grown in s.shared(_grown)]), s.shape(5))


def _of_initial_c(s: Site) -> str:
    return s.reshape(_together(s, [grown.initial_c for _, grown in s.shared(_grown)]), s.shape(6))


for _op in _KINDS:
    for _position, _rule in (
        (0, _of_inputs),
        (1, _of_weights),
        (2, _of_recurrence),
        (3, _of_biases),
        (5, _of_initial_h),
    ):
        gradient(_op, _position)(_rule)
gradient("LSTM", 6)(_of_initial_c)
