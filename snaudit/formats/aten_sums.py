"""ATen ops that sum up, or pick extremes along axes, as ONNX."""

from __future__ import annotations

from functools import partial
from typing import Any

from snaudit.formats.aten_calls import (
    Untranslated,
    Writer,
    absent,
    axis_of,
    flag,
    integer,
    integers,
    number,
)
from snaudit.formats.aten_pointwise import Translator


def _reduced(
    op: str, w: Writer, self: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None
) -> None:
    absent(dtype)
    w.real(self)
    rank = w.rank(self)
    axes = [] if dim is None else [axis_of(axis, rank) for axis in integers(dim, 1 if type(dim) is int else None)]
    if len(set(axes)) != len(axes):
        raise Untranslated("an axis named twice")
    w.last(op, [self, w.ints(axes or list(range(rank)))], keepdims=int(flag(keepdim)))


def _amax(op: str, w: Writer, self: Any, dim: Any = None, keepdim: Any = False) -> None:
    _reduced(op, w, self, None if dim == [] else dim, keepdim)


def _norm(
    w: Writer, self: Any, ord: Any = 2, dim: Any = None, keepdim: Any = False, dtype: Any = None
) -> None:
    if number(ord) not in (1.0, 2.0):
        raise Untranslated("a norm that is neither l1 nor l2")
    _reduced("ReduceL2" if number(ord) == 2.0 else "ReduceL1", w, self, dim, keepdim, dtype)


def _variance(root: bool, w: Writer, self: Any, dim: Any = None, correction: Any = 1, keepdim: Any = False) -> None:
    """Σ(x − mean)²/(n − correction) over the axes, or its root."""
    rank, taken = w.rank(self), number(1 if correction is None else correction)
    named = range(rank) if dim is None or dim == [] else integers(dim, 1 if type(dim) is int else None)
    axes = sorted({axis_of(axis, rank) for axis in named})
    count = 1
    for axis in axes:
        count *= w.size(self, axis)
    if count <= taken:
        raise Untranslated("a variance of too few numbers")
    along = w.ints(axes)
    centred = w.add("Sub", [self, w.add("ReduceMean", [self, along], keepdims=1)])
    total = w.add("ReduceSum", [w.add("Mul", [centred, centred]), along], keepdims=int(flag(keepdim)))
    value = [total, w.scalar(float(count - taken), self)]
    w.last("Sqrt", [w.add("Div", value)]) if root else w.last("Div", value)


def _variance_of(root: bool, w: Writer, self: Any, unbiased: Any = True) -> None:
    _variance(root, w, self, None, int(flag(unbiased)))


def _variance_along(
    root: bool, w: Writer, self: Any, dim: Any, unbiased: Any = True, keepdim: Any = False
) -> None:
    _variance(root, w, self, dim, int(flag(unbiased)), keepdim)


def _extreme(op: str, index: str, w: Writer, self: Any, dim: Any, keepdim: Any = False) -> None:
    """The extremes along an axis, and where they stand."""
    w.real(self)
    axis = axis_of(dim, w.rank(self))
    keep = int(flag(keepdim))
    w.add(op, [self, w.ints([axis])], w.outputs[:1], keepdims=keep)
    w.add(index, [self], w.outputs[1:2], axis=axis, keepdims=keep)


def _cumulative(w: Writer, self: Any, dim: Any, dtype: Any = None) -> None:
    absent(dtype)
    w.real(self)
    w.last("CumSum", [self, w.ints([axis_of(dim, w.rank(self))])])


def _topk(w: Writer, self: Any, k: Any, dim: Any = -1, largest: Any = True, sorted: Any = True) -> None:
    w.real(self)
    axis = axis_of(dim, w.rank(self))
    if not flag(sorted) or not 0 < integer(k) <= w.size(self, axis):
        raise Untranslated("the largest in no order")
    w.add("TopK", [self, w.ints([integer(k)])], w.outputs[:2], axis=axis, largest=int(flag(largest)), sorted=1)


def _log_sum(w: Writer, self: Any, dim: Any, keepdim: Any = False) -> None:
    _reduced("ReduceLogSumExp", w, self, dim, keepdim)


def _norm_along(w: Writer, self: Any, p: Any, dim: Any, keepdim: Any = False) -> None:
    _norm(w, self, 2 if p is None else p, dim, keepdim)


def _arg(op: str, w: Writer, self: Any, dim: Any = None, keepdim: Any = False) -> None:
    if dim is None:
        raise Untranslated("the place in a flattened tensor")
    w.real(self)
    w.last(op, [self], axis=axis_of(dim, w.rank(self)), keepdims=int(flag(keepdim)))


SUMS: dict[str, Translator] = {
    "var.default": partial(_variance_of, False),
    "std.default": partial(_variance_of, True),
    "var.dim": partial(_variance_along, False),
    "std.dim": partial(_variance_along, True),
    "var.correction": lambda w, self, dim=None, correction=None, keepdim=False: _variance(False, w, self, dim, correction, keepdim),
    "std.correction": lambda w, self, dim=None, correction=None, keepdim=False: _variance(True, w, self, dim, correction, keepdim),
    "max.default": lambda w, self: _reduced("ReduceMax", w, self),
    "min.default": lambda w, self: _reduced("ReduceMin", w, self),
    "max.dim": partial(_extreme, "ReduceMax", "ArgMax"),
    "min.dim": partial(_extreme, "ReduceMin", "ArgMin"),
    "argmax.default": partial(_arg, "ArgMax"),
    "argmin.default": partial(_arg, "ArgMin"),
    "topk.default": _topk,
    "cumsum.default": _cumulative,
    "logsumexp.default": _log_sum,
    "norm.ScalarOpt_dim": _norm_along,
    "mean.default": partial(_reduced, "ReduceMean"),
    "mean.dim": partial(_reduced, "ReduceMean"),
    "sum.default": partial(_reduced, "ReduceSum"),
    "sum.dim_IntList": partial(_reduced, "ReduceSum"),
    "amax.default": partial(_amax, "ReduceMax"),
    "amin.default": partial(_amax, "ReduceMin"),
    "linalg_vector_norm.default": _norm,
}
"""None of them shares its numbers with its input."""
