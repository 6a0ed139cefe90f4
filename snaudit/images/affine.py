"""Ranges behind affine nodes: Gemm, MatMul, Conv, ConvTranspose, BatchNormalization.

Over x ∈ [m − r, m + r], W·x lies in W·m ± |W|·r, attained entry by entry. In float64 the sums of k products
are within γ_k of themselves (`rounding`), which is added to the radius. Where x's l2 norm is known to be at
most ρ, each entry is also at most ρ·‖row of W‖.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from snaudit.bound import times_up
from snaudit.ranges import UNKNOWN, Range, along, enclosing, ends_along, flat, scaled, with_zero
from snaudit.ranges import added as plus
from snaudit.ranges import multiplied as times
from snaudit.ranges import summed as l1_along
from snaudit.rounding import SAFE, TINY, U, gamma, magnitude_up
from snaudit.rules.interface import Step

_MOST = 1 << 27
"""Entries of a weight beyond which its ranges are not worth a second reading."""


def _weight(step: Step, index: int) -> np.ndarray | None:
    """A constant factor in float64; None where it is none, or not finite, or too large."""
    value = step.node.inputs[index]
    if index in step.varying or value is None:
        return None
    array = step.constant(index)
    if array is None or array.size == 0 or array.size > _MOST or array.dtype.kind in "bc":
        return None
    array = array.astype(np.float64)
    return array if np.isfinite(array).all() else None


def _middle(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, r) with [low, high] inside m ± r."""
    middle = 0.5 * low + 0.5 * high
    radius = np.maximum(high - middle, middle - low) * (1.0 + 4.0 * U) + TINY
    return middle, radius


def _applied(weight: np.ndarray, low: np.ndarray, high: np.ndarray, terms: int) -> tuple[np.ndarray, np.ndarray]:
    """[low, high] of x·W, x a row vector in [low, high], W (…, k, n): rows (…, 1, n) come back."""
    with np.errstate(all="ignore"):
        middle, radius = _middle(low, high)
        size = np.abs(weight)
        centre = np.matmul(middle[None, :], weight)
        slack = np.matmul((radius + gamma(terms + 2) * (np.abs(middle) + radius))[None, :], size)
        slack = slack * (1.0 + gamma(terms + 4)) + TINY
        return centre - slack, centre + slack


def matmul(step: Step) -> Range:
    """The range of A·B: with a constant factor by its entries, else by the factors' norms."""
    right, left = _weight(step, 1), _weight(step, 0)
    if right is not None and right.ndim >= 2:
        found = _right(step, step.range(0), right, 1.0)
        return found if _rank(step, 0) > 1 or right.ndim == 2 else flat(found)
    if left is not None and left.ndim >= 2:
        mirrored = _right(step, _swapped(step.range(1)), np.swapaxes(left, -1, -2), 1.0)
        return _swapped(mirrored) if _rank(step, 1) > 1 else flat(mirrored)
    return product(step, step.range(0), step.range(1), _inner(step))


def _rank(step: Step, index: int) -> int:
    shape = step.shape(index)
    return 0 if shape is None else len(shape)


def _swapped(one: Range) -> Range:
    """The range of the transpose of the last two axes."""

    def turn(end: np.ndarray) -> np.ndarray:
        return np.swapaxes(end.reshape((1,) * (2 - end.ndim) + end.shape), -1, -2)

    def other(most: tuple[int, float] | None) -> tuple[int, float] | None:
        return None if most is None else ({-1: -2, -2: -1}.get(most[0], most[0]), most[1])

    return Range(turn(one.low), turn(one.high), other(one.rows), other(one.sums), one.rests)


def _right(step: Step, one: Range, weight: np.ndarray, gain: float) -> Range:
    """The range of gain·x·W, W (…, k, n)."""
    inner = weight.shape[-2]
    columns = ends_along(one, -1, inner)
    reach = along(one, -1, inner)
    if columns is None and not math.isfinite(reach):
        return UNKNOWN
    low, high = np.array(-np.inf), np.array(np.inf)
    if columns is not None:
        low, high = _applied(weight, *columns, inner)
    if math.isfinite(reach):
        lengths = np.sqrt(np.square(weight).sum(axis=-2, keepdims=True)) * SAFE * reach + TINY
        low, high = np.maximum(low, -lengths), np.minimum(high, lengths)
    if weight.ndim > 2 and math.prod(weight.shape[:-2]) > 1:
        return scaled(enclosing(low, high, one.rests), gain)
    row = times_up(reach, _norm(step, weight)) if math.isfinite(reach) else math.inf
    rows = (-1, row) if math.isfinite(row) else None
    return scaled(enclosing(low.reshape(-1), high.reshape(-1), one.rests, rows), gain)


def _norm(step: Step, weight: np.ndarray) -> float:
    """‖W‖₂ from above: as it was measured, in an l2 audit, else by √(‖W‖₁‖W‖∞) and ‖W‖_F."""
    if step.norm == "l2" and step.operator is not None:
        return step.operator.upper
    return magnitude_up(weight.reshape(-1, weight.shape[-1]))


def _inner(step: Step) -> int | None:
    for index, axis in ((0, -1), (1, -2)):
        shape = step.shape(index)
        if shape is not None and len(shape) >= 2 and shape[axis] is not None:
            return shape[axis]
    return None


def product(step: Step, first: Range, second: Range, inner: int | None) -> Range:
    """The range of A·B, both varying. Row i of it is Σ_k a_ik·b_k: |entry| ≤ ‖a_i‖‖b^j‖, and in norm at
    most ‖a_i‖₁ times the longest row of B (so a softmax's rows keep B's)."""
    most = along(first, -1, inner) * along(second, -2, inner) * SAFE
    most = min(most, l1_along(first, -1, inner) * second.largest * SAFE)
    width = step.output_shape()
    wide = None if width is None or len(width) < 1 else width[-1]
    row = l1_along(first, -1, inner) * along(second, -1, wide) * SAFE
    rests = first.rests | second.rests
    is_vector = any(step.shape(i) is None or len(step.shape(i) or ()) < 2 for i in (0, 1))  # no rows then
    rows = (-1, row) if math.isfinite(row) and not is_vector else None
    return enclosing(-most, most, rests, rows) if not math.isnan(most) else UNKNOWN


def gemm(step: Step) -> Range:
    """The range of alpha·A·B + beta·C."""
    alpha, beta = float(step.attribute("alpha", 1.0)), float(step.attribute("beta", 1.0))
    right, left = _weight(step, 1), _weight(step, 0)
    turned = bool(step.attribute("transA", 0))
    if right is not None:
        weight = right.T if step.attribute("transB", 0) else right
        data = _swapped(step.range(0)) if turned else step.range(0)
        found = _right(step, data, weight, alpha)
    elif left is not None:
        data = step.range(1) if step.attribute("transB", 0) else _swapped(step.range(1))
        found = _swapped(_right(step, data, left if turned else left.T, alpha))
    else:
        return UNKNOWN
    if not step.has(2):
        return found
    bias = scaled(step.range(2), beta)
    total = plus(found, bias)
    size = None if right is None else weight.shape[-1]
    rows = None
    if found.rows is not None and found.rows[0] == -1 and size is not None:
        own = step.shape(2)
        whole = bool(own) and own[-1] == size
        reach = along(bias, -1, size) if whole else bias.largest * math.sqrt(size) * SAFE
        rows = (-1, (found.rows[1] + reach) * (1 + 4 * U))
    return enclosing(total.low, total.high, total.rests, rows if rows and math.isfinite(rows[1]) else None)


def convolution(step: Step) -> Range:
    """The range of each output channel; a padded position reads zeros, so zero joins the input's interval."""
    kernel = _weight(step, 1)
    if kernel is None or kernel.ndim < 3:
        return UNKNOWN
    groups, axes = int(step.attribute("group", 1)), kernel.ndim - 2
    transposed = step.node.op_type == "ConvTranspose"
    inputs = kernel.shape[0] if transposed else kernel.shape[1] * groups
    one = step.range(0)
    pads = step.attribute("pads", [0] * (2 * axes))
    if transposed or any(pads) or step.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        one = with_zero(one)
    columns = ends_along(one, -1 - axes, inputs)
    if columns is None or inputs % groups:
        return UNKNOWN
    bias = step.constant(2) if step.has(2) else None
    if step.has(2) and bias is None:
        return UNKNOWN
    low, high = _channels(step, kernel, columns, groups, transposed)
    found = enclosing(low.reshape(-1, *(1,) * axes), high.reshape(-1, *(1,) * axes), one.rests)
    if bias is None:
        return found
    shift = np.asarray(bias, np.float64).reshape(-1, *(1,) * axes)
    return plus(found, enclosing(shift, shift))


def _channels(
    step: Step, kernel: np.ndarray, columns: tuple[np.ndarray, np.ndarray], groups: int, transposed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """[low, high] of each output channel without its bias: Σ over input channels and taps, and for a
    transposed convolution over the taps that meet one output position, the worst class of them."""
    axes = kernel.ndim - 2
    whole: list[tuple[np.ndarray, np.ndarray]] = []
    per = kernel.shape[0] // groups
    for taps in _classes(step, kernel, transposed):
        parts = []
        for group in range(groups):
            block = kernel[group * per : (group + 1) * per].reshape(per, kernel.shape[1], -1)[..., taps]
            weight = block.transpose(0, 2, 1) if transposed else block.transpose(1, 2, 0)
            wide = weight.shape[0]
            ends = [np.repeat(end[group * wide : (group + 1) * wide], len(taps)) for end in columns]
            matrix = weight.reshape(wide * len(taps), -1)
            parts.append(_applied(matrix, ends[0], ends[1], len(matrix)))
        whole.append((np.concatenate([p[0].ravel() for p in parts]), np.concatenate([p[1].ravel() for p in parts])))
    assert axes > 0
    return np.minimum.reduce([w[0] for w in whole]), np.maximum.reduce([w[1] for w in whole])


def _classes(step: Step, kernel: np.ndarray, transposed: bool) -> list[list[int]]:
    """The taps (flat indices) that can meet one output position together."""
    sizes = kernel.shape[2:]
    every = list(itertools.product(*(range(k) for k in sizes)))
    if not transposed:
        return [list(range(len(every)))]
    strides = step.attribute("strides", [1] * len(sizes))
    dilations = step.attribute("dilations", [1] * len(sizes))
    classes: dict[tuple[int, ...], list[int]] = {}
    for index, tap in enumerate(every):
        key = tuple(d * t % s for t, s, d in zip(tap, strides, dilations, strict=True))
        classes.setdefault(key, []).append(index)
    # a position that no tap meets holds the bias alone: zero is in every class's interval already
    return list(classes.values())


def batch_normalization(step: Step) -> Range:
    """The range of γ(x − mean)/√(var + ε) + β, channel by channel (axis 1), in inference."""
    arrays = [step.constant(index) for index in range(1, 5)]
    rank = _rank(step, 0)
    if rank < 2 or any(array is None for array in arrays):
        return UNKNOWN
    shape = (-1, *(1,) * (rank - 2))
    scale, shift, mean, variance = (np.asarray(a, np.float64).reshape(shape) for a in arrays)
    floor = variance + float(step.attribute("epsilon", float(np.float32(1e-5))))
    if not (floor > 0.0).all():
        return UNKNOWN
    factor = scale / np.sqrt(floor)
    slack = np.abs(factor) * 8.0 * U + TINY
    centred = plus(step.range(0), enclosing(-mean, -mean))
    return plus(times(centred, enclosing(factor - slack, factor + slack)), enclosing(shift, shift))
