"""Ops that move entries about: channels, places, axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from snaudit.linearized.interface import Node, Refused
from snaudit.waves.interface import Kernel, Moved
from snaudit.waves.seen import Seen, mapped, natural


def joined(node: Node) -> Seen:
    """Concat of channels."""
    parts = [node.data[i] for i in range(len(node.node.inputs))]  # of constants: a KeyError
    first = parts[0]
    axis = int(node.attribute("axis")) % len(first.shape)
    if axis != 1 or any(not p.natural or (p.sizes, p.flat) != (first.sizes, first.flat) for p in parts):
        raise Refused
    total = sum(p.channels for p in parts)
    terms, start = [], 0
    for part in parts:
        index = np.full(total, -1)
        index[start : start + part.channels] = np.arange(part.channels)
        terms.append((part.number, Moved(index, (index >= 0).astype(float))))
        start += part.channels
    return first.again(first.builder.summed(tuple(terms), total))


def _picked(data: Seen, index: np.ndarray) -> Seen:
    if len(index) == 0:
        raise Refused
    return data.again(data.builder.summed(((data.number, Moved(index, np.ones(len(index)))),), len(index)))


def gathered(node: Node) -> Seen:
    if set(node.data) != {0}:
        raise Refused
    data, index = natural(node), node.constant(1)
    n = data.channels
    if int(node.attribute("axis", 0)) % len(data.shape) != 1 or index.ndim != 1 or index.dtype.kind not in "iu":
        raise Refused
    if (index >= n).any() or (index < -n).any():
        raise Refused
    return _picked(data, index.astype(np.int64) % n)


def split(node: Node) -> Sequence[Seen | None]:
    data, sizes = natural(node), node.whole(1, "split")
    count = len(node.node.outputs)
    if int(node.attribute("axis", 0)) % len(data.shape) != 1:
        raise Refused
    if sizes is None:
        if data.channels % count:
            raise Refused
        sizes = (data.channels // count,) * count
    if sum(sizes) != data.channels or len(sizes) != count or min(sizes) < 0:
        raise Refused
    return [_picked(data, part) for part in np.split(np.arange(data.channels), np.cumsum(sizes)[:-1])]


def sliced(node: Node) -> Seen:
    """Channels in whatever steps; places in steps forward."""
    data = natural(node)
    starts, ends = node.whole(1, "starts"), node.whole(2, "ends")
    axes = node.whole(3, "axes") or tuple(range(len(starts)))
    steps = node.whole(4, "steps") or (1,) * len(starts)
    places = {a: np.arange(n) for a, n in enumerate(data.shape)}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(data.shape)
        n = data.shape[axis]
        last = end + n if step < 0 and end < 0 else end
        places[axis] = np.arange(n)[slice(start, None if step < 0 and last < 0 else last, step)]
        if axis == 0 or len(places[axis]) == 0:
            raise Refused
    if data.flat or all(len(places[2 + a]) == n for a, n in enumerate(data.sizes)):
        return _picked(data, places[1])
    if len(places[1]) != data.channels:
        data = _picked(data, places[1])
    spatial = [places[2 + a] for a in range(len(data.sizes))]
    stride = tuple(int(p[1] - p[0]) if len(p) > 1 else 1 for p in spatial)
    if min(stride) < 1:
        raise Refused
    return _moved(data, stride, tuple(int(p[0]) for p in spatial), tuple(len(p) for p in spatial))


def _moved(data: Seen, stride: tuple[int, ...], offset: tuple[int, ...], sizes: tuple[int, ...]) -> Seen:
    ones = (1,) * len(sizes)
    kernel = Kernel(np.ones((data.channels, 1, *ones)), stride, ones, offset, data.channels)
    return data.plain(data.builder.convolved(data.number, kernel, sizes))


def padded(node: Node) -> Seen:
    """Pad with a constant, on spatial axes."""
    data, pads = mapped(node.only()), node.whole(1, "pads")
    rank = len(data.shape)
    if node.attribute("mode", "constant") != "constant" or len(pads) != 2 * rank or min(pads) < 0:
        raise Refused
    node.constant(2)
    if len(node.node.inputs) > 3 or any(pads[a] + pads[rank + a] for a in (0, 1)):
        raise Refused
    before = tuple(-p for p in pads[2:rank])
    sizes = tuple(n + pads[2 + a] + pads[rank + 2 + a] for a, n in enumerate(data.sizes))
    if sizes == data.sizes:
        return data
    return _moved(data, (1,) * len(sizes), before, sizes)


def transposed(node: Node) -> Seen:
    data = node.only()
    order = tuple(node.attribute("perm", tuple(range(len(data.shape)))[::-1]))
    if data.flat or len(order) != len(data.shape) or order[0] != 0:
        raise Refused
    return Seen(data.builder, data.number, tuple(data.layout[a - 1] for a in order[1:]), False, data.batch)


def reshaped(node: Node) -> Seen:
    """Reshape, Flatten, Squeeze, Unsqueeze: to one axis after the batch, or one place back to a map's axes."""
    data, op = node.only(), node.node.op_type
    if op == "Flatten":
        shape = _flattened(data, int(node.attribute("axis", 1)))
    elif op == "Reshape":
        shape = _target(node, data)
    else:
        shape = _with_axes(op, data, node.whole(1, "axes"))
    entries = math.prod(data.axes)
    if shape == data.shape[1:]:
        return data
    if shape == (entries,):
        return Seen(data.builder, data.number, data.layout, True, data.batch)
    if shape == (entries, *(1,) * len(data.sizes)) and math.prod(data.sizes) == 1:
        return data.plain(data.number)
    raise Refused


def _flattened(data: Seen, axis: int) -> tuple[int, ...]:
    if axis % len(data.shape) != 1:
        raise Refused
    return (math.prod(data.axes),)


def _target(node: Node, data: Seen) -> tuple[int, ...]:
    """The shape after the batch that Reshape makes; refused where the batch might not stay in front."""
    told = [int(v) for v in np.asarray(node.constant(1)).ravel()]
    if (node.attribute("allowzero", 0) and 0 in told) or len(told) < 2:
        raise Refused
    rest = [data.shape[i] if v == 0 else v for i, v in enumerate(told)][1:]
    entries = math.prod(data.axes)
    stays = told[0] == 0 or (data.batch is not None and told[0] == data.batch)
    if not stays and (told[0] != -1 or -1 in rest):
        raise Refused
    if rest.count(-1) == 1 and -1 in rest:
        rest[rest.index(-1)] = entries // -math.prod(rest)
    if min(rest) < 1 or math.prod(rest) != entries:
        raise Refused
    return tuple(rest)


def _with_axes(op: str, data: Seen, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    if axes is None:
        raise Refused
    rank = len(data.shape) + (len(axes) if op == "Unsqueeze" else 0)
    places = {axis % rank for axis in axes}
    if 0 in places:
        raise Refused
    if op == "Squeeze":
        if any(data.shape[a] != 1 for a in places):
            raise Refused
        return tuple(n for a, n in enumerate(data.shape) if a and a not in places)
    sizes = iter(data.shape[1:])
    return tuple(1 if a in places else next(sizes) for a in range(1, rank))
