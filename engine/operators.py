"""The reference page of operators, generated from the tables of rules: `python -m sanderling.engine.operators`."""

from __future__ import annotations

from .decompose import REWRITES
from .onnxio import LAST_OPSET, NEWEST_OPSET, OPSET
from .rules import REFUSED, RULES, STOPS

_HEAD = f"""# Operators that can be trained through

Generated from the rule tables by `python -m sanderling.engine.operators`; a test compares this page with them. Models
of opset 7 to {LAST_OPSET} are read; those below {OPSET} are converted first, and those above {NEWEST_OPSET} may use
what {NEWEST_OPSET} has as well, and the newer operators that are written out (below). An operator that is in no table
stops planning with an error that names the operator, its node and the model.

Gradients flow to the inputs named in the table; the other inputs (axes, shapes, frozen statistics) count as constants
and must be known when the plan is made, except the indices of Gather, GatherElements, GatherND, ScatterElements and
ScatterND. Limits: Dropout as in inference; BatchNormalization with its statistics frozen, or in training mode (then
batches are whole, and the running statistics are kept up); LSTM, GRU and RNN without clip, peepholes and parameters of
activations; ConvTranspose with explicit pads; Pad by reflection or repetition only outwards; ScatterElements and
ScatterND that replace or add; Einsum without diagonals; Resize without cropping.

Weights in float16 or bfloat16 are read as float32, and exported so; inputs and outputs keep their types. Weights in
double precision are refused.

| Operator | Gradient to inputs | Family |
|---|---|---|
"""
_REWRITES = """
## Written out on reading

These operators are read as others that have rules; a file that is exported keeps them. Those of com.microsoft are what
onnxruntime's own optimizer writes at its basic and extended levels. An If is read as the branch that shapes and
constants choose.

| Operator | Domain |
|---|---|
"""
_STOPS = """
## No gradient

What comes before these operators is not trained through them; their results count as constants.

| Operator | Because |
|---|---|
"""
_REFUSED = """
## Refused

Where a gradient would have to pass one of these, planning stops with an error.

| Operator | Because |
|---|---|
"""
_CHECKED = """
## Models that were checked

Every weight's gradient of these models, as PyTorch 2.13 exports them, was compared with PyTorch's own
(`python benchmarks/exact.py`; some of it in the tests): MLP, autoencoder, DS-CNN in one and two dimensions, TCN,
MobileNetV1, V2, V3-small and V3-large, EfficientNet-Lite0, ShuffleNetV2, SqueezeNet, ResNet-18 and -50, DenseNet-121,
U-Net with transposed convolution and with Resize, ConvNeXt, ESPCN, LSTM and GRU (also bidirectional, with learned
initial states), a transformer encoder, a causal language model with tied embedding, ViT, and collections of rarer
activations, normalizations, reductions and index operations. By the TorchScript exporter at opset 17 (some at 9, 11
and 13) and the dynamo exporter at opset 18 (some at 23 and 24); the batch free and fixed; parameters kept and folded.
"""


def page() -> str:
    """The page as Markdown."""
    rows = []
    for op in sorted(RULES):
        entry = RULES[op]
        inputs = "all" if entry.rest is not None else ", ".join(str(i) for i in sorted(entry.rules))
        rows.append(f"| {op} | {inputs} | {entry.family} |\n")
    stops = [f"| {op} | {STOPS[op]} |\n" for op in sorted(STOPS)]
    rewritten = [f"| {op} | {domain or 'standard'} |\n" for domain, op in sorted(REWRITES) if op != "If"]
    without = [f"| {op} | {REFUSED[op]} |\n" for op in sorted(REFUSED)]
    parts = (_HEAD, *rows, _REWRITES, *rewritten, _STOPS, *stops, _REFUSED, *without, _CHECKED)
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
