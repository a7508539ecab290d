"""What the kernels of the runtime do with memory: whose they write over, and what they allocate while they run.

Measured, not guessed: each entry was found by running one node in a fresh arena and looking at how much of it became
resident (`tests/engine/test_kernels.py` repeats that for every operator that steps contain). The runtime's kernels
for binary arithmetic never write over an input; most activations do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .graph import Node, TensorType
from .lifetimes import Work

#: The result is the input's memory.
ALIASES = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
#: The result overwrites the first input where nothing else needs it.
OVERWRITES = frozenset(
    {
        *("Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Clip"),
        *("Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign", "Softmax", "LogSoftmax"),
    }
)
#: Bytes per thread in which a convolution unfolds its input piece by piece.
_PIECE = 128 * 128 * 4
_FLOAT = 4


def work(node: Node, types: Mapping[str, TensorType], threads: int = 1) -> Work:
    """A node as far as memory is concerned. Tensors of unknown type take nothing."""
    first = node.inputs[0] if node.inputs else ""
    plain = node.domain in ("", "ai.onnx")
    return Work(
        tuple(n for n in node.inputs if n),
        node.outputs,
        _temporary(node, types, threads),
        first if plain and node.op in ALIASES else "",
        first if plain and node.op in OVERWRITES else "",
    )


def _temporary(node: Node, types: Mapping[str, TensorType], threads: int) -> int:
    known = all(n in types for n in (*node.inputs, *node.outputs) if n)
    if not known or node.domain not in ("", "ai.onnx"):
        return 0
    if node.op == "Conv":
        return _convolution(node, types, threads)
    if node.op == "ConvTranspose":
        # the columns of one sample and group: outputs of the group x taps, at every place of the input
        x, w = types[node.inputs[0]].shape, types[node.inputs[1]].shape
        return _FLOAT * math.prod(w[1:]) * math.prod(x[2:])
    if node.op in ("Softmax", "LogSoftmax"):
        shape = types[node.inputs[0]].shape
        along = node.attributes.get("axis", -1) % max(len(shape), 1)
        return 0 if along == len(shape) - 1 else 2 * types[node.inputs[0]].nbytes
    if node.op == "Where":  # either branch, with zeros where the other is, and the condition's places
        return 2 * types[node.outputs[0]].nbytes + types[node.outputs[0]].size
    if node.op in ("LSTM", "GRU", "RNN"):
        return _recurrent(node, types)
    if node.op == "Scan":  # the tensors of one turn, which the states are as large as
        turn = len(node.attributes["body"].nodes)
        return turn * max(types[n].nbytes for n in node.inputs[: _states(node)])
    return 0


def _states(node: Node) -> int:
    return len(node.inputs) - int(node.attributes["num_scan_inputs"]) - int(node.attributes["body"].captured)


def _recurrent(node: Node, types: Mapping[str, TensorType]) -> int:
    """What the inputs give to all gates of all steps, by direction; input and output turned round for a reverse one."""
    time, batch, width = types[node.inputs[0]].shape
    directions, rows, hidden = types[node.inputs[2]].shape
    ways = 1 if node.op == "RNN" else directions
    turned = width + hidden if ways > 1 or node.attributes.get("direction") == "reverse" else 0
    return _FLOAT * batch * (time * (ways * rows + turned) + 8 * hidden)


def _convolution(node: Node, types: Mapping[str, TensorType], threads: int) -> int:
    """The input unfolded: whole where there are more filters than places, else piece by piece; 1x1 needs none."""
    w, y = types[node.inputs[1]].shape, types[node.outputs[0]].shape
    kernel, places = w[2:], math.prod(y[2:])
    strides = node.attributes.get("strides", [1] * len(kernel))
    if max(kernel, default=1) == 1 and max(strides, default=1) == 1 and not any(node.attributes.get("pads", ())):
        return 0
    filters = w[0] // int(node.attributes.get("group", 1))
    if filters > places:
        return _FLOAT * math.prod(w[1:]) * places
    return _PIECE * threads
