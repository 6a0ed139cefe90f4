"""Reductions over axes, sorting, and cumulative sums.

Disjoint blocks of k entries each: the norm is one block's. k comes from the shape and constant axes.
"""

from __future__ import annotations

import math

from snaudit.bound import Bound, at_most, exactly
from snaudit.gains import means, outward, sums
from snaudit.rules.interface import (
    Row,
    Step,
    Unbounded,
    Value,
    jumping,
    through,
    within,
)


def _entries(step: Step) -> int | None:
    """k, the entries that are reduced to one; None if unknown; 1 where nothing is reduced."""
    shape = step.shape(0)
    axes = step.attribute("axes")
    if axes is None and step.has(1):
        given = step.constant(1)
        if given is None:
            return None
        axes = [int(a) for a in given.ravel()]
    if not axes:
        if axes is not None and len(axes) == 0 and step.attribute("noop_with_empty_axes", 0):
            return 1
        if axes is None and step.attribute("noop_with_empty_axes", 0):
            return 1
        return None if shape is None or None in shape else math.prod(shape)
    if shape is None:
        return None
    sizes = [shape[axis] for axis in {int(a) % len(shape) for a in axes}]
    return None if None in sizes else math.prod(sizes)


def _needed(step: Step) -> int:
    count = _entries(step)
    if count is None:
        raise Unbounded(
            f"how many entries {step.node.op_type} reduces is not known (needed in {step.norm})",
            "give the reduced axes fixed sizes, or use ReduceMean",
            "unknown-shape",
        )
    return count


def reduce_sum(step: Step) -> tuple[Value, ...]:
    """√k (l2), 1 (l1) or k (linf) times the input's; attained at equal entries."""
    count = 1 if step.norm == "l1" else _needed(step)
    return (through(step.data(), sums(count, step.norm)),)


def reduce_mean(step: Step) -> tuple[Value, ...]:
    """1/√k (l2), 1/k (l1) or 1 (linf) times the input's; 1 where k is not known."""
    return (through(step.data(), means(_entries(step) or 1, step.norm)),)


def reduce_extreme(step: Step) -> tuple[Value, ...]:
    """The input's own: |max x − max y| ≤ ‖x − y‖∞ in each block, at most its l2 and l1 norms."""
    return (through(step.data(), exactly(1.0, "maximum")),)


def reduce_log_sum_exp(step: Step) -> tuple[Value, ...]:
    """The input's own: the gradient is a probability vector, of l1 norm 1 and l2 and linf norm ≤ 1."""
    return (through(step.data(), exactly(1.0, "log-sum-exp")),)


def reduce_l1(step: Step) -> tuple[Value, ...]:
    """√k (l2), 1 (l1) or k (linf) times the input's, since |‖x‖₁ − ‖y‖₁| ≤ ‖x − y‖₁."""
    count = 1 if step.norm == "l1" else _needed(step)
    return (through(step.data(), sums(count, step.norm)),)


def reduce_l2(step: Step) -> tuple[Value, ...]:
    """1 (l2, l1) or √k (linf) times the input's, since |‖x‖₂ − ‖y‖₂| ≤ ‖x − y‖₂."""
    gain = exactly(1.0, "norm") if step.norm != "linf" else _root(_needed(step))
    return (through(step.data(), gain),)


def _root(count: int) -> Bound:
    return sums(count, "l2")


def top_k(step: Step) -> tuple[Value, ...]:
    """The input's own for the values: sorting is 1-Lipschitz in every lp norm, and the first k a part.

    (Rearrangement: Σ|x₍ᵢ₎ − y₍ᵢ₎|^p ≤ Σ|xᵢ − yᵢ|^p.) Indices are a step function. Unsorted values
    come in no stated order, which may jump.
    """
    if not step.attribute("sorted", 1):
        raise Unbounded("TopK with sorted = 0 has no stated order", "set sorted = 1", "step")
    value = step.data()
    return (Value(value.lip, value.sources), jumping(step))[: len(step.node.outputs)]


def cumulative_sum(step: Step) -> tuple[Value, ...]:
    """1/(2 sin(π/(4n + 2))) (l2), n (l1, linf) times the input's along an axis of n; exact.

    The inverse of the triangle of ones is the difference operator, with smallest singular value
    2 sin(π/(4n + 2)). An exclusive sum leaves the last entry out: n is one less.
    """
    axis, shape = step.constant(1), step.shape(0)
    size = None if axis is None or shape is None else shape[int(axis.ravel()[0])]
    if size is None:
        raise Unbounded(
            "the length of the cumulative sum is not known", "give its axis a fixed size", "unknown-shape"
        )
    size -= step.attribute("exclusive", 0) == 1
    gain = float(size) if step.norm != "l2" or not size else outward(0.5 / math.sin(math.pi / (4 * size + 2)), 16)
    return (through(step.data(), at_most(gain, "cumulative sum")),)


def reduce_sum_square(step: Step) -> tuple[Value, ...]:
    """2·sup‖x_b‖ (l2), 2·sup|x| (l1) or 2·sup‖x_b‖₁ (linf) over each reduced block of k, times the input's.

    |Σx² − Σy²| = |Σ(x + y)(x − y)|: Hölder. The suprema come from the range of the input.
    """
    count = 1 if step.norm == "l1" else _needed(step)
    value = through(_ranged(step), at_most(2.0 * step.range(0).largest, "2·sup|x|"))
    return (within(through(value, sums(count, step.norm)), step.range(0)),)


def reduce_log_sum(step: Step) -> tuple[Value, ...]:
    """1/(√k·m) (l2), 1/(k·m) (l1) or 1/m (linf) times the input's for x ≥ m > 0: log's slope at Σx ≥ k·m."""
    value, least = _ranged(step), float(step.range(0).low.min())
    if not least > 0.0:
        raise Unbounded(
            "ReduceLogSum of entries that may not be positive", "state a range above zero", "needs-range"
        )
    value = through(value, at_most(outward(1.0 / least), "1/min x"))
    return (within(through(value, means(_entries(step) or 1, step.norm)), step.range(0)),)


def _ranged(step: Step) -> Value:
    if not math.isfinite(step.range(0).largest):
        raise Unbounded(
            f"the slope of {step.node.op_type} grows with its argument, whose range is not known",
            "state an input range (--input-range), or use ReduceL2 or ReduceLogSumExp",
            "needs-range",
        )
    return step.data()


def no_constant(step: Step) -> tuple[Value, ...]:
    """None: products of entries have slopes that grow without limit."""
    raise Unbounded(
        f"the slope of {step.node.op_type} grows with its argument or near zero",
        "state the range of its argument, or use ReduceL2 or ReduceLogSumExp",
        "needs-range",
    )


ROWS: tuple[Row, ...] = (
    Row("ReduceSum", reduce_sum, "√k (l1: 1, linf: k)", "sum of k entries", "known k"),
    Row("ReduceMean", reduce_mean, "1/√k (l1: 1/k, linf: 1)", "mean of k entries"),
    *(Row(op, reduce_extreme, "1", "maximum over disjoint blocks") for op in ("ReduceMax", "ReduceMin")),
    Row("ReduceLogSumExp", reduce_log_sum_exp, "1", "gradient is a probability vector"),
    Row("ReduceL1", reduce_l1, "√k (l1: 1, linf: k)", "reverse triangle inequality", "known k"),
    Row("ReduceL2", reduce_l2, "1 (linf: √k)", "reverse triangle inequality"),
    Row("TopK", top_k, "1", "sorting is 1-Lipschitz", "sorted = 1"),
    Row(
        "CumSum", cumulative_sum, "1/(2 sin(π/(4n+2))) (l1, linf: n)", "inverse of the difference", "known n"
    ),
    Row(
        "ReduceSumSquare",
        reduce_sum_square,
        "2√k·sup|x| (l1: 2·sup|x|, linf: 2k·sup|x|)",
        "Hölder",
        "known k, a range of its argument",
    ),
    Row(
        "ReduceLogSum",
        reduce_log_sum,
        "1/(√k·m) (l1: 1/(k·m), linf: 1/m)",
        "mean value theorem",
        "a range ≥ m > 0 of its argument",
    ),
    *(
        Row(op, no_constant, "∞", "unbounded slope")
        for op in ("ReduceProd", "CumProd", "Det")
    ),
)
