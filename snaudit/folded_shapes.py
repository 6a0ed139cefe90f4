"""Folding of the ops that move, join, cut and count numbers and do no arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from snaudit.attributes import attribute
from snaudit.folded import CannotFold, Inputs, Op, axes_of, axis_of, bounded, integers


def _reshape(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    array, shape = inputs[0], integers(inputs[1])
    if not attribute(node, "allowzero", 0):
        shape = [array.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    if len(shape) > 32 or any(size < -1 for size in shape):
        raise CannotFold("a malformed shape")
    return array.reshape(shape)


def _flatten(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    axis, shape = attribute(node, "axis", 1), inputs[0].shape
    if not -len(shape) <= axis <= len(shape):
        raise CannotFold(f"axis {axis}")
    axis = axis + len(shape) if axis < 0 else axis
    return inputs[0].reshape(math.prod(shape[:axis]), math.prod(shape[axis:]))


def _transpose(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    order = attribute(node, "perm")
    return inputs[0].transpose() if order is None else inputs[0].transpose(tuple(order))


def _squeeze(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    axes = axes_of(node, inputs, 1, inputs[0].ndim)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


def _unsqueeze(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    given = attribute(node, "axes")
    count = len(given) if given is not None else inputs[1].size
    axes = axes_of(node, inputs, 1, inputs[0].ndim + count)
    if axes is None or inputs[0].ndim + count > 32:
        raise CannotFold("no axes")
    return np.expand_dims(inputs[0], tuple(axes))


def _concat(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    if any(array is None or array.dtype != inputs[0].dtype for array in inputs):
        raise CannotFold("operands of different types")
    bounded((sum(array.size for array in inputs),), inputs[0].dtype, limit)
    return np.concatenate(inputs, axis_of(attribute(node, "axis", 1), inputs[0].ndim))


def _slice(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    array = inputs[0]
    starts, ends = attribute(node, "starts"), attribute(node, "ends")
    steps = None
    if starts is None:
        starts, ends = integers(inputs[1]), integers(inputs[2])
        steps = integers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else None
    axes = axes_of(node, inputs, 3, array.ndim)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(axes) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps or len(set(axes)) != len(axes):
        raise CannotFold("a malformed slice")
    index = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = array.shape[axis]
        start, end = (v + size if v < 0 else v for v in (start, end))
        if step > 0:
            index[axis] = slice(min(max(start, 0), size), min(max(end, 0), size), step)
        else:  # an end before the first element is None, for -1 would mean the last
            first, last = min(max(start, 0), size - 1), max(end, -1)
            index[axis] = slice(first, None if last < 0 else last, step) if size else slice(0, 0)
    return array[tuple(index)]


def _gather(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    array, indices = inputs
    axis = axis_of(attribute(node, "axis", 0), array.ndim)
    if indices.dtype.kind not in "iu":
        raise CannotFold("indices that are no integers")
    bounded(array.shape[:axis] + indices.shape + array.shape[axis + 1 :], array.dtype, limit)
    return np.asarray(np.take(array, indices, axis))


def _split(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    array, parts = inputs[0], attribute(node, "split")
    axis = axis_of(attribute(node, "axis", 0), array.ndim)
    size = array.shape[axis]
    if parts is None and len(inputs) > 1 and inputs[1] is not None:
        parts = integers(inputs[1])
    if parts is None:
        count = attribute(node, "num_outputs", len(node.outputs))
        if count < 1:
            raise CannotFold("a split into nothing")
        each = -(-size // count)
        parts = [each] * (count - 1) + [size - each * (count - 1)]
    if any(part < 0 for part in parts) or sum(parts) != size:
        raise CannotFold("a split into parts that are not the whole")
    return np.split(array, np.cumsum(parts)[:-1], axis)


def _expand(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(integers(inputs[1])))
    return np.broadcast_to(inputs[0], bounded(shape, inputs[0].dtype, limit))


def _tile(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    repeats = integers(inputs[1])
    if len(repeats) != inputs[0].ndim:
        raise CannotFold("repeats for another rank")
    bounded([a * b for a, b in zip(inputs[0].shape, repeats, strict=True)], inputs[0].dtype, limit)
    return np.tile(inputs[0], repeats)


def _constant_of_shape(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    if fill is None:
        held = attribute(node, "value")
        fill = np.zeros(1, np.float32) if held is None else held.numpy()
    if fill.size != 1:
        raise CannotFold("a fill of several numbers")
    shape = bounded(integers(inputs[0]), fill.dtype, limit)
    return np.broadcast_to(fill.reshape(()), shape)


def _static_shape(node: ir.Node) -> tuple[int, ...]:
    value = node.inputs[0] if node.inputs else None
    tensor = None if value is None else value.meta.get("tensor")
    shape = getattr(tensor, "shape", None) or (None if value is None else value.shape)
    if shape is None or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise CannotFold("a shape that is not static")
    return tuple(shape)


def _shape(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    return np.asarray(_static_shape(node)[attribute(node, "start", 0) : attribute(node, "end")], np.int64)


def _size(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    return np.asarray(math.prod(_static_shape(node)), np.int64)


OPS: dict[str, Op] = {
    "Concat": Op(_concat),
    "ConstantOfShape": Op(_constant_of_shape, needs=(0,)),
    "Expand": Op(_expand, needs=(1,)),
    "Flatten": Op(_flatten),
    "Gather": Op(_gather, needs=(1,)),
    "Identity": Op(lambda node, inputs, limit, fill: inputs[0]),
    "Reshape": Op(_reshape, needs=(1,)),
    "Shape": Op(_shape, shape_only=True),
    "Size": Op(_size, shape_only=True),
    "Slice": Op(_slice, needs=(1, 2, 3, 4)),
    "Split": Op(_split, needs=(1,)),
    "Squeeze": Op(_squeeze, needs=(1,)),
    "Tile": Op(_tile, needs=(1,)),
    "Transpose": Op(_transpose),
    "Unsqueeze": Op(_unsqueeze, needs=(1,)),
}
