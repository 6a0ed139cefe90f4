"""Confined: where the entries of a section's values lie on a box, and what slopes their functions have there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from snaudit import deviations, folding, local_slopes
from snaudit.attributes import attribute
from snaudit.deviations import Deviations
from snaudit.domains import is_default
from snaudit.linearized import Coefficients
from snaudit.local_slopes import Gated
from snaudit.ranges import UNKNOWN, Range, enclosing, meet
from snaudit.sections.interface import Blocks

Ends = tuple[np.ndarray, np.ndarray]


def _unknown(value: ir.Value) -> Range:
    return UNKNOWN


@dataclass(frozen=True, slots=True)
class Box:
    """Where values lie.

    ranges    of each value, what the walk over the graph knows
    centre    the same at one point of the box of inputs
    narrower  is filled with what is found here beyond that
    """

    ranges: Callable[[ir.Value], Range] = _unknown
    centre: Callable[[ir.Value], Range] = _unknown
    narrower: dict[ir.Value, Range] = field(default_factory=dict)

    def forms(self, source: ir.Value, shape: tuple[int, ...], batched: bool) -> Deviations | None:
        """The affine forms after a source, as yet none; None where nothing bounds it."""
        one, at = self.ranges(source), self.centre(source)
        if not (one.bounded and at.bounded):
            return None
        low, high = local_slopes.spread_over(one, shape, batched)
        bottom, top = local_slopes.spread_over(at, shape, batched)
        return Deviations((np.nextafter(low - top, -np.inf), np.nextafter(high - bottom, np.inf)), one.rests)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where the entries of a value lie (`ends`), at the centre (`at`) and apart from there (`moved`).

    form: of the value's deviation, where one is known; then `at` and `moved` are finite
    """

    ends: Ends
    at: Ends
    moved: Ends
    form: Blocks | None
    rests: frozenset[str]


def place_of(box: Box, forms: Deviations | None, value: ir.Value, data: Coefficients) -> Place | None:
    """Where the entries of a value lie; None where nothing is known of any."""
    one = box.ranges(value)
    low, high = local_slopes.spread_over(one, data.shape, data.batched)
    at = moved = np.full_like(low, -np.inf), np.full_like(high, np.inf)
    rests, form = one.rests, None
    found = None if forms is None else forms.of(data.blocks)
    if forms is not None and found is not None:
        at = local_slopes.spread_over(box.centre(value), data.shape, data.batched)
        form, moved = found
        form = form if all(np.isfinite(end).all() for end in (*at, *moved)) else None
    if form is not None:
        low = np.maximum(low, np.nextafter(at[0] + moved[0], -np.inf))
        high = np.minimum(high, np.nextafter(at[1] + moved[1], np.inf))
        if not (low <= high).all():
            return None  # two claims that exclude each other
        moved = (
            np.maximum(moved[0], np.nextafter(low - at[1], -np.inf)),
            np.minimum(moved[1], np.nextafter(high - at[0], np.inf)),
        )
        rests |= forms.rests
        closer = meet(one, enclosing(low.reshape(data.shape), high.reshape(data.shape), forms.rests))
        if closer is not one:
            box.narrower[value] = closer
    if not (np.isfinite(low) | np.isfinite(high)).any():
        return None
    return Place((low, high), at, moved, form, rests)


def slopes_at(node: ir.Node, opset: int, data: Coefficients, whole: Ends, place: Place) -> tuple[Ends, Ends | None]:
    """(the slopes of a node's function where its entries lie, its slopes below and above zero where it is two lines
    that meet there). `whole`: its slopes anywhere, for each entry."""
    low, high = place.ends
    op = node.op_type
    own = partial(attribute, node)
    knee = local_slopes.knee_of(op, own) if is_default(node) else None
    if is_default(node) and op == "PRelu":
        slope = folding.evaluate(node.inputs[1]).astype(np.float64)
        knee = np.broadcast_to(slope, data.shape).ravel(), 1.0
    if knee is not None:
        lines = tuple(np.broadcast_to(np.asarray(end, np.float64), low.shape) for end in knee)
        return local_slopes.bent(*lines, low, high), lines
    limits = _limits(node, opset, data) if is_default(node) else None
    if limits is not None:
        found = local_slopes.clipped(*limits, low, high)
    else:
        found = local_slopes.curved(node.domain, op, own, whole, low, high)
    return (np.maximum(found[0], whole[0]), np.minimum(found[1], whole[1])), None


def gated_at(gated: Gated, whole: Ends, place: Place) -> tuple[Ends, None]:
    """The slopes of a function that is written out in parts where its entries lie, within those anywhere."""
    return local_slopes.gated(gated, whole, place.ends), None


def _limits(node: ir.Node, opset: int, data: Coefficients) -> Ends | None:
    """(bottom, top) for each entry where a node is min(max(x, bottom), top)."""
    op = node.op_type
    if op == "Clip" and opset < 11:
        ends = [attribute(node, "min", -math.inf), attribute(node, "max", math.inf)]
    elif op == "Clip":
        absent = (-math.inf, math.inf)
        given = [*node.inputs[1:3], None, None][:2]
        ends = [missing if v is None else folding.evaluate(v) for v, missing in zip(given, absent, strict=True)]
    elif op in ("Max", "Min"):
        constants = [folding.evaluate(v) for v in node.inputs if v is not None and folding.is_constant(v)]
        pick = np.maximum if op == "Max" else np.minimum
        limit = constants[0]
        for constant in constants[1:]:
            limit = pick(limit, constant)
        ends = [limit, math.inf] if op == "Max" else [-math.inf, limit]
    else:
        return None
    wide = [np.broadcast_to(np.asarray(end, np.float64), data.shape).ravel() for end in ends]
    return wide[0], wide[1]


def rest_of(place: Place | None, slopes: Ends, knee: Ends | None, rows: np.ndarray) -> tuple[Blocks | None, np.ndarray, Ends]:
    """What `Deviations.add` takes for a unit of the entries `rows`; form None where none is known."""
    low, high = slopes[0][rows], slopes[1][rows]
    if place is None or place.form is None:
        nothing = np.zeros(low.size)
        return None, nothing, (nothing, nothing)
    form = {j: matrix[rows] for j, matrix in place.form.items()}
    at, moved, ends = ((end[0][rows], end[1][rows]) for end in (place.at, place.moved, place.ends))
    if knee is None:
        return form, *deviations.sloped(low, high, moved)
    return form, *deviations.bent(knee[0][rows], knee[1][rows], at, ends)
