"""The runtime's blocked layout across a whole program: which tensors are in it, and how they get in and out.

Strategy. The domain `com.microsoft.nchwc` keeps blocks of 8 or 16 channels together: [N, C/B, H, W, B], with the shape
[N, C up to a multiple of B, H, W] in name. Nodes are visited in order. Some operators are always written for this
layout when their sizes fit, because it makes them faster or because rounding depends on it (`ANCHORS`); others follow
the tensor that they read, because they give the same bits in any layout (`FOLLOWERS`). A tensor is brought from one
layout to the other when a node first needs it there, once. Channels that fill the last block are zeros where weights
meet them, and finite everywhere, so they never show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..blocked import DOMAIN
from ..errors import EngineError
from ..graph import Node, TensorType
from .program import Program
from .writer import Writer

_FLOAT, _BOOL = 1, 9
#: A tensor is not kept in blocks if more than this share of them would be filling.
_WASTE = 1.5
#: A tensor is not handed from step to step in blocks if its blocks take more than this share of its own bytes.
_FILLED = 1.15

Handler = Callable[["Layout", Node], bool]


class Layout(Writer):
    """Writes the nodes anew and knows in which layouts every tensor is there."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.block = program.block
        self.here = {*program.inputs, *program.constants} - program.blocked
        self.blocked: dict[str, str] = {n: n for n in program.inputs if n in program.blocked}
        #: What the standard layout of a tensor is called whose own name is that of its blocks.
        self.names = {n: program.fresh(program.types[n]) for n in sorted(program.blocked | program.free)}
        self._last: dict[str, str] = {}
        self._filters: dict[tuple[str, ...], str] = {}

    def up(self, channels: int) -> int:
        """The channels with the last block filled."""
        return -(-channels // self.block) * self.block

    def fits(self, channels: int) -> bool:
        """Whether it is worth keeping so many channels in blocks."""
        return channels > 1 and self.up(channels) <= _WASTE * channels

    def whole(self, tensor: str) -> bool:
        """Whether its blocks take hardly more memory than it does itself."""
        channels = self.program.types[tensor].shape[1]
        return self.up(channels) <= _FILLED * channels

    def four(self, tensor: str) -> tuple[int, ...]:
        """Its shape as [N, C, H, W]; H is 1 for one spatial axis."""
        shape = self.program.types[tensor].shape
        return shape if len(shape) == 4 else (*shape[:2], 1, *shape[2:])

    def float(self, tensor: str) -> bool:
        """Whether it is a float32 tensor with channels and one or two spatial axes."""
        kind = self.program.types.get(tensor)
        return kind is not None and kind.dtype == "float32" and len(kind.shape) in (3, 4)

    def once(self, kind: str, *of: str, write: Callable[[], str]) -> str:
        """What `write` writes for these tensors, written once."""
        key = (kind, *of)
        if key not in self._filters:
            self._filters[key] = write()
        return self._filters[key]

    def in_blocks(self, tensor: str) -> str:
        """The tensor in blocks."""
        if tensor in self.blocked:
            return self.blocked[tensor]
        dtype = self.program.types[tensor].dtype
        batch, channels, *space = self.four(tensor)
        x = self.reshape(self.plainly(tensor), (batch, channels, *space))
        if dtype != "float32":
            x = self.op("Cast", (x,), (batch, channels, *space), to=_FLOAT)
        if channels % 4:  # what the runtime asks for
            x = self.pad(x, (0, 0, 0, 0, 0, self.up(channels) - channels, 0, 0))
        x = self.op("ReorderInput", (x,), (batch, self.up(channels), *space), DOMAIN)
        if dtype != "float32":
            x = self.op("Cast", (x,), (batch, self.up(channels), *space), dtype=dtype, to=_BOOL)
        self.blocked[tensor] = x
        return x

    def plainly(self, tensor: str) -> str:
        """The tensor in the layout of the standard."""
        name = self.names.get(tensor, tensor)
        if tensor in self.here or not tensor:
            return name
        kind = self.program.types[tensor]
        x, four = self.blocked[tensor], self.four(tensor)
        if kind.dtype != "float32":
            x = self.op("Cast", (x,), self.program.types[x].shape, to=_FLOAT)
        last = kind.dtype == "float32" and len(kind.shape) == 4
        x = self.op("ReorderOutput", (x,), four, DOMAIN, output=name if last else "", channels=four[1])
        if len(kind.shape) != 4:
            x = self.reshape(x, kind.shape, name if kind.dtype == "float32" else "")
        if kind.dtype != "float32":
            self.op("Cast", (x,), kind.shape, output=name, dtype=kind.dtype, to=_BOOL)
        self.here.add(tensor)
        return name

    def channels_last(self, tensor: str) -> str:
        """The tensor as [N, H, W, C]."""
        if tensor not in self._last:
            batch, channels, *space = self.four(tensor)
            if tensor in self.blocked:
                x, shape = self.blocked[tensor], (batch, *space, channels)
                x = self.op("ReorderOutput", (x,), shape, DOMAIN, channels=channels, channels_last=1)
            else:
                x = self.transpose(self.reshape(self.plainly(tensor), (batch, channels, *space)), 0, 2, 3, 1)
            self._last[tensor] = x
        return self._last[tensor]

    def exchanged(self, tensor: str, rows: int, columns: int) -> str:
        """[n, rows columns, m] as [n, columns rows, m]: gathered, which the runtime does faster than it transposes."""
        if min(rows, columns) == 1:
            return tensor
        order = np.arange(rows * columns).reshape(rows, columns).T.reshape(-1)
        return self.op("Gather", (tensor, self.constant(order)), self.program.types[tensor].shape, axis=1)

    def pad(self, tensor: str, pads: tuple[int, ...]) -> str:
        """Zeros before and behind each axis; negative counts crop. Nothing for no pads."""
        if not any(pads):
            return tensor
        kind = self.program.types[tensor]
        rank = len(kind.shape)
        shape = tuple(n + pads[i] + pads[rank + i] for i, n in enumerate(kind.shape))
        return self.op("Pad", (tensor, self.ints(*pads)), shape)

    def vector(self, tensor: str, channels: int) -> str:
        """A value per channel, [C], filled up to whole blocks with zeros. In blocks it has the same order."""
        more = self.up(channels) - channels
        return self.once("vector", tensor, write=lambda: self.pad(self.reshape(tensor, (channels,)), (0, more)))

    def plain_result(self, node: Node, tensor: str) -> bool:
        """The result of a node is this tensor, reshaped, in the standard layout. Returns True, for the handlers."""
        name = node.outputs[0]
        self.reshape(tensor, self.program.types[name].shape, self.names.get(name, name))
        self.here.add(name)
        return True

    def result(self, node: Node, blocked: str, position: int = 0) -> bool:
        """The result of a node is this tensor in blocks. Returns True, for the handlers."""
        self.blocked[node.outputs[position]] = blocked
        return True


def convert(program: Program, handlers: dict[str, Handler]) -> bool:
    """Write the program with the handlers' operators in blocks. A handler that declines leaves a node as it is."""
    if not program.block:
        program.blocked = program.free = frozenset()
        return False
    layout = Layout(program)
    leaving = set(program.outputs)
    changed = False
    for node in program.nodes:
        handler = handlers.get(node.op)
        typed = all(n in program.types for n in (*node.inputs, *node.outputs) if n)
        start = len(layout.nodes)
        free = typed and not program.exact.intersection(node.outputs)
        done = free and handler is not None and handler(layout, node)
        changed |= done
        if not done:
            if len(layout.nodes) != start:
                raise EngineError(f"the handler of {node.op} wrote nodes and then declined {node.name!r}")
            inputs = tuple(layout.plainly(name) for name in node.inputs)
            outputs = tuple(layout.names.get(name, name) for name in node.outputs)
            layout.nodes.append(replace(node, inputs=inputs, outputs=outputs))
            layout.here.update(node.outputs)
        for name in node.outputs:
            if name in leaving and name not in layout.names:
                layout.plainly(name)
    program.nodes = layout.nodes
    return _hand_out(program, layout) or changed


def _hand_out(program: Program, layout: Layout) -> bool:
    """Give the blocks of what leaves in blocks its own name. Returns whether anything does."""
    names: dict[str, str] = {}
    blocked = {n for n in program.inputs if n in program.blocked}
    for name in program.outputs:
        if name not in layout.names or name in program.inputs:
            continue
        if name in program.blocked or (name in layout.blocked and layout.whole(name)):
            made = layout.in_blocks(name)
            blocked.add(name)
        else:
            made = layout.plainly(name)
        if made in names or made in program.inputs or made in program.constants:
            layout.op("Identity", (made,), program.types[made].shape, output=name)
        else:
            names[made] = name
            program.types[name] = program.types[made]
    for name in blocked:
        if name in program.inputs:
            batch, channels, *space = layout.four(name)
            program.types[name] = TensorType("float32", (batch, layout.up(channels), *space))
    program.nodes = [
        replace(
            n, inputs=tuple(names.get(i, i) for i in n.inputs), outputs=tuple(names.get(o, o) for o in n.outputs)
        )
        for n in layout.nodes
    ]  # fmt: skip
    program.blocked, program.free = frozenset(blocked), frozenset()
    return bool(names or blocked)
