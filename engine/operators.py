"""The reference page of operators, generated from the tables of rules: `python -m sanderling.engine.operators`."""

from __future__ import annotations

from .rules import RULES, STOPS

_HEAD = """# Operators that can be trained through

Generated from the rule tables by `python -m sanderling.engine.operators`; a test compares this page with them. Models
of opset 7 to 24 are read; those below 18 are converted first, and those above 21 may use only what 21 has as well. An
operator that is in neither table stops planning with an error that names the operator, its node and the model.

Gradients flow to the inputs named in the table; the other inputs (axes, shapes, indices, frozen statistics) count as
constants and must be known when the plan is made, except the indices of Gather. Limits: Dropout as in inference;
BatchNormalization with its statistics frozen, or in training mode (then batches are whole, and the running statistics
are kept up); LSTM, GRU and RNN without clip, peepholes and parameters of activations; ConvTranspose
with explicit pads; Pad by reflection or repetition only outwards. Control flow (If, Loop, Scan) is refused.

| Operator | Gradient to inputs | Family |
|---|---|---|
"""
_STOPS = """
## No gradient

What comes before these operators is not trained through them; their results count as constants.

| Operator | Because |
|---|---|
"""


def page() -> str:
    """The page as Markdown."""
    rows = []
    for op in sorted(RULES):
        entry = RULES[op]
        inputs = "all" if entry.rest is not None else ", ".join(str(i) for i in sorted(entry.rules))
        rows.append(f"| {op} | {inputs} | {entry.family} |\n")
    stops = [f"| {op} | {STOPS[op]} |\n" for op in sorted(STOPS)]
    return _HEAD + "".join(rows) + _STOPS + "".join(stops)


if __name__ == "__main__":
    print(page(), end="")
