"""The table of what is written for the blocked layout, and the pass that uses it."""

from __future__ import annotations

from ..graph import FILTER_GRADIENT, MAX_POOL_GRADIENT, Node
from . import convolutions, followers, maxima
from .geometry import geometry
from .layout import Handler, Layout, convert
from .program import Program
from .trust import agrees, pool_agrees


def _proven(handler: Handler) -> Handler:
    """The handler, for sizes for which it was seen to compute the right thing."""

    def handle(lay: Layout, node: Node) -> bool:
        z = geometry(node, lay.program.types)
        if z is None or z.rank > 2:
            return False
        biased = len(node.inputs) > 2 and bool(node.inputs[2])
        return agrees(handler, node.op, convolutions.two_axes(z), biased, lay.block) and handler(lay, node)

    return handle


def _proven_pool(handler: Handler) -> Handler:
    """The same for pooling of images."""

    def handle(lay: Layout, node: Node) -> bool:
        x, y = (lay.program.types[n] for n in (node.inputs[0], node.outputs[0]))
        if x.dtype != "float32" or len(x.shape) != 4 or len([o for o in node.outputs if o]) != 1:
            return False
        return pool_agrees(handler, node, x.shape, y.shape, lay.block) and handler(lay, node)

    return handle


#: Written for the layout whenever their sizes fit: rounding depends on it, so it must not depend on the surroundings.
ANCHORS: dict[str, Handler] = {
    "Conv": _proven(convolutions.convolution),
    "ConvTranspose": _proven(convolutions.input_gradient),
    FILTER_GRADIENT: _proven(convolutions.filter_gradient),
    "BatchNormalization": followers.batch_normalization,
    "GlobalAveragePool": followers.total,
    "ReduceSum": followers.total,
    "ReduceMean": followers.total,
    "AveragePool": _proven_pool(followers.pool),
    MAX_POOL_GRADIENT: maxima.in_blocks,
}
#: Follow the layout of what they read.
FOLLOWERS: dict[str, Handler] = {
    **dict.fromkeys(sorted(followers.ELEMENTWISE), followers.elementwise),
    "MaxPool": _proven_pool(followers.pool),
    "Expand": followers.expand,
    "Concat": followers.concat,
    "Slice": followers.cut,
    "Split": followers.split,
}


def lay_out(program: Program) -> bool:
    """Write the program in the blocked layout where that fits."""
    return convert(program, ANCHORS | FOLLOWERS)
