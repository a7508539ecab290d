"""The loss that the model computes itself: its output is what is made small. No targets: labels are inputs.

Strategy: an output per sample counts as its mean over everything but the batch, like any loss. One number for a whole
batch cannot be taken apart without knowing how it was put together, so it stands as it is and every batch is whole.
"""

from __future__ import annotations

from ..graph import Graph
from .table import Loss, Options, Writer


class Output(Loss):
    """The output itself: one number for the batch, or the mean of numbers per sample."""

    def write(self, w: Writer, output: str, options: Options) -> str:
        """Mean per sample, or the one number for every sample, so that the weights of all samples add it up once."""
        batch = w.shape(w.graph.inputs[0])[0]
        if self.whole(w.graph, output):
            return w.op("Expand", (batch,), w.op("Reshape", (1,), output, w.ints(1)), w.ints(batch))
        return w.mean_per_sample(output)

    def whole(self, graph: Graph, output: str) -> str:
        """An output of one element that is not that of one sample."""
        kind, batch = graph.types[output], graph.types[graph.inputs[0]].shape[0]
        if kind.size != 1 or (kind.shape and kind.shape[0] == batch):
            return ""
        return f"the loss {output!r} is one number for the whole batch"
