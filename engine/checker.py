"""Numeric gradient check: product code, so that a rule written elsewhere is tested the same way.

Strategy: the gradient comes from the emitted nodes on the runtime, in float32; the slope comes from central
differences of the *forward* graph in double precision on the reference interpreter of ONNX, which shares no code with
either. Slopes are compared along random directions, a few per tensor, so a check costs a few forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from . import onnxio
from .blocked import block_size
from .differentiate import check_supported, differentiate
from .errors import EngineError
from .graph import Array, Builder, Graph, Node
from .passes import lower
from .runtime import run_once
from .slots import weight_names

_STEP = 1e-5


def gradcheck(
    model: str | Path | bytes,
    inputs: Mapping[str, Array],
    *,
    with_respect_to: Sequence[str] | None = None,
    directions: int = 3,
    tolerance: float = 2e-3,
    seed: int = 0,
) -> float:
    """Check the gradients of a model's outputs numerically; returns the largest relative error found.

    `inputs`: {input name: array}; float inputs and weights are checked unless `with_respect_to` names some.
    The scalar differentiated is the sum of all float outputs times fixed noise. Raises EngineError when the error
    exceeds `tolerance`, and ModelError or UnsupportedOperatorError as `compile` does. Inputs should keep away from
    kinks (0 for Relu), where a slope does not exist.
    """
    proto, name = onnxio.load_model(model)
    proto = onnxio.normalize(proto, name)
    for value in proto.graph.input:
        for dimension, length in zip(value.type.tensor_type.shape.dim, np.shape(inputs[value.name]), strict=True):
            dimension.dim_value = length
    weights = weight_names(proto)
    graph = onnxio.to_graph(proto, None, frozenset(weights), name)
    floats = [i for i in inputs if np.asarray(inputs[i]).dtype.kind == "f"]
    wanted = list(with_respect_to) if with_respect_to is not None else [*floats, *weights]
    rng = np.random.default_rng(seed)
    seeds = {o: rng.standard_normal(graph.types[o].shape) for o in graph.outputs if graph.types[o].floating}
    values = pull_back(graph, inputs, seeds, wanted)
    scalar = _double(proto, inputs, seeds)
    worst = 0.0
    for tensor in wanted:
        value = np.asarray(inputs[tensor] if tensor in inputs else graph.constants[tensor], np.float64)
        gradient = np.asarray(values.get(tensor, np.zeros(value.shape)), np.float64)
        if gradient.shape != value.shape:
            raise EngineError(f"{name}: the gradient of {tensor!r} has shape {gradient.shape}, not {value.shape}")
        for _ in range(directions):
            direction = rng.standard_normal(value.shape)
            above, below = (scalar(tensor, value + sign * _STEP * direction) for sign in (1, -1))
            slope = (above - below) / (2 * _STEP)
            claimed = float(np.sum(gradient * direction))
            size = max(abs(slope), float(np.linalg.norm(gradient)), 1e-3)
            worst = max(worst, abs(slope - claimed) / size)
            if not worst <= tolerance:
                raise EngineError(
                    f"{name}: the gradient of {tensor!r} is wrong: slope {slope:.6g}, gradient says {claimed:.6g}"
                )
    return worst


def pull_back(
    graph: Graph, inputs: Mapping[str, Array], seeds: Mapping[str, Array], wanted: Sequence[str]
) -> dict[str, Array]:
    """The gradient of sum(output x seed) for every wanted tensor that it depends on, by the emitted nodes.

    Raises UnsupportedOperatorError.
    """
    check_supported(graph, wanted)
    builder = Builder("s.b")
    found = differentiate(graph, graph.nodes, {o: f"seed/{o}" for o in seeds}, wanted, builder)
    constants = graph.constants | builder.constants
    constants |= {f"seed/{o}": np.asarray(v, np.float32) for o, v in seeds.items()}
    outputs = [f"gradient/{n}" for n in found]
    nodes = [*graph.nodes, *builder.nodes, *(Node("Identity", (g,), (f"gradient/{n}",)) for n, g in found.items())]
    arguments = {n: graph.types[n] for n in graph.inputs}
    plain = onnxio.to_bytes(nodes, arguments, dict.fromkeys(outputs), constants, graph.opset)
    given = [*graph.inputs, *wanted, *(f"seed/{o}" for o in seeds)]  # not to be folded, though known
    program = lower(nodes, onnxio.infer_types(plain), constants, given, outputs, graph.opset, block_size())
    emitted = onnxio.to_bytes(program.nodes, arguments, dict.fromkeys(outputs), program.constants, graph.opset)
    return dict(zip(found, run_once(emitted, inputs, outputs), strict=True))


class _double:  # noqa: N801  (used as a function)
    """The scalar as a function of one tensor, in double precision."""

    def __init__(self, proto: onnx.ModelProto, inputs: Mapping[str, Array], seeds: Mapping[str, Array]) -> None:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        self._constants = {t.name: numpy_helper.to_array(t) for t in copy.graph.initializer}
        del copy.graph.initializer[:]
        for name, value in self._constants.items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            copy.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        for node in copy.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                    attribute.i = onnx.TensorProto.DOUBLE
        self._run = ReferenceEvaluator(copy)
        self._inputs, self._seeds = inputs, seeds

    def __call__(self, tensor: str, value: Array) -> float:
        feeds = {n: _widen(v) for n, v in {**self._constants, **self._inputs}.items()}
        feeds[tensor] = value
        results = dict(zip(self._run.output_names, self._run.run(None, feeds), strict=True))
        return float(sum(np.sum(np.asarray(results[o], np.float64) * seed) for o, seed in self._seeds.items()))


def _widen(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype == np.float32 else value
