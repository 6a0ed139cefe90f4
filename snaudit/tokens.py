"""Tokens: values that are an affine function of each token of one source, however their entries lie.

Exporters split one projection into queries, keys and values and into heads by Reshape, Transpose, Split, Slice,
Gather. What matters is only which token and which feature an entry is, so each move is run on numbers that say it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from snaudit import enclosed, rotations
from snaudit.attributes import attribute
from snaudit.domains import is_default
from snaudit.enclosed import Enclosed
from snaudit.rounding import U

Fold = Callable[[ir.Value], np.ndarray | None]
BATCH = 3
"""What stands for a first size that is not known; a token may not meet another of the batch then."""
_LARGEST = 1 << 24
_DEPTH = 40


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Entry e of a value is row labels[e] mod F of M·u + b at token labels[e] // F of the source, F = rows of M.

    weight is M (F, width), bias b (F, 1); None: the identity, zero. per_example: how many tokens an example has,
    where their number is not known. turned: not None: the entries of each slice of `slices` (rows of labels, sorted)
    are a linear function, of norm up to `turned`, of what these labels stand for, another one for each slice.
    """

    source: ir.Value
    width: int
    labels: np.ndarray
    weight: Enclosed | None = None
    bias: Enclosed | None = None
    per_example: int | None = None
    turned: float | None = None
    slices: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return self.width if self.weight is None else self.weight.shape[0]

    def matrix(self) -> Enclosed:
        return Enclosed(np.eye(self.width)) if self.weight is None else self.weight

    def offset(self) -> Enclosed:
        return Enclosed(np.zeros((self.rows, 1))) if self.bias is None else self.bias

    def by_features(self) -> bool:
        """Whether the last axis holds all features of one token in their order."""
        first = self.labels[..., :1]
        whole = self.labels.shape[-1:] == (self.rows,) and not (first % self.rows).any()
        return whole and bool((self.labels == first + np.arange(self.rows)).all())

    def applied(self, matrix: np.ndarray) -> Tokens | None:
        """Each token's features times the matrix (outputs, F) from the left."""
        if self.turned is not None or not self.by_features() or matrix.ndim != 2 or matrix.shape[1] != self.rows:
            return None
        exact = Enclosed(np.ascontiguousarray(matrix, np.float64))
        weight = exact if self.weight is None else enclosed.product(exact, self.weight)
        bias = None if self.bias is None else enclosed.product(exact, self.bias)
        tokens = self.labels[..., :1] // self.rows
        labels = tokens * len(matrix) + np.arange(len(matrix))
        return replace(self, labels=labels, weight=weight, bias=bias)

    def whole_slices(self, rows: np.ndarray) -> bool:
        """Whether each row of labels holds all of one slice of turned entries, in any order."""
        if self.slices is None:
            return True
        rows = np.sort(rows.reshape(-1, rows.shape[-1]), axis=1)
        if rows.shape[1] != self.slices.shape[1]:
            return False
        places = np.searchsorted(self.slices[:, 0], rows[:, 0]).clip(max=len(self.slices) - 1)
        return bool((self.slices[places] == rows).all())

    def shifted(self, vector: np.ndarray) -> Tokens | None:
        """With a constant for each feature added."""
        values = _for_each_feature(self, vector, 0.0)
        if values is None:
            return None
        return replace(self, bias=enclosed.total(self.offset(), Enclosed(values[:, None])))

    def stretched(self, vector: np.ndarray, relative: float = 0.0) -> Tokens | None:
        """With each feature multiplied by a constant known to `relative`."""
        values = _for_each_feature(self, vector, 1.0)
        if values is None:
            return None
        weight = enclosed.scaled(self.matrix(), values, relative)
        bias = None if self.bias is None else enclosed.scaled(self.bias, values, relative)
        return replace(self, weight=weight, bias=bias)


def _for_each_feature(tokens: Tokens, array: np.ndarray, neutral: float) -> np.ndarray | None:
    """One number for each feature, `neutral` for those that the value does not show; None where tokens differ."""
    values = array.astype(np.float64)
    if tokens.turned is not None and (values.size != 1 or neutral == 0.0):
        return None
    if array.dtype.kind != "f" or not np.isfinite(values).all() or values.ndim > tokens.labels.ndim:
        return None
    if values.size == 1:
        return np.full(tokens.rows, float(values.ravel()[0]))
    features = (tokens.labels % tokens.rows).reshape(-1, tokens.labels.shape[-1])
    own = features[0]
    if values.size != len(own) or values.shape[-1] != len(own) or (features != own).any():
        return None
    if len(np.unique(own)) != len(own):
        return None
    every = np.full(tokens.rows, neutral)
    every[own] = values.ravel()
    return every


def start(value: ir.Value) -> Tokens | None:
    """A value as the source itself, its last axis the features; None where its sizes are not known."""
    if value.shape is None or len(value.shape) < 2:
        return None
    sizes = [d if isinstance(d, int) else None for d in value.shape]
    if None in sizes[1:]:
        return None
    whole = [BATCH if d is None else d for d in sizes]
    if not 0 < math.prod(whole) <= _LARGEST:
        return None
    per_example = math.prod(whole[1:-1]) if sizes[0] is None else None
    return Tokens(value, whole[-1], np.arange(math.prod(whole)).reshape(whole), per_example=per_example)


def trace(value: ir.Value, fold: Fold, depth: int = _DEPTH) -> Tokens | None:
    """The value as an affine function of tokens, as far back as its makers are affine."""
    node = value.producer()
    found = None
    if node is not None and is_default(node) and depth:
        find = _STEPS.get(node.op_type)
        if find is not None:
            try:
                found = find(node, value, lambda v: trace(v, fold, depth - 1), fold)
            except (ValueError, IndexError, KeyError, TypeError, AttributeError, ZeroDivisionError):
                found = None  # malformed: the rules say so
    return start(value) if found is None else found


_Trace = Callable[[ir.Value], Tokens | None]


def _matmul(node: ir.Node, value: ir.Value, inner: _Trace, fold: Fold) -> Tokens | None:
    weight = fold(node.inputs[1])
    if weight is None or weight.ndim != 2 or not np.isfinite(weight.astype(np.float64)).all():
        return None
    found = inner(node.inputs[0])
    return None if found is None else found.applied(weight.T)


def _gemm(node: ir.Node, value: ir.Value, inner: _Trace, fold: Fold) -> Tokens | None:
    weight = fold(node.inputs[1])
    scales = [attribute(node, name, 1.0) for name in ("alpha", "beta")]
    if weight is None or scales != [1.0, 1.0] or attribute(node, "transA", 0):
        return None
    found = inner(node.inputs[0])
    found = None if found is None else found.applied(weight if attribute(node, "transB", 0) else weight.T)
    if found is None or len(node.inputs) < 3 or node.inputs[2] is None:
        return found
    bias = fold(node.inputs[2])
    return None if bias is None else found.shifted(bias)


def _add(node: ir.Node, value: ir.Value, inner: _Trace, fold: Fold) -> Tokens | None:
    if all(fold(v) is None for v in node.inputs):
        return _turn(node, value, inner, fold)
    found, constant = _beside_constant(node, inner, fold)
    return None if found is None else found.shifted(constant)


def _turn(node: ir.Node, value: ir.Value, inner: _Trace, fold: Fold) -> Tokens | None:
    """A rotary embedding in parts: each slice of the last axis a combination of the same slice of its source."""
    known = rotations.combination(value, _MOVES, fold, _numbers)
    found = None if known is None or known.root is value else inner(known.root)
    if found is None or found.turned is not None or len(known.numbers) < 2:
        return None
    block = known.numbers[0].shape[-1]
    labels = [found.labels.ravel()[n].reshape(-1, block) for n in known.numbers]
    sets = [np.sort(one, axis=1) for one in labels]
    tokens = labels[0] // found.rows
    if any((one != sets[0]).any() for one in sets) or (tokens != tokens[:, :1]).any():
        return None
    slices = np.unique(sets[0], axis=0)
    if len(np.unique(slices)) != slices.size:
        return None  # slices that overlap
    turned = labels[0].reshape(known.numbers[0].shape)
    return replace(found, labels=turned, turned=rotations.norm_up(known), slices=slices)


def _numbers(value: ir.Value) -> np.ndarray | None:
    found = start(value)
    return None if found is None else found.labels


def _beside_constant(node: ir.Node, inner: _Trace, fold: Fold) -> tuple[Tokens | None, np.ndarray | None]:
    """(the tokens of a node's one input, the constant in its other one)."""
    for data, other in (node.inputs, node.inputs[::-1]):
        constant = fold(other)
        if constant is not None:
            return inner(data), constant
    return None, None


def _multiply(node: ir.Node, value: ir.Value, inner: _Trace, fold: Fold) -> Tokens | None:
    if node.op_type == "Div":
        constant = fold(node.inputs[1])
        if constant is None or not constant.all():
            return None
        found = inner(node.inputs[0])
        divisor = constant.astype(np.float64)
        exact = bool((np.abs(np.frexp(divisor)[0]) == 0.5).all())
        return None if found is None else found.stretched(1.0 / divisor, 0.0 if exact else 2 * U)
    found, constant = _beside_constant(node, inner, fold)
    return None if found is None else found.stretched(constant)


def _moved(node: ir.Node, value: ir.Value, inner: _Trace, fold: Fold) -> Tokens | None:
    found = inner(node.inputs[0])
    if found is None:
        return None
    labels = _MOVES[node.op_type](node, value, found.labels, fold)
    return None if labels is None else replace(found, labels=labels)


def _whole(node: ir.Node, index: int, name: str, fold: Fold) -> list[int] | None:
    """Integers from an attribute or from a constant input."""
    if name in node.attributes:
        return [int(v) for v in node.attributes[name].value]
    if index < len(node.inputs) and node.inputs[index] is not None:
        array = fold(node.inputs[index])
        if array is None:
            raise ValueError("not constant")
        return [int(v) for v in np.ravel(array)]
    return None


def _reshape(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    told = fold(node.inputs[1])
    if told is not None:
        zero_is_zero = attribute(node, "allowzero", 0)
        sizes = [labels.shape[i] if v == 0 and not zero_is_zero else int(v) for i, v in enumerate(told)]
        return labels.reshape(sizes)
    if value.shape is None:
        return None
    sizes = [d if isinstance(d, int) else -1 for d in value.shape]
    return labels.reshape(sizes) if sizes.count(-1) < 2 else None


def _transpose(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    return labels.transpose(attribute(node, "perm", range(labels.ndim)[::-1]))


def _flatten(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    axis = int(attribute(node, "axis", 1))
    return labels.reshape(math.prod(labels.shape[:axis]), -1)


def _squeeze(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    axes = _whole(node, 1, "axes", fold)
    return labels.squeeze(None if axes is None else tuple(axes))


def _unsqueeze(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    return np.expand_dims(labels, tuple(_whole(node, 1, "axes", fold)))


def _split(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    axis, sizes = int(attribute(node, "axis", 0)), _whole(node, 1, "split", fold)
    if sizes is None:
        parts = np.split(labels, len(node.outputs), axis)
    else:
        parts = np.split(labels, np.cumsum(sizes)[:-1], axis)
    return parts[value.index()]


def _slice(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    starts, ends = _whole(node, 1, "starts", fold), _whole(node, 2, "ends", fold)
    axes = _whole(node, 3, "axes", fold) or list(range(len(starts)))
    steps = _whole(node, 4, "steps", fold) or [1] * len(starts)
    index = [slice(None)] * labels.ndim
    for first, last, axis, by in zip(starts, ends, axes, steps, strict=True):
        if by < 1:
            return None
        index[axis] = slice(first, last, by)
    return labels[tuple(index)]


def _gather(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    index = fold(node.inputs[1])
    return None if index is None else np.take(labels, index, int(attribute(node, "axis", 0)))


def _expand(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    told = fold(node.inputs[1])
    return None if told is None else np.broadcast_to(labels, np.broadcast_shapes(labels.shape, tuple(map(int, told))))


def _same(node: ir.Node, value: ir.Value, labels: np.ndarray, fold: Fold) -> np.ndarray | None:
    return labels


_MOVES = {
    "Reshape": _reshape, "Transpose": _transpose, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Split": _split, "Slice": _slice, "Gather": _gather, "Identity": _same,
    "Expand": _expand,
}  # fmt: skip
_STEPS = {
    "MatMul": _matmul, "Gemm": _gemm, "Add": _add, "Mul": _multiply, "Div": _multiply, "Concat": _turn,
    **dict.fromkeys(_MOVES, _moved),
}  # fmt: skip
