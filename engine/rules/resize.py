"""Resize: linear in its input and separable, so its gradient is a product with one matrix per resized axis.

Strategy: the matrices are read off the runtime itself, which resizes an identity matrix along one axis when the plan
is made: all modes, coordinate transformations and roundings are exactly those of the forward pass. A nearest-neighbour
enlargement by a whole factor only sums over blocks.
"""

from __future__ import annotations

import numpy as np

from .. import onnxio
from ..graph import Array, Builder, TensorType
from ..runtime import run_once
from .table import Site, gradient

_SETTINGS = ("antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode", "nearest_mode")


def axis_matrix(s: Site, length: int, target: int, scale: float | None) -> Array:
    """How one axis is resized: [target, length]. `scale` None: the ratio of the lengths."""
    b = Builder("r")
    eye = b.constant(np.eye(length, dtype=np.float32)[None, None])
    given = {k: v for k, v in s.node.attributes.items() if k in _SETTINGS}
    sizes = ["", "", b.ints(1, 1, target, length)]
    if scale is not None:
        sizes = ["", b.constant(np.array([1, 1, scale, 1], np.float32)), ""]
    b.op("Resize", eye, *(sizes if sizes[-1] else sizes[:-1]), name="y", **given)
    model = onnxio.to_bytes(
        b.nodes, {}, {"y": TensorType("float32", (1, 1, target, length))}, b.constants, s.graph.opset
    )
    resized: Array = run_once(model, {}, ["y"])[0][0, 0]
    return resized


@gradient("Resize", 0)
def _(s: Site) -> str:
    shape, target = list(s.shape()), s.y_shape
    if s.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        s.refuse("it crops as well (tf_crop_and_resize); slice first")
    axes = [a % len(shape) for a in s.attribute("axes", [])] or [*range(len(shape))]
    scales = dict(zip(axes, (float(v) for v in s.value(2)), strict=True)) if s.has(2) and s.value(2).size else {}
    result, now = s.g, list(target)
    for axis in range(len(shape)):
        if shape[axis] == target[axis] and scales.get(axis, 1.0) == 1.0:
            continue
        matrix = axis_matrix(s, shape[axis], target[axis], scales.get(axis))
        result = _back(s, result, now, axis, matrix)
        now[axis] = shape[axis]
    return result


def _back(s: Site, g: str, shape: list[int], axis: int, matrix: Array) -> str:
    """The product of a gradient with the transposed matrix along an axis."""
    target, length = matrix.shape
    times = target // length
    if target == times * length and np.array_equal(matrix, np.repeat(np.eye(length), times, 0)):
        split = [*shape[:axis], length, times, *shape[axis + 1 :]]
        return s.total(s.reshape(g, split), [axis + 1], keepdims=0)
    matrix = matrix.astype(s.graph.types[s.y].dtype)
    if axis == len(shape) - 1:
        return s.op("MatMul", g, s.builder.constant(np.ascontiguousarray(matrix)))
    transposed = s.builder.constant(np.ascontiguousarray(matrix.T))
    if axis == len(shape) - 2:
        return s.op("MatMul", transposed, g)
    behind = int(np.prod(shape[axis + 1 :]))
    flat = s.op("MatMul", transposed, s.reshape(g, [-1, target, behind]))
    return s.reshape(flat, [*shape[:axis], length, *shape[axis + 1 :]])
