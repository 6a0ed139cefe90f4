"""Ranges behind ops that move, select, mix or reduce entries."""

from __future__ import annotations

import math

import numpy as np

from snaudit import ranges
from snaudit.bound import root_sum_squares_up, root_up, times_up
from snaudit.ranges import UNKNOWN, Range, enclosing, flat, hull, with_zero
from snaudit.rules.interface import Step


def selected(step: Step) -> Range:
    """Entries are moved, dropped or copied, none is new: one interval for all of them."""
    return flat(step.range(0))


def filled(step: Step) -> Range:
    """The one number that fills a shape, whatever the shape is."""
    held = step.node.meta.get("tensor")
    if held is None:
        return UNKNOWN if "value" in step.node.attributes else enclosing(0.0, 0.0)
    return ranges.of_constant(np.asarray(held.load()).reshape(1))


def channelwise(step: Step) -> Range:
    """Means and maxima over spatial axes: channels keep their intervals."""
    one, shape = step.range(0), step.shape(0)
    axes = 0 if shape is None else len(shape) - 2
    if axes < 1 or any(end.shape[-axes:] != (1,) * min(axes, end.ndim) for end in (one.low, one.high)):
        return flat(one)
    return enclosing(one.low, one.high, one.rests)


def sliced(step: Step) -> Range:
    """As `selected`; a part of a slice has no larger norm than the slice."""
    one = step.range(0)
    return enclosing(one.low.min(), one.high.max(), one.rests, one.rows, one.sums)


def cut(step: Step) -> Range:
    """Slice by constants with positive steps: each entry keeps its interval."""
    one, shape = step.range(0), step.shape(0)
    starts, ends = (_whole(step, index, name) for index, name in ((1, "starts"), (2, "ends")))
    if shape is None or starts is None or ends is None:
        return sliced(step)
    axes = _whole(step, 3, "axes") if step.has(3) or step.attribute("axes") is not None else list(range(len(starts)))
    steps = _whole(step, 4, "steps") if step.has(4) else [1] * len(starts)
    if axes is None or steps is None or min(steps, default=1) < 1:
        return sliced(step)
    low, high = one.low, one.high
    for axis, first, last, by in zip(axes, starts, ends, steps, strict=True):
        size = shape[axis]
        if size is None:
            return sliced(step)
        low, high = (_taken(end, axis % len(shape) - len(shape), size, slice(first, last, by)) for end in (low, high))
    return enclosing(low, high, one.rests, one.rows, one.sums) if low.size and high.size else sliced(step)


def split(step: Step) -> tuple[Range, ...]:
    """Each part of a Split with its entries' intervals."""
    one, shape = step.range(0), step.shape(0)
    count = len(step.node.outputs)
    axis = int(step.attribute("axis", 0))
    parts = [step.output_shape(index) for index in range(count)]
    if shape is None or shape[axis] is None or any(part is None or part[axis] is None for part in parts):
        return (sliced(step),) * count
    sizes, last = [part[axis] for part in parts], axis % len(shape) - len(shape)
    if sum(sizes) != shape[axis] or 0 in sizes:
        return (sliced(step),) * count
    starts = [sum(sizes[:index]) for index in range(count)]
    found = []
    for start, size in zip(starts, sizes, strict=True):
        ends = [_taken(end, last, shape[axis], slice(start, start + size)) for end in (one.low, one.high)]
        found.append(enclosing(ends[0], ends[1], one.rests, one.rows, one.sums))
    return tuple(found)


def _taken(end: np.ndarray, axis: int, size: int, part: slice) -> np.ndarray:
    """A part of the axis (< 0) of that size, where an array of ends has it written out."""
    if -axis > end.ndim or end.shape[axis] != size:
        return end
    return end[(..., part, *(slice(None),) * (-axis - 1))]


def _whole(step: Step, index: int, name: str) -> list[int] | None:
    """Integers from an attribute or a constant input; None where they are not known."""
    told = step.attribute(name)
    if told is None and step.has(index):
        array = step.constant(index)
        told = None if array is None else array.ravel().tolist()
    return None if told is None else [int(v) for v in told]


def _rearranged(one: Range, before: tuple[int | None, ...], after: tuple[int | None, ...]) -> Range:
    """The range of the same entries in another shape, an open first size being the same; one interval otherwise."""
    open_batch = before[:1] == after[:1] == (None,)
    old, new = ((1, *shape[1:]) if open_batch else shape for shape in (before, after))
    if None in old or None in new or not 0 < math.prod(old) == math.prod(new) <= ranges.LARGEST:
        return flat(one)
    ends = []
    for end, least in ((one.low, np.min), (one.high, np.max)):
        if open_batch and end.ndim == len(before) and end.shape[0] != 1:
            end = least(end, axis=0, keepdims=True)
        ends.append(np.broadcast_to(end, old).reshape(new))
    return enclosing(ends[0], ends[1], one.rests)


def cropped(step: Step) -> Range:
    return with_zero(flat(step.range(0)))


def reshaped(step: Step) -> Range:
    """A last axis that is cut into pieces leaves each at most the whole's norm; one that is joined from m
    pieces has √m times a piece's. (Rows lie one after another in memory.)"""
    one = step.range(0)
    before, after = step.shape(0), step.output_shape()
    plain = _rearranged(one, before, after) if before and after and one.bounded else flat(one)
    if one.rows is None or one.rows[0] != -1 or not before or not after:
        return plain
    old, new = before[-1], after[-1]
    if not old or not new:
        return plain
    if old % new == 0:
        return enclosing(plain.low, plain.high, one.rests, one.rows, _last(one.sums))
    if new % old == 0:
        return enclosing(plain.low, plain.high, one.rests, (-1, times_up(one.rows[1], root_up(new / old))))
    return plain


def _last(most: tuple[int, float] | None) -> tuple[int, float] | None:
    return most if most is not None and most[0] == -1 else None


def transposed(step: Step) -> Range:
    one, shape = step.range(0), step.shape(0)
    if shape is None:
        return flat(one)
    rank = len(shape)
    order = [int(axis) % rank for axis in step.attribute("perm", range(rank)[::-1])]

    def moved(most: tuple[int, float] | None) -> tuple[int, float] | None:
        return None if most is None else (order.index(most[0] % rank) - rank, most[1])

    ends = [end.reshape((1,) * (rank - end.ndim) + end.shape).transpose(order) for end in (one.low, one.high)]
    return enclosing(ends[0], ends[1], one.rests, moved(one.rows), moved(one.sums))


def gathered(step: Step) -> Range:
    """One interval for all; a row that is picked whole keeps its norm."""
    one, shape = step.range(0), step.shape(0)
    keeps = shape is not None and int(step.attribute("axis", 0)) % max(1, len(shape)) < len(shape) - 1
    plain = flat(one)
    row = math.inf
    if keeps and shape and shape[-1] is not None:
        row = one.rows[1] if one.rows is not None and one.rows[0] == -1 else math.inf
    return enclosing(plain.low, plain.high, one.rests, (-1, row) if math.isfinite(row) else None)


def concatenated(step: Step) -> Range:
    parts = [step.range(index) for index in range(len(step.inputs))]
    found = hull(parts)
    shape = step.output_shape()
    rows = [part.rows[1] if part.rows is not None and part.rows[0] == -1 else math.inf for part in parts]
    if not shape or not all(map(math.isfinite, rows)):
        return found
    last = int(step.attribute("axis", 0)) % len(shape) == len(shape) - 1
    row = root_sum_squares_up(rows) if last else max(rows)
    return enclosing(found.low, found.high, found.rests, (-1, row))


def padded(step: Step) -> Range:
    one = flat(step.range(0))
    if step.attribute("mode", "constant") != "constant":
        return one
    fill = np.array(step.attribute("value", 0.0)) if step.opset < 11 else np.array(0.0)
    if step.opset >= 11 and step.has(2):
        given = step.constant(2)
        if given is None:
            return UNKNOWN
        fill = given
    return hull([one, ranges.of_constant(fill), enclosing(0.0, 0.0)])


def scattered(step: Step) -> Range:
    return hull([step.range(0), step.range(2)]) if step.attribute("reduction", "none") == "none" else UNKNOWN


def resized(step: Step) -> Range:
    """Nearest and linear take means of entries. Cubic with −1 ≤ a ≤ 0: the weights at fraction t sum to 1,
    the two outer ones are a·t(1−t)² and a·t²(1−t), negative, the inner ones positive, so Σ|w| = 1 + 2|a|t(1−t)
    ≤ 1 + |a|/2 for each axis: m ± r becomes m ± r·(1 + |a|/2)^axes."""
    modes = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
    plain = step.attribute("coordinate_transformation_mode", "half_pixel") in modes
    if not plain or step.attribute("exclude_outside", 0) or step.attribute("antialias", 0):
        return UNKNOWN
    one = flat(step.range(0))
    mode = step.attribute("mode", "nearest")
    if mode in ("nearest", "linear", "bilinear"):
        return one
    a, before, after = float(step.attribute("cubic_coeff_a", -0.75)), step.shape(0), step.output_shape()
    if mode != "cubic" or not -1.0 <= a <= 0.0 or before is None or not one.bounded:
        return UNKNOWN
    changed = len(before) - _kept_axes(step, before, after)
    middle, radius = float(one.low + one.high) / 2, float(one.high - one.low) / 2
    radius = radius * (1.0 + abs(a) / 2) ** changed + 1e-12 * (abs(middle) + radius)
    return enclosing(middle - radius, middle + radius, one.rests)


def _kept_axes(step: Step, before: tuple[int | None, ...], after: tuple[int | None, ...] | None) -> int:
    """How many axes a Resize leaves alone: scale 1, or, where sizes are given and not scales, equal sizes."""
    slot = 2 if step.opset >= 11 else 1
    if step.has(slot):
        scales = step.constant(slot)
        if scales is not None and scales.size:
            rest = len(before) - scales.size  # axes that are not named keep their size
            return int(np.count_nonzero(scales == 1.0)) + max(0, rest)
        if scales is None:
            return 0
    if after is None or len(after) != len(before) or step.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        return 0
    return sum(b is not None and b == c for b, c in zip(before, after, strict=True))


def averaged(step: Step) -> Range:
    one = channelwise(step)
    return with_zero(one) if step.attribute("count_include_pad", 0) else one


def reduced(step: Step) -> Range:
    return flat(step.range(0))


def _count(step: Step) -> int | None:
    shape, axes = step.shape(0), step.attribute("axes")
    if axes is None and step.has(1):
        given = step.constant(1)
        if given is None:
            return None
        axes = [int(a) for a in given.ravel()]
    if not axes and step.attribute("noop_with_empty_axes", 0):
        return None
    if shape is None:
        return None
    sizes = shape if not axes else [shape[int(axis)] for axis in {int(a) % len(shape) for a in axes}]
    return None if None in sizes else math.prod(sizes)


def total(step: Step) -> Range:
    one, count = flat(step.range(0)), _count(step)
    if not count:  # nothing is known but the sign
        low = 0.0 if float(one.low) >= 0.0 else -math.inf
        return enclosing(low, 0.0 if float(one.high) <= 0.0 else math.inf, one.rests)
    return ranges.multiplied(one, enclosing(float(count), float(count)))


def euclidean(step: Step) -> Range:
    one, count = step.range(0), _count(step)
    return enclosing(0.0, math.inf if not count else times_up(one.largest, root_up(float(count))), one.rests)


def absolute(step: Step) -> Range:
    one, count = step.range(0), _count(step)
    return enclosing(0.0, math.inf if not count else times_up(one.largest, float(count)), one.rests)


def squares(step: Step) -> Range:
    one, count = flat(ranges.squared(step.range(0))), _count(step)
    high = math.inf if not count else times_up(float(one.high), float(count))
    return enclosing(0.0, high, one.rests)


def log_sum_exp(step: Step) -> Range:
    one, count = flat(step.range(0)), _count(step)
    return enclosing(one.low, math.inf if not count else float(one.high) + math.log(count) * 1.001 + 1e-9, one.rests)
