"""Products with a constant matrix: dense layers, convolutions at their size, means over windows and axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snaudit.enclosed import Enclosed
from snaudit.linearized.interface import (
    LARGEST,
    MOST,
    Coefficients,
    Node,
    Refused,
    aligned,
)
from snaudit.rounding import U


def gemm(node: Node) -> Coefficients | None:
    data, weight, bias = node.only(), node.constant(1), node.constant(2)
    if node.attribute("transA", 0) or len(data.shape) != 2 or weight.ndim != 2:
        raise Refused
    matrix = weight if node.attribute("transB", 0) else weight.T
    if bias is not None:
        aligned(bias, data)
    alpha = np.array(float(node.attribute("alpha", 1.0)))
    found = _rowwise(data, np.asarray(matrix, np.float64))
    return found if found is None or float(alpha) == 1.0 else found.times(alpha)


def matmul(node: Node) -> Coefficients | None:
    if len(node.data) != 1:
        raise Refused
    ((index, data),) = node.data.items()
    weight = np.asarray(node.constant(1 - index), np.float64)
    if weight.ndim != 2 or len(data.shape) < 2 or (data.batched and index == 1 and len(data.shape) < 3):
        raise Refused
    if index == 0:
        return _rowwise(data, weight.T)
    *lead, rows, columns = data.shape
    if weight.shape[1] != rows:
        raise Refused
    matrix = _repeated(math.prod(lead), np.kron(weight, np.eye(columns)))
    return data.mapped(Enclosed(matrix), (*lead, weight.shape[0], columns))


def _rowwise(data: Coefficients, matrix: np.ndarray) -> Coefficients | None:
    """The matrix applied along the last axis."""
    *lead, columns = data.shape
    if matrix.shape[1] != columns:
        raise Refused
    wide = _repeated(math.prod(lead), matrix)
    return data.mapped(Enclosed(wide), (*lead, matrix.shape[0]))


def _repeated(count: int, matrix: np.ndarray) -> np.ndarray:
    if matrix.size * count * count > MOST:
        raise Refused
    return matrix if count == 1 else np.kron(np.eye(count), matrix)


def convolution(node: Node) -> Coefficients | None:
    """Conv at its input's size, with its zero padding, as a matrix of exact entries."""
    data, kernel = node.only(), node.constant(1)
    node.constant(2)
    size = data.shape[2:]
    if kernel.ndim != len(data.shape) or kernel.ndim < 3 or data.shape[0] != 1:
        raise Refused
    window = Window.of(node, size, kernel.shape[2:])
    groups = int(node.attribute("group", 1))
    if kernel.shape[1] * groups != data.shape[1] or kernel.shape[0] % groups:
        raise Refused
    shape = (1, kernel.shape[0], *window.outputs)
    if math.prod(shape) > LARGEST or math.prod(shape) * data.size > MOST:
        raise Refused
    return data.mapped(Enclosed(window.matrix(np.asarray(kernel, np.float64), groups)), shape)


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel slides: y[m] meets x[stride·m + dilation·t − before]."""

    size: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, size: tuple[int, ...], taps: tuple[int, ...]) -> Window:
        axes = len(size)
        stride = tuple(node.attribute("strides", (1,) * axes))
        dilation = tuple(node.attribute("dilations", (1,) * axes))
        pads = tuple(node.attribute("pads", (0,) * (2 * axes)))
        auto = node.attribute("auto_pad", "NOTSET")
        told = tuple(node.attribute("kernel_shape", taps))
        if node.attribute("ceil_mode", 0) or told != tuple(taps) or len(stride) != axes or len(pads) != 2 * axes:
            raise Refused
        if len(dilation) != axes or min(*stride, *dilation) < 1 or min(pads) < 0:
            raise Refused
        wide = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
        before, after = pads[:axes], pads[axes:]
        if auto in ("SAME_UPPER", "SAME_LOWER") and set(dilation) == {1}:  # runtimes differ on dilation
            missing = [
                max(0, (-(-n // s) - 1) * s + w - n) for n, s, w in zip(size, stride, wide, strict=True)
            ]
            less, more = [m // 2 for m in missing], [m - m // 2 for m in missing]
            before, after = (less, more) if auto == "SAME_UPPER" else (more, less)
        elif auto == "VALID":
            before = after = (0,) * axes
        elif auto != "NOTSET":
            raise Refused
        rows = zip(size, before, after, wide, stride, strict=True)
        outputs = tuple((n + a + b - w) // s + 1 for n, a, b, w, s in rows)
        if min(outputs) < 1:
            raise Refused
        return cls(tuple(size), tuple(taps), stride, dilation, tuple(before), outputs)

    def matrix(self, kernel: np.ndarray, groups: int) -> np.ndarray:
        """The dense matrix (outputs × places, inputs × places) of a kernel as Conv stores it."""
        out, inner = kernel.shape[:2]
        places, sources = math.prod(self.outputs), math.prod(self.size)
        matrix = np.zeros((out, places, inner * groups, sources))
        rows = np.arange(out)
        first = (rows // (out // groups)) * inner
        for tap in np.ndindex(*self.taps):
            met, inside = self.met(tap)
            for i in range(inner):
                matrix[rows[:, None], inside, (first + i)[:, None], met] = kernel[(rows, i, *tap)][:, None]
        return matrix.reshape(out * places, inner * groups * sources)

    def met(self, tap: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(the source places, the output places) that a tap joins."""
        axes = [
            np.arange(m) * s + d * t - p
            for m, s, d, t, p in zip(self.outputs, self.stride, self.dilation, tap, self.before, strict=True)
        ]
        grid = np.meshgrid(*axes, indexing="ij")
        inside = np.ones(self.outputs, dtype=bool)
        for places, n in zip(grid, self.size, strict=True):
            inside &= (places >= 0) & (places < n)
        flat = np.zeros(self.outputs, dtype=int)
        for places, n in zip(grid, self.size, strict=True):
            flat = flat * n + places
        return flat[inside], np.flatnonzero(inside)


def average_pool(node: Node) -> Coefficients | None:
    """The mean over each window: of all its taps with count_include_pad, else of those inside."""
    data = node.only()
    taps = node.attribute("kernel_shape")
    if taps is None or len(data.shape) != len(taps) + 2:
        raise Refused
    window = Window.of(node, data.shape[2:], tuple(taps))
    channels = data.shape[1]
    if channels * math.prod(window.outputs) > LARGEST:
        raise Refused
    ones = window.matrix(np.ones((1, 1, *taps)), 1)
    counts = ones.sum(axis=1)
    if node.attribute("count_include_pad", 0):
        counts = np.full_like(counts, math.prod(taps))
    if not counts.all() or ones.size * channels * channels > MOST:
        raise Refused
    return _averaged(data, _repeated(channels, ones / counts[:, None]), (1, channels, *window.outputs))


def _averaged(data: Coefficients, matrix: np.ndarray, shape: tuple[int, ...]) -> Coefficients | None:
    """A matrix of quotients 1/k, each rounded once."""
    return data.mapped(Enclosed(matrix, U * np.abs(matrix)), shape)


def global_average(node: Node) -> Coefficients | None:
    data = node.only()
    if len(data.shape) < 3:
        raise Refused
    return _reduced(data, tuple(range(2, len(data.shape))), True, True)


def reduction(node: Node) -> Coefficients | None:
    """ReduceMean or ReduceSum over constant axes."""
    data = node.only()
    axes = node.whole(1, "axes")
    if not axes:
        raise Refused
    axes = tuple(axis % len(data.shape) for axis in axes)
    if data.batched and 0 in axes:
        raise Refused
    return _reduced(data, axes, bool(node.attribute("keepdims", 1)), node.node.op_type == "ReduceMean")


def _reduced(data: Coefficients, axes: tuple[int, ...], keeps: bool, mean: bool) -> Coefficients | None:
    numbers = np.moveaxis(data.numbers(), axes, range(-len(axes), 0))
    count = math.prod(data.shape[axis] for axis in axes)
    rows = numbers.reshape(-1, count)
    shape = tuple(1 if a in axes else n for a, n in enumerate(data.shape) if keeps or a not in axes)
    if not shape:
        raise Refused
    matrix = np.zeros((len(rows), data.size))
    matrix[np.arange(len(rows))[:, None], rows] = 1.0 / count if mean else 1.0
    return _averaged(data, matrix, shape) if mean else data.mapped(Enclosed(matrix), shape)
