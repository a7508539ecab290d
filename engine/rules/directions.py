"""One direction of a recurrent layer: its share of weights and gradients, and what all its steps have in common.

Notation as in `recurrent.py`. Steps beyond the end of their sequence have slopes of zero, and factors of one where a
state is handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .table import Site

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _sigmoid(s: Site, y: str) -> str:
    return s.op("Sub", y, s.op("Mul", y, y))


def _tanh(s: Site, y: str) -> str:
    return s.op("Sub", s.scalar(1), s.op("Mul", y, y))


def _relu(s: Site, y: str) -> str:
    return s.op("Cast", s.op("Greater", y, s.scalar(0)), to=1)


def _hard_sigmoid(s: Site, y: str) -> str:
    inside = s.op("And", s.op("Greater", y, s.scalar(0)), s.op("Less", y, s.scalar(1)))
    return s.op("Mul", s.op("Cast", inside, to=1), s.scalar(0.2))


def _softsign(s: Site, y: str) -> str:
    rest = s.op("Sub", s.scalar(1), s.op("Abs", y))
    return s.op("Mul", rest, rest)


#: Activation -> its slope, from its result. (Their parameters have their default values.)
_SLOPES: dict[str, Callable[[Site, str], str]] = {
    "Sigmoid": _sigmoid, "Tanh": _tanh, "Relu": _relu, "HardSigmoid": _hard_sigmoid, "Softsign": _softsign,
}  # fmt: skip


class Direction:
    """One direction of one node: its share of the weights, and its outputs one step earlier."""

    def __init__(self, s: Site, index: int) -> None:
        self.s, self.index, self.gates = s, index, GATES[s.node.op]
        self.time, self.batch, self.width = s.shape(0)
        self.directions, _, self.hidden = s.shape(2)
        self.reverse = s.attribute("direction", "forward") == "reverse" or index == 1
        names = s.attribute("activations") or [*_DEFAULTS[s.node.op]] * self.directions
        each = len(_DEFAULTS[s.node.op])
        self.activations = [_canonical(s, n) for n in names[index * each : (index + 1) * each]]
        self.x = s.reshape(s.x(0), [self.time * self.batch, self.width])
        self.y = s.shared(_states)[index]
        self.mask = s.shared(_mask)
        self.before = self.flat(self.earlier(self.y, self.initial(5)))

    def flat(self, tensor: str) -> str:
        """[T, N, H] as [T N, H]."""
        return self.s.reshape(tensor, [self.time * self.batch, self.hidden])

    def steps(self, tensor: str) -> str:
        """[T N, H] as [T, N, H]."""
        return self.s.reshape(tensor, [self.time, self.batch, self.hidden])

    def initial(self, position: int) -> str:
        """An initial state, [1, N, H]."""
        if not self.s.has(position):
            return self.s.builder.constant(np.zeros((1, self.batch, self.hidden), np.float32))
        return self.s.parts(self.s.x(position), 0, self.directions)[self.index]

    def earlier(self, states: str, first: str) -> str:
        """The states [T, N, H] one step earlier in this direction, beginning with `first`."""
        s, last = self.s, self.time - 1
        if last == 0:
            return first
        kept = s.op("Slice", states, s.ints(int(self.reverse)), s.ints(last + int(self.reverse)), s.ints(0))
        if not self.reverse:
            return s.op("Concat", first, kept, axis=0)
        moved = s.op("Concat", kept, first, axis=0)
        return moved if not self.mask else s.op("Where", _within(s, 1), moved, first)

    def weights(self, position: int) -> tuple[str, ...]:
        """W or R by gate, [H, I] or [H, H]."""
        rows, count = self.s.shape(position)[-1], self.directions * self.gates
        matrix = self.s.reshape(self.s.x(position), [count * self.hidden, rows])
        return self.s.parts(matrix, 0, count)[self.index * self.gates : (self.index + 1) * self.gates]

    def recurrent(self) -> str:
        """R of all gates, [gates H, H]."""
        matrix = self.s.reshape(self.s.x(2), [self.directions * self.gates * self.hidden, self.hidden])
        return self.s.parts(matrix, 0, self.directions)[self.index]

    def biases(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The biases of inputs and recurrence by gate, [H]; empty where there are none."""
        if not self.s.has(3):
            return (), ()
        count = self.directions * 2 * self.gates
        row = self.s.reshape(self.s.x(3), [count * self.hidden])
        own = self.s.parts(row, 0, count)[self.index * 2 * self.gates : (self.index + 1) * 2 * self.gates]
        return own[: self.gates], own[self.gates :]

    def product(self, rows: str, weights: str, added: str = "") -> str:
        """rows weights^T + added."""
        return self.s.op("Gemm", rows, weights, *([added] if added else []), transB=1)

    def before_activation(self, gate: int) -> str:
        """What a gate's activation is applied to, [T N, H]."""
        inputs, recurrent = self.biases()
        bias = self.s.op("Add", inputs[gate], recurrent[gate]) if inputs else ""
        own = self.product(self.x, self.weights(1)[gate], bias)
        return self.product(self.before, self.weights(2)[gate], own)

    def activation(self, which: int, tensor: str) -> str:
        """Apply an activation."""
        return self.s.op(self.activations[which], tensor)

    def slope(self, which: int, result: str) -> str:
        """The slope of an activation at its result."""
        return _SLOPES[self.activations[which]](self.s, result)

    def scaled_slope(self, which: int, result: str, factor: str, product: str = "") -> str:
        """factor x slope, in the fewest passes; `product`: result x factor, where it is there already."""
        s, name = self.s, self.activations[which]
        if name not in ("Sigmoid", "Tanh"):
            return s.op("Mul", factor, self.slope(which, result))
        product = product or s.op("Mul", factor, result)
        return s.op("Sub", product if name == "Sigmoid" else factor, s.op("Mul", product, result))

    def shared_slices(self, tensors: Sequence[str]) -> list[str]:
        """Tensors [T N, H] as slices of a loop, zero beyond the end of a sequence."""
        return [self.masked(self.steps(t)) for t in tensors]

    def masked(self, steps: str) -> str:
        """[T, N, H] with zeros beyond the end of a sequence."""
        return self.s.op("Mul", steps, self.mask) if self.mask else steps

    def handed_on(self, steps: str) -> str:
        """[T, N, H] with ones beyond the end of a sequence."""
        return self.s.op("Where", _within(self.s, 0), steps, self.s.scalar(1)) if self.mask else steps

    def arriving(self, output: int) -> str:
        """The gradient of a last state (output 1 or 2), [N, H]; zeros where none arrives."""
        s = self.s
        given = s.gradients[output] if output < len(s.gradients) else None
        if given is None:
            return s.builder.constant(np.zeros((self.batch, self.hidden), np.float32))
        return s.reshape(s.parts(given, 0, self.directions)[self.index], [self.batch, self.hidden])

    def arriving_steps(self) -> list[str]:
        """The gradient of Y as a slice of a loop, [T, N, H]; nothing where none arrives."""
        given = self.s.gradients[0]
        if given is None:
            return []
        own = given if self.directions == 1 else self.s.parts(given, 1, self.directions)[self.index]
        return [self.masked(self.steps(own))]


def _states(s: Site) -> list[str]:
    """Y by direction, [T, N, H]; computed anew where the model does not ask for it."""
    time, batch, _ = s.shape(0)
    directions, _, hidden = s.shape(2)
    y = s.y or s.builder.op(s.node.op, *s.node.inputs, **s.node.attributes)
    return [s.reshape(part, [time, batch, hidden]) for part in s.parts(y, 1, directions)]


def _within(s: Site, ahead: int) -> str:
    """Whether the step `ahead` of each is within its sequence: [T, N, 1] truth values."""
    time, batch, _ = s.shape(0)
    numbers = s.builder.constant(np.arange(ahead, time + ahead, dtype=np.int32).reshape(time, 1, 1))
    return s.op("Less", numbers, s.reshape(s.x(4), [1, batch, 1]))


def _mask(s: Site) -> str:
    """1 within a sequence and 0 beyond, [T, N, 1]; empty where all sequences take all steps."""
    if not s.has(4):
        return ""
    lengths = s.graph.constants.get(s.x(4))
    if lengths is not None and (lengths == s.shape(0)[0]).all():
        return ""
    return s.op("Cast", _within(s, 0), to=1)


def _canonical(s: Site, name: str) -> str:
    found = next((known for known in _SLOPES if known.lower() == name.lower()), None)
    if found is None:
        s.refuse(f"its activation {name} has no rule; those of {', '.join(_SLOPES)} have one")
    return found
