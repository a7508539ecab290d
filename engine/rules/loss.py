"""Loss operators: SoftmaxCrossEntropyLoss and NegativeLogLikelihoodLoss.

Strategy: with the labels as a one-hot tensor along axis 1 (rows of zeros where a label is to be ignored) and weighted
by class, the negative log-likelihood is a product and a sum, and its gradient that tensor, scaled; through the softmax
the probabilities are added, times the weight of each place. The mean is over the weights of all places.
"""

from __future__ import annotations

import numpy as np

from .table import Site, gradient


def _labels(s: Site) -> str:
    """The one-hot labels times the weights of their classes, [N, C, ...]."""
    classes = s.shape()[1]
    labels, ignored = s.x(1), s.attribute("ignore_index")
    if ignored is not None:  # an index out of range has a row of zeros; a negative one may be counted from the end
        kind = np.dtype(s.graph.types[labels].dtype)
        away = s.op("Equal", labels, s.builder.constant(np.array(ignored, kind)))
        labels = s.op("Where", away, s.builder.constant(np.array(classes, kind)), labels)
    ends = s.builder.constant(np.array([0, 1], s.graph.types[s.x()].dtype))
    chosen = s.op("OneHot", labels, s.ints(classes), ends, axis=1)
    if not s.has(2):
        return chosen
    return s.op("Mul", chosen, s.reshape(s.x(2), [1, classes] + [1] * (len(s.shape()) - 2)))


def _places(s: Site) -> str:
    """The weight of each place, [N, 1, ...]; empty where all are 1."""
    return s.total(_labels(s), [1]) if s.has(2) or s.attribute("ignore_index") is not None else ""


def _arriving(s: Site) -> str:
    """The gradient of the value of each place: [N, 1, ...], or a number for all."""
    reduction = s.attribute("reduction", "mean")
    if reduction == "none":
        batch, _, *space = s.shape()
        return s.reshape(s.g, [batch, 1, *space])
    if reduction == "sum":
        return s.g
    places = _places(s)
    if places:
        return s.op("Div", s.g, s.op("ReduceSum", places, keepdims=0))
    return s.op("Mul", s.g, s.scalar(s.shape()[1] / np.prod(s.shape())))


@gradient("NegativeLogLikelihoodLoss", 0)
def _(s: Site) -> str:
    return s.op("Neg", s.op("Mul", _labels(s), _arriving(s)))


@gradient("SoftmaxCrossEntropyLoss", 0)
def _(s: Site) -> str:
    second = s.gradients[1] if len(s.gradients) > 1 else None
    if len(s.node.outputs) > 1 and s.node.outputs[1]:
        probabilities = s.op("Exp", s.node.outputs[1])
    else:
        probabilities = s.op("Softmax", s.x(), axis=1)
    result = ""
    if s.gradients[0] is not None:
        places = _places(s)
        given = s.op("Mul", probabilities, places) if places else probabilities
        result = s.op("Mul", s.op("Sub", given, _labels(s)), _arriving(s))
    if second is not None:  # of the logarithms of the probabilities
        through = s.op("Sub", second, s.op("Mul", probabilities, s.total(second, [1])))
        result = s.op("Add", result, through) if result else through
    return result
