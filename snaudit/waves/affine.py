"""Convolutions, means, dense layers, scalings and sums as maps on tori."""

from __future__ import annotations

import math

import numpy as np

from snaudit.linearized.interface import Node, Refused
from snaudit.linearized.products import Window
from snaudit.linearized.sums import channel_factors
from snaudit.rounding import U
from snaudit.waves.building import identity
from snaudit.waves.interface import Kernel, Moved
from snaudit.waves.seen import Seen, mapped, natural


def _window(node: Node, taps: tuple[int, ...]) -> tuple[Seen, Window]:
    data = mapped(node.only())
    if len(taps) != len(data.sizes):
        raise Refused
    return data, Window.of(node, data.sizes, taps)


def _convolved(data: Seen, weight: np.ndarray, window: Window, groups: int, relative: float = 0.0) -> Seen:
    offset = tuple(-p for p in window.before)
    kernel = Kernel(np.asarray(weight, np.float64), window.stride, window.dilation, offset, groups, relative)
    return data.plain(data.builder.convolved(data.number, kernel, window.outputs))


def convolution(node: Node) -> Seen:
    weight, _ = node.constant(1), node.constant(2)
    data, window = _window(node, weight.shape[2:])
    groups = int(node.attribute("group", 1))
    if groups < 1 or weight.shape[0] % groups:
        raise Refused
    return _convolved(data, weight, window, groups)


def average_pool(node: Node) -> Seen:
    """The mean over each window, if all of its taps count."""
    taps = tuple(node.attribute("kernel_shape"))
    data, window = _window(node, taps)
    rows = zip(data.sizes, window.outputs, window.stride, window.dilation, taps, window.before, strict=True)
    beyond = any(p or s * (m - 1) + d * (k - 1) - p >= n for n, m, s, d, k, p in rows)
    if beyond and not node.attribute("count_include_pad", 0):
        raise Refused
    return _convolved(data, np.full((data.channels, 1, *taps), 1.0 / math.prod(taps)), window, data.channels, 2 * U)


def global_average(node: Node) -> Seen:
    return _reduced(mapped(node.only()), True, False)


def reduction(node: Node) -> Seen:
    """ReduceMean or ReduceSum over all spatial axes."""
    data, axes = mapped(node.only()), node.whole(1, "axes")
    rank = len(data.shape)
    if not axes or {axis % rank for axis in axes} != set(range(2, rank)):
        raise Refused
    return _reduced(data, node.node.op_type == "ReduceMean", not node.attribute("keepdims", 1))


def _reduced(data: Seen, mean: bool, flat: bool) -> Seen:
    places = math.prod(data.sizes)
    weight = np.full((data.channels, 1, *data.sizes), 1.0 / places if mean else 1.0)
    ones = (1,) * len(data.sizes)
    kernel = Kernel(weight, None, ones, (0,) * len(ones), data.channels, 2 * U if mean else 0.0)
    return data.plain(data.builder.convolved(data.number, kernel, ones), flat)


def dense(node: Node) -> Seen:
    """Gemm or MatMul of a flat value: all that it holds, in the order in which it was laid out."""
    data, weight = node.only(), np.asarray(node.constant(1), np.float64)
    if not data.flat or weight.ndim != 2 or node.attribute("transA", 0):
        raise Refused
    matrix = weight if node.node.op_type == "Gemm" and node.attribute("transB", 0) else weight.T
    bias = node.constant(2) if node.node.op_type == "Gemm" else None
    if matrix.shape[1] != math.prod(data.axes):
        raise Refused
    if bias is not None and np.broadcast_shapes(bias.shape, (1, len(matrix))) != (1, len(matrix)):
        raise Refused
    alpha = float(node.attribute("alpha", 1.0)) if node.node.op_type == "Gemm" else 1.0
    order = tuple(1 + int(a) for a in np.argsort(data.layout))
    wide = (alpha * matrix).reshape(len(matrix), *data.axes).transpose(0, *order)
    ones = (1,) * len(data.sizes)
    kernel = Kernel(np.ascontiguousarray(wide), None, ones, (0,) * len(ones), 1, 0.0 if alpha == 1.0 else 2 * U)
    return data.plain(data.builder.convolved(data.number, kernel, ones), True)


def same(node: Node) -> Seen:
    return node.only()


def dropped(node: Node) -> Seen:
    mode = node.constant(2)
    if mode is not None and bool(np.asarray(mode).any()):
        raise Refused
    return node.only()


def cast(node: Node) -> Seen:
    if node.attribute("to") not in (1, 10, 11, 16):
        raise Refused
    return node.only()


def negated(node: Node) -> Seen:
    return _times(node.only(), np.array(-1.0), 0.0)


def _times(data: Seen, factors: np.ndarray, relative: float) -> Seen:
    """Each channel times its factor; refused where factors differ within a channel."""
    if np.broadcast_shapes(factors.shape, data.shape) != data.shape or not np.isfinite(factors).all():
        raise Refused
    table = data.by_channel(np.broadcast_to(factors, data.shape).ravel())
    if not (table == table[:, :1]).all():
        raise Refused
    moved = Moved(np.arange(data.channels), table[:, 0].copy(), relative)
    return data.again(data.builder.summed(((data.number, moved),), data.channels))


def factor(node: Node) -> Seen:
    """a·c, c·a or a/c for a constant c."""
    if len(node.data) != 1 or len(node.node.inputs) != 2 or node.attribute("axis") is not None:
        raise Refused
    ((index, data),) = node.data.items()
    divides = node.node.op_type == "Div"
    constant = np.asarray(node.constant(1 - index))
    if constant.dtype.kind != "f" or (divides and (index == 1 or not constant.all())):
        raise Refused
    return _times(data, 1.0 / constant, 2 * U) if divides else _times(data, constant, 0.0)


def normalized(node: Node) -> Seen:
    data = natural(node)
    factors = channel_factors(node, data.channels)
    return _times(data, factors.reshape(1, -1, *(1,) * (len(data.shape) - 2)), 8 * U)


def sum(node: Node) -> Seen:
    """a ± b, of values or constants, nothing being broadcast."""
    if any(v is None for v in node.node.inputs) or node.attribute("axis") is not None:
        raise Refused
    first = next(iter(node.data.values()))
    if any((d.shape, d.layout, d.flat) != (first.shape, first.layout, first.flat) for d in node.data.values()):
        raise Refused
    for index in range(len(node.node.inputs)):
        if index not in node.data:
            shape = np.asarray(node.constant(index)).shape
            if np.broadcast_shapes(shape, first.shape) != first.shape:
                raise Refused
    if len(node.data) == 1 and 0 in node.data:
        return first
    minus = node.node.op_type == "Sub"
    terms = tuple(
        (d.number, identity(d.channels, -1.0 if minus and index else 1.0)) for index, d in node.data.items()
    )
    return first.again(first.builder.summed(terms, first.channels))
