"""Attaching a loss to a model's graph.

Strategy: every loss is a value per sample (`losses`), weighted by the run-time input `SAMPLE_WEIGHT` and summed. The
weights make the sum a mean over all samples of a batch, and are 0 for padding, so a batch of any size runs through
sessions of one fixed micro-batch, and gradients of micro-batches simply add up to the gradient of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .errors import EngineError, ModelError
from .graph import Graph, Node, TensorType
from .losses import LABELS, LOSS, SAMPLE_WEIGHT, TARGETS, TEACHER, Options, Writer, find_loss

__all__ = ["LABELS", "LOSS", "SAMPLE_WEIGHT", "TARGETS", "TEACHER", "attach_loss", "loss_options"]


def loss_options(loss: str, given: Mapping[str, float | Sequence[float]]) -> Options:
    """The options of a loss, defaults filled in. Raises EngineError for what does not exist or is out of range."""
    found = find_loss(loss)
    unknown = set(given) - set(found.defaults)
    if unknown:
        raise EngineError(f"loss {loss} has no option {sorted(unknown)}; it has {sorted(found.defaults) or 'none'}")
    options = dict(found.defaults)
    try:
        for name, value in given.items():
            options[name] = float(value) if isinstance(value, (int, float)) else tuple(float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise EngineError(f"loss {loss}: an option is a number or a list of numbers ({error})") from error
    found.check_options(options)
    return options


def attach_loss(graph: Graph, loss: str, options: Options, output: str | None) -> str:
    """Append a loss to the graph, which then ends in `LOSS`; returns the name of the model output that it reads."""
    chosen = graph.outputs[0] if output is None else output
    if chosen not in graph.outputs:
        raise ModelError(f"{graph.source}: has no output {chosen!r}; it has {', '.join(graph.outputs)}")
    batch = graph.types[chosen].shape[0] if graph.types[chosen].shape else 0
    found = find_loss(loss)
    if not found.whole(graph, chosen) and batch != graph.types[graph.inputs[0]].shape[0]:
        raise ModelError(f"{graph.source}: the first dimension of output {chosen!r} is not the batch")
    writer = Writer(graph)
    read, kind = chosen, graph.types[chosen]
    if not kind.floating:
        others = [o for o in graph.outputs if graph.types[o].floating]
        raise ModelError(
            f"{graph.source}: output {chosen!r} is {kind.dtype}, and only real numbers can be trained; "
            + (f"choose another output ({', '.join(others)})" if others else "export the model before this conversion")
        )
    if kind.dtype != "float32":  # losses are computed in float32
        read = writer.op("Cast", kind.shape, chosen, to=1)
    per_sample = found.write(writer, read, options)
    weight = writer.input(SAMPLE_WEIGHT, writer.shape(per_sample))
    weighted = writer.op("Mul", writer.shape(per_sample), per_sample, weight)
    total = writer.op("ReduceSum", (), weighted, writer.ints(0), keepdims=0)
    graph.nodes += [*writer.builder.nodes, Node("Identity", (total,), (LOSS,), name="loss")]
    graph.types[LOSS] = TensorType("float32", ())
    graph.constants |= writer.builder.constants
    graph.outputs = [LOSS]
    return chosen
