"""Gates: products f·g of two functions of affine maps, entry by entry, on ranges (SwiGLU, GEGLU, self-gating).

With f_i = φ(z_i), z = Wu + b, and g_i = ψ(v_i), v = W'u + b', a pair of tokens u, ũ has
    |δ(f·g)_i| ≤ sup|g_i|·|δf_i| + sup|f_i|·|δg_i| ≤ A_i|(Wδu)_i| + B_i|(W'δu)_i|,
A_i = sup|g_i|·sup|φ'|, B_i = sup|f_i|·sup|ψ'|, each over the entry's own range. As (a + b)² ≤ (1 + t)a² + (1 + 1/t)b²
for t > 0, the constant is at most the norm of the matrix of √(1+t)·diag(A)W over √(1+1/t)·diag(B)W': with t = ‖diag(B)W'‖/
‖diag(A)W‖ never above the sum of the two norms, which is what the triangle inequality gives; and those are never above
the suprema over all entries times ‖W‖, ‖W'‖. The squares of the two parts are summed apart: which token's f meets which
token's g does not matter. Where f and g are of different values' tokens, each has its own part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from snaudit import enclosed, local_slopes, patterns, slopes
from snaudit.attributes import attribute
from snaudit.bound import Bound, Grade, at_most, times_up, up
from snaudit.domains import is_default
from snaudit.enclosed import Enclosed
from snaudit.matching import Fold, Shortcut
from snaudit.ranges import Range, ends_along, resting
from snaudit.rounding import U, frobenius_up
from snaudit.tokens import Tokens, trace

Ranges = Callable[[ir.Value], Range]
Past = Callable[[Tokens], tuple[Tokens, ir.Value, float]]
_PEELED = 3
"""Functions of one entry in a row that are looked through, the activation and what is in front of it; each is sound."""


@dataclass(frozen=True, slots=True, eq=False)
class _Factor:
    """A factor as functions of entries of tokens' images, in each column one feature, of no token twice: their steepest
    slopes and largest sizes, column by column."""

    tokens: Tokens
    features: np.ndarray
    slopes: np.ndarray
    sizes: np.ndarray
    used: tuple[Range, ...]

    def matrix(self, by: np.ndarray) -> Enclosed:
        return enclosed.scaled(self.tokens.matrix()[self.features], by)


def find(
    node: ir.Node, fold: Fold, measure: Callable[[np.ndarray], Bound], ranges: Ranges, opset: int, past: Past
) -> Iterator[Shortcut]:
    """The shortcut past a product of two factors to the tokens that they are functions of; for l2.

    past: (tokens as a function of what a norm before them makes of its input, that input, the norm's constant)
    """
    if not is_default(node) or node.op_type != "Mul" or any(fold(value) is not None for value in node.inputs):
        return
    shapes = [value.shape for value in (*node.inputs, *node.outputs)]
    if any(shape is None or shape != shapes[0] for shape in shapes):
        return  # broadcast, perhaps
    try:
        first, second = (_factor(value, fold, ranges, opset) for value in node.inputs)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        return  # malformed: the rules say so
    if first is None or second is None:
        return
    is_one = first.tokens.source is second.tokens.source  # before norms: two of one value move differently
    factors, sources, gains = [], [], []
    for one in (first, second):
        tokens, source, gain = past(one.tokens)
        factors, sources, gains = [*factors, replace(one, tokens=tokens)], [*sources, source], [*gains, gain]
    first, second = factors
    parts = [one.matrix(one.slopes * other.sizes * (1.0 + 4 * U)) for one, other in ((first, second), (second, first))]
    found = [(one, measure(np.ascontiguousarray(one.centre))) for one in parts]
    told = tuple(sorted(resting((*first.used, *second.used))))
    if not is_one:
        bounds = [_bound(one, bound, gain) for (one, bound), gain in zip(found, gains, strict=True)]
        if all(bound.bounded for bound in bounds):
            yield Shortcut(node.outputs[0], sources[0], bounds[0], "gate", told, more=((sources[1], bounds[1]),))
        return
    if not all(bound.bounded for _, bound in found):
        return
    whole = _stacked(parts, *(bound.upper for _, bound in found))
    bound = _bound(whole, measure(np.ascontiguousarray(whole.centre)), gains[0])
    if bound.bounded:
        yield Shortcut(node.outputs[0], sources[0], bound, "gate", told)


def _bound(matrix: Enclosed, bound: Bound, gain: float) -> Bound:
    spread = 0.0 if matrix.radius is None else frobenius_up(matrix.radius)
    return at_most(times_up(up(bound.upper + spread), gain), "gate", min(bound.grade, Grade.PROVED))


def _stacked(parts: list[Enclosed], left: float, right: float) -> Enclosed:
    """√(1+t)·X over √(1+1/t)·Y; the roots, rounded up, only make it longer."""
    t = right / left if left > 0.0 and right > 0.0 else 1.0
    t = min(max(t, 1e-6), 1e6)
    by = [up(math.sqrt(1.0 + t) * (1.0 + 8 * U)), up(math.sqrt(1.0 + 1.0 / t) * (1.0 + 8 * U))]
    wide = [enclosed.scaled(part, np.full(part.shape[0], factor)) for part, factor in zip(parts, by, strict=True)]
    return enclosed.block(wide, 0)


def _factor(value: ir.Value, fold: Fold, ranges: Ranges, opset: int) -> _Factor | None:
    """A value as functions of an affine map's entries; None where it is none, or its range has no end."""
    width = value.shape[-1] if len(value.shape) > 1 else None
    one = ranges(value)
    ends = ends_along(one, -1, width) if isinstance(width, int) else None
    if ends is None:
        return None
    sizes, steepest, used = np.maximum(-ends[0], ends[1]), np.ones(width), [one]
    for _ in range(_PEELED):
        step = _peeled(value, fold, ranges, opset, width)
        if step is None:
            break
        value, slope, place = step
        steepest = steepest * slope * (1.0 + 2 * U)
        used.append(place)
    found = trace(value, fold)
    if found is None or found.turned is not None or not np.isfinite(steepest).all():
        return None
    features = (found.labels % found.rows).reshape(-1, width)
    columns = np.sort((found.labels // found.rows).reshape(-1, width), axis=0)
    if found.weight is None or (features != features[:1]).any() or (columns[1:] == columns[:-1]).any():
        return None
    return _Factor(found, features[0], steepest, sizes, tuple(used))


def _peeled(
    value: ir.Value, fold: Fold, ranges: Ranges, opset: int, width: int
) -> tuple[ir.Value, np.ndarray, Range] | None:
    """(z, the steepest slope of each feature, z's range) where a value is a function of each entry of z."""
    node = value.producer()
    if node is None or node.outputs[0] is not value:
        return None
    whole, inner, gated = None, None, None
    if len(node.inputs) == 1:
        whole, inner = slopes.interval(node.domain, node.op_type, partial(attribute, node)), node.inputs[0]
    else:
        for short in patterns.find(node, fold, "l2", opset):
            if short.slopes is not None:
                whole, inner, gated = short.slopes, short.source, short.gated
    if whole is None or inner is None or inner.shape is None or inner.shape != value.shape:
        return None
    wide = np.full(width, whole[0]), np.full(width, whole[1])
    place = ranges(inner)
    ends = ends_along(place, -1, width)
    if ends is None:
        return inner, np.maximum(np.abs(wide[0]), np.abs(wide[1])), Range(place.low, place.high)
    knee = local_slopes.knee_of(node.op_type, partial(attribute, node)) if len(node.inputs) == 1 and is_default(node) else None
    if knee is not None:
        low, high = local_slopes.bent(*knee, *ends)
    elif gated is not None:
        low, high = local_slopes.gated(gated, wide, ends)
    else:
        low, high = local_slopes.curved(node.domain, node.op_type, partial(attribute, node), wide, *ends)
    return inner, np.maximum(np.abs(low), np.abs(high)), place
