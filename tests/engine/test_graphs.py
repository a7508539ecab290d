"""Random graphs of many operators: gradients as in PyTorch, however operators meet."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("torch", reason="PyTorch is not installed: the comparison needs it")

from tests.support.graphs import Drawing, disagreement, graphs  # after PyTorch is known to be there


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_gradients_of_random_graphs_are_pytorch_s(graph: Drawing) -> None:
    ours, own = disagreement(graph)
    assert ours <= max(1e-4, 5 * own), [n.op for n in graph.builder.nodes]
