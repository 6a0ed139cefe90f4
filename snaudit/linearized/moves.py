"""Ops that only move entries: reshape, transpose, slice, gather, split, concatenate, pad."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from snaudit.enclosed import Enclosed, block
from snaudit.linearized.interface import (
    LARGEST,
    Coefficients,
    Node,
    Refused,
    aligned,
    same_batch,
)


def reshaped(node: Node) -> Coefficients | None:
    """Reshape, Flatten, Squeeze, Unsqueeze: numbers stay in order; a batch must stay in front."""
    data, op = node.only(), node.node.op_type
    if op == "Flatten":
        axis = int(node.attribute("axis", 1))
        axis = axis + len(data.shape) if axis < 0 else axis
        if data.batched and axis != 1:
            raise Refused
        shape = (math.prod(data.shape[:axis]), math.prod(data.shape[axis:]))
    elif op == "Reshape":
        shape = _target(node, data)
    else:
        shape = _with_axes(op, data, node.whole(1, "axes"))
    if data.batched and (not shape or shape[0] != 1):
        raise Refused
    return data.picked(data.numbers().reshape(shape)) if shape else None


def _target(node: Node, data: Coefficients) -> tuple[int, ...]:
    """The shape that Reshape makes, with 1 for a batch: the entries after it must be a sample's."""
    told = [int(v) for v in np.asarray(node.constant(1)).ravel()]
    if node.attribute("allowzero", 0) and 0 in told:
        raise Refused
    sizes = [data.shape[i] if v == 0 else v for i, v in enumerate(told)]
    if not data.batched:
        return data.numbers().reshape(sizes).shape
    rest = sizes[1:]
    if told[0] in (0, -1) and -1 not in rest:  # [batch, fixed…]
        known = rest
    elif told[0] == 0 and rest.count(-1) == 1:
        others = math.prod(v for v in rest if v != -1)
        known = [data.size // others if v == -1 else v for v in rest]
    else:
        raise Refused
    if math.prod(known) != data.size:
        raise Refused
    return (1, *known)


def _with_axes(op: str, data: Coefficients, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    if axes is None:
        raise Refused
    rank = len(data.shape) + (len(axes) if op == "Unsqueeze" else 0)
    places = {axis % rank for axis in axes}
    if data.batched and 0 in places:
        raise Refused
    if op == "Squeeze":
        if any(data.shape[axis] != 1 for axis in places):
            raise Refused
        return tuple(n for axis, n in enumerate(data.shape) if axis not in places)
    sizes = iter(data.shape)
    return tuple(1 if axis in places else next(sizes) for axis in range(rank))


def transposed(node: Node) -> Coefficients | None:
    data = node.only()
    order = tuple(node.attribute("perm", tuple(range(len(data.shape)))[::-1]))
    if data.batched and order[0] != 0:
        raise Refused
    return data.picked(data.numbers().transpose(order))


def sliced(node: Node) -> Coefficients | None:
    data = node.only()
    starts, ends = node.whole(1, "starts"), node.whole(2, "ends")
    axes = node.whole(3, "axes") or tuple(range(len(starts)))
    steps = node.whole(4, "steps") or (1,) * len(starts)
    index: list[slice] = [slice(None)] * len(data.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(data.shape)
        if data.batched and axis == 0:
            raise Refused
        n = data.shape[axis]
        if step < 0:  # ONNX clamps to [−1, n−1]; numpy says None for −1
            last = end + n if end < 0 else end
            index[axis] = slice(start, None if last < 0 else last, step)
        else:
            index[axis] = slice(start, end, step)
    return data.picked(data.numbers()[tuple(index)])


def gathered(node: Node) -> Coefficients | None:
    data, index = node.only(), node.constant(1)
    axis = int(node.attribute("axis", 0)) % len(data.shape)
    if data.batched and axis == 0:
        raise Refused
    n = data.shape[axis]
    if index.dtype.kind not in "iu" or (index >= n).any() or (index < -n).any():
        raise Refused
    return data.picked(np.take(data.numbers(), index.astype(int), axis=axis))


def split(node: Node) -> Sequence[Coefficients | None]:
    data, sizes = node.only(), node.whole(1, "split")
    axis = int(node.attribute("axis", 0)) % len(data.shape)
    if data.batched and axis == 0:
        raise Refused
    count = len(node.node.outputs)
    if sizes is None:
        if data.shape[axis] % count:
            raise Refused
        sizes = (data.shape[axis] // count,) * count
    if sum(sizes) != data.shape[axis] or len(sizes) != count:
        raise Refused
    return [data.picked(part) for part in np.split(data.numbers(), np.cumsum(sizes)[:-1], axis=axis)]


def joined(node: Node) -> Coefficients | None:
    """Concat of values of one source; constants among them have no coefficients."""
    parts: list[Coefficients] = []
    first = next(iter(node.data.values()))
    same_batch(tuple(node.data.values()))
    axis = int(node.attribute("axis")) % len(first.shape)
    if first.batched and axis == 0:
        raise Refused
    for index in range(len(node.node.inputs)):
        if index in node.data:
            parts.append(node.data[index])
        elif first.batched:
            raise Refused
        else:
            array = aligned(np.asarray(node.constant(index)), first)
            parts.append(Coefficients(array.shape, first.batched, {}))
    starts = np.cumsum([0, *(p.size for p in parts)])
    order = np.concatenate([p.numbers() + s for p, s in zip(parts, starts, strict=False)], axis=axis)
    if order.size > LARGEST:
        raise Refused
    blocks: dict[int, Enclosed] = {}
    for j in sorted({j for p in parts for j in p.blocks}):
        columns = next(p.blocks[j].shape[1] for p in parts if j in p.blocks)
        rows = [p.blocks.get(j, Enclosed(np.zeros((p.size, columns)))) for p in parts]
        blocks[j] = block(rows, 0)[order.ravel()]
    return Coefficients(order.shape, first.batched, blocks, max(p.depth for p in parts) + 1)


def padded(node: Node) -> Coefficients | None:
    """Pad with a constant (not reflected, not cropped)."""
    data, pads = node.only(), node.whole(1, "pads")
    rank = len(data.shape)
    if node.attribute("mode", "constant") != "constant" or len(pads) != 2 * rank or min(pads) < 0:
        raise Refused
    node.constant(2)
    if len(node.node.inputs) > 3 or (data.batched and pads[0] + pads[rank]):
        raise Refused
    widths = [(pads[a], pads[rank + a]) for a in range(rank)]
    return data.picked(np.pad(data.numbers(), widths, constant_values=-1))
