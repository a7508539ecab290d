"""Reverse-mode differentiation of a graph into a graph. The walker knows no operator.

Strategy: mark what depends on a wanted tensor, then visit nodes in reverse; a gradient is popped as it is consumed,
contributions to one tensor are added, and every step is a look-up in the table of rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from .errors import ModelError, UnsupportedOperatorError
from .graph import DETACHED, Builder, Graph, Node
from .rules import QUANTIZERS, REFUSED, RULES, STOPS, Site, integer_remedy


def dependents(graph: Graph, nodes: Sequence[Node], wanted: Collection[str]) -> set[str]:
    """The tensors through which a gradient reaches a wanted tensor, the wanted ones included.

    Integers are among them where they stand for real numbers: between a quantizer and what undoes it.
    """
    reached = set(wanted)
    for node in nodes:
        sources = [] if node.op in STOPS else reached.intersection(node.inputs)
        if sources:
            integers = node.op in QUANTIZERS or not all(graph.types[i].floating for i in sources)
            outputs = [o for o in node.outputs if o and not o.startswith(DETACHED)]
            reached.update(o for o in outputs if integers or graph.types[o].floating)
    return reached


def differentiate(
    graph: Graph, nodes: Sequence[Node], seeds: Mapping[str, str], wanted: Collection[str], builder: Builder
) -> dict[str, str]:
    """Append the backward pass of `nodes` to `builder`; returns {wanted tensor: name of its gradient}.

    `seeds` are gradients that arrive from outside: {tensor: name}. A wanted tensor that no seed reaches is absent
    from the result (its gradient is zero). Raises UnsupportedOperatorError.
    """
    needed = dependents(graph, nodes, wanted)
    pending: dict[str, list[str]] = {tensor: [name] for tensor, name in seeds.items()}

    def collect(tensor: str) -> str | None:
        parts = pending.pop(tensor, [])
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = builder.op("Add", total, part)
        return total

    made = {output for node in nodes for output in node.outputs}
    for node in reversed(nodes):
        if node.op in STOPS or not needed.intersection(node.outputs):
            continue
        gradients = [collect(output) if output else None for output in node.outputs]
        if not any(gradients):
            continue
        entry = RULES.get(node.op) if node.domain in ("", "ai.onnx") else None
        site = Site(graph, builder, node, gradients)
        if entry is None:
            site.refuse(
                integer_remedy(node.op)
                or f"{_why(node)}; replace it, or train only what comes after it (`trainable`); "
                "docs/reference/operators.md lists the operators that can be trained through"
            )
        # weights first: what only their gradients need (the input, mostly) is free before the larger gradient is made
        for index, tensor in sorted(enumerate(node.inputs), key=lambda entry: entry[1] in made):
            if tensor not in needed:
                continue
            rule = entry.rule(index)
            if rule is None:
                site.refuse(f"there is no gradient rule for its input {index}")
            pending.setdefault(tensor, []).append(rule(site))
    return {tensor: name for tensor in wanted if (name := collect(tensor)) is not None}


def _why(node: Node) -> str:
    """Why no gradient passes a node that is in neither table."""
    if node.domain in ("", "ai.onnx") and node.op in REFUSED:
        return f"there is no gradient rule for it: {REFUSED[node.op]}"
    return f"there is no gradient rule for it{f' (domain {node.domain})' if node.domain else ''}"


def check_complete(graph: Graph) -> None:
    """Raise UnsupportedOperatorError for an operator without rules that holds matrices: "all" would leave them out."""
    for node in graph.nodes:
        if node.op in RULES or node.op in STOPS:
            continue
        for name in node.inputs:
            kind = graph.types[name] if name in graph.constants else None
            if kind is None or len(kind.shape) < 2 or kind.size == 1:
                continue
            remedy = integer_remedy(node.op)
            if kind.floating or remedy:
                raise UnsupportedOperatorError(
                    node.op, node.name, graph.source, remedy or
                    f"it has no gradient rule, and {name!r} may be its weights; to leave it as it is, name the weights "
                    'to train (`trainable`: "last", "bias" or patterns)',
                )  # fmt: skip


def check_reached(graph: Graph, wanted: Collection[str]) -> None:
    """Raise ModelError when the outputs depend on no wanted tensor but through operators without a gradient."""
    if not dependents(graph, graph.nodes, wanted).intersection(graph.outputs):
        between = sorted({node.op for node in graph.nodes if node.op in STOPS})
        raise ModelError(
            f"{graph.source}: no gradient reaches the weights to train ({', '.join(list(wanted)[:4])}): the output "
            f"does not depend on them, or only through operators without one ({', '.join(between) or 'none here'}); "
            "choose another output (`output`) or other weights (`trainable`)"
        )


def check_supported(graph: Graph, wanted: Collection[str]) -> None:
    """Raise UnsupportedOperatorError for the first operator on a gradient's way that has no rule."""
    needed = dependents(graph, graph.nodes, wanted)
    for node in graph.nodes:
        if (
            node.op not in STOPS
            and needed.intersection(node.outputs)
            and (node.op not in RULES or node.domain not in ("", "ai.onnx"))
        ):
            raise UnsupportedOperatorError(
                node.op, node.name, graph.source,
                integer_remedy(node.op) or f"{_why(node)} (see docs/reference/operators.md)",
            )  # fmt: skip
