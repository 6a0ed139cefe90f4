"""How values of one graph combine: stacked into one, or added. The only place for disjoint sources.

Each value is a function of the joint real input x = (x_s) over sources s; it depends only on its
own `sources`. Write a, b for the distances of two inputs restricted to disjoint sets A, B of
sources; the distance of the joint inputs is at least ‖(a, b)‖ in the audit's norm.
"""

from __future__ import annotations

from collections.abc import Iterable

from snaudit.bound import Bound, Norm, at_most, root_sum_squares_up, stacked, sum_up, total
from snaudit.rules.interface import CONSTANT, Value


def stack(values: Iterable[Value], norm: Norm) -> Value:
    """The value (f₁, …, f_k): concatenation, several outputs, or any selection that uses each once.

    Values that share a source: √ΣL² in l2, ΣL in l1, max L in linf. Groups with disjoint sources:
    max L in every norm, since ‖(L_f·a, L_g·b)‖ ≤ max(L_f, L_g)·‖(a, b)‖ by monotonicity.
    """
    groups = _groups(values)
    bounds = [_one(group) or stacked((v.lip for v in group), norm) for group in groups]
    return _value(groups, bounds, max((b.upper for b in bounds), default=0.0), "concatenation")


def add(values: Iterable[Value], norm: Norm) -> Value:
    """The value f₁ + … + f_k.

    Values that share a source: ΣL (triangle inequality). Groups with disjoint sources: L_f·a + L_g·b
    is at most √(L_f²+L_g²)·‖(a,b)‖₂ (Cauchy–Schwarz), max(L_f, L_g)·‖(a,b)‖₁, or
    (L_f + L_g)·‖(a,b)‖∞ (Hölder); each is attained.
    """
    groups = _groups(values)
    bounds = [_one(group) or total(v.lip for v in group) for group in groups]
    uppers = [b.upper for b in bounds]
    if norm == "l2":
        upper = root_sum_squares_up(uppers)
    else:
        upper = sum_up(uppers) if norm == "linf" else max(uppers, default=0.0)
    return _value(groups, bounds, upper, "sum of branches")


def _one(group: list[Value]) -> Bound | None:
    return group[0].lip if len(group) == 1 else None


def _value(groups: list[list[Value]], bounds: list[Bound], upper: float, method: str) -> Value:
    if not groups:
        return CONSTANT
    sources = frozenset().union(*(value.sources for group in groups for value in group))
    if len(bounds) == 1:
        return Value(bounds[0], sources)
    return Value(at_most(upper, method, min(b.grade for b in bounds)), sources)


def _groups(values: Iterable[Value]) -> list[list[Value]]:
    """The values that are not constant, grouped so that different groups share no source."""
    groups: list[tuple[frozenset[str], list[Value]]] = []
    for value in values:
        if value.is_constant:
            continue
        touching = [group for group in groups if group[0] & value.sources]
        merged = value.sources.union(*(sources for sources, _ in touching))
        members = [member for _, group in touching for member in group]
        groups = [group for group in groups if not group[0] & value.sources]
        groups.append((merged, [*members, value]))
    return [group for _, group in groups]
