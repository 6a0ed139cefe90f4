"""How values of one graph combine: stacked into one, or added. The only place for disjoint sources.

Each value is a function of the joint real input x = (x_s) over sources s; it depends only on its
own `sources`. Pieces of one split value are handled alike. Write a, b for the distances of two inputs
restricted to disjoint sets A, B of sources; the distance of the joint inputs is at least ‖(a, b)‖ in
the audit's norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from snaudit.bound import Bound, Norm, stacked, total
from snaudit.rules.interface import CONSTANT, Value


def stack(values: Iterable[Value], norm: Norm) -> Value:
    """The value (f₁, …, f_k): concatenation, several outputs, or any selection that uses each once.

    Values that share a source: √ΣL² in l2, ΣL in l1, max L in linf. Groups with disjoint sources:
    max L in every norm, since ‖(L_f·a, L_g·b)‖ ≤ max(L_f, L_g)·‖(a, b)‖ by monotonicity.
    """
    groups = _groups(values)

    def together(group: list[Value]) -> Bound:
        return stacked((value.lip for value in group), norm)

    def apart(bounds: list[Bound]) -> Bound:
        return stacked(bounds, "linf")

    return _joined(groups, together, apart, "concatenation")


def side_by_side(values: Iterable[Value], norm: Norm) -> Value:
    """As `stack`, for whoever asks later: it jumps where one of them does, and assumes what each assumes."""
    known = tuple(values)
    if len(known) == 1:
        return known[0]
    jumps = next((value.jumps for value in known if value.jumps), None)
    assumes = tuple(dict.fromkeys(sentence for value in known for sentence in value.assumes))
    return replace(stack(known, norm), jumps=jumps, assumes=assumes)


def add(values: Iterable[Value], norm: Norm) -> Value:
    """The value f₁ + … + f_k.

    Values that share a source: ΣL (triangle inequality). Groups with disjoint sources: L_f·a + L_g·b
    is at most √(L_f²+L_g²)·‖(a,b)‖₂ (Cauchy–Schwarz), max(L_f, L_g)·‖(a,b)‖₁, or
    (L_f + L_g)·‖(a,b)‖∞ (Hölder); each is attained.
    """
    groups = _groups(values)

    def together(group: list[Value]) -> Bound:
        return total(value.lip for value in group)

    def apart(bounds: list[Bound]) -> Bound:
        return total(bounds) if norm == "linf" else stacked(bounds, "l2" if norm == "l2" else "linf")

    return _joined(groups, together, apart, "sum of branches")


def _joined(
    groups: list[list[Value]],
    together: Callable[[list[Value]], Bound],
    apart: Callable[[list[Bound]], Bound],
    method: str,
) -> Value:
    """The groups, each bounded by itself, combined as functions of disjoint things."""
    if not groups:
        return CONSTANT
    sources = frozenset().union(*(value.sources for group in groups for value in group))
    bounds = [_within(group, together, apart, method) for group in groups]
    if len(bounds) == 1:
        alone = groups[0][0] if len(groups[0]) == 1 else None
        return Value(bounds[0], sources, part=None if alone is None else alone.part)
    return Value(replace(apart(bounds), method=method), sources)


def _within(
    group: list[Value],
    together: Callable[[list[Value]], Bound],
    apart: Callable[[list[Bound]], Bound],
    method: str,
) -> Bound:
    """Values that share sources. Where all are functions of disjoint pieces of one value R, each lip
    being Lip(R) times a gain from its piece, the pieces' distances together are those of R: what
    holds for disjoint sources holds for the pieces, with Lip(R) as a common factor."""
    if len(group) == 1:
        return group[0].lip
    pieces: dict[tuple[Any, int], list[Value]] = {}
    for value in group:
        if value.part is None:
            return together(group)
        pieces.setdefault(value.part, []).append(value)
    if len({whole for whole, _ in pieces}) != 1:
        return together(group)
    bounds = [part[0].lip if len(part) == 1 else together(part) for part in pieces.values()]
    least = min(apart(bounds), together(group), key=lambda bound: bound.size)
    return replace(least, method=method, grade=min(bound.grade for bound in bounds))


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
