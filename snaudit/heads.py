"""Heads: the parts of an attention, found in a graph: which rows of which projections meet which tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from snaudit import enclosed
from snaudit.broadcasting import Dim, dims, spread
from snaudit.domains import is_default, plain
from snaudit.enclosed import Enclosed
from snaudit.rounding import SAFE, TINY, U, gamma
from snaudit.tokens import Fold, Tokens, trace


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Rows of the three projections, and which tokens they meet: those of `group`; `rows` queries, `columns` keys."""

    query: np.ndarray
    key_rows: np.ndarray
    value: np.ndarray
    group: int
    rows: int
    columns: int

    @property
    def key(self) -> bytes:
        """Equal for heads with the same constant."""
        parts = (self.query, self.key_rows, self.value)
        return b"|".join(part.tobytes() for part in parts) + f"{self.rows},{self.columns}".encode()


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Queries, keys and values as affine functions of the tokens of their sources; the logits' scale.

    masked: whether anything else than that is added to logits, or takes keys away
    """

    query: Tokens
    key: Tokens
    value: Tokens
    scale: float
    each: tuple[Head, ...]
    masked: bool = True


def on_scaled(one: Tokens, scale: np.ndarray, shift: np.ndarray | None) -> Tokens:
    """As a function of ũ where the source is scale·ũ + shift."""
    matrix = one.matrix()
    bias = one.bias
    if shift is not None:
        moved = enclosed.product(matrix, Enclosed(shift[:, None].copy()))
        bias = moved if bias is None else enclosed.total(bias, moved)
    return replace(one, weight=enclosed.scaled(matrix, scale, columns=True), bias=bias)


def on_centred(one: Tokens) -> Tokens:
    """The same where each token's entries sum to zero: M and M·P agree there, P = I − 11ᵀ/d."""
    return replace(one, weight=_centred(one.matrix()))


def _centred(matrix: Enclosed) -> Enclosed:
    """The enclosure of M·P: each row less its mean."""
    width = matrix.shape[1]
    centre = matrix.centre - matrix.centre.mean(axis=1, keepdims=True)
    radius = gamma(width + 4) * np.abs(matrix.centre).mean(axis=1, keepdims=True) + 2 * U * np.abs(centre)
    if matrix.radius is not None:
        radius = radius + matrix.radius + matrix.radius.mean(axis=1, keepdims=True)
    return Enclosed(centre, SAFE * radius + TINY)


_Held = Callable[[ir.Value], bool]


def heads_of(node: ir.Node, fold: Fold, held: _Held, opset: int) -> Heads | None:
    """The heads of an attention that ends at this node, or None where it is none that is understood.

    held: whether a value is constant for the bound (a mask may depend on integer inputs).
    """
    find = _FINDERS.get((plain(node.domain), node.op_type))
    try:
        return None if find is None else find(node, fold, held, opset)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        return None  # malformed: the rules say so


def _written_out(node: ir.Node, fold: Fold, held: _Held, opset: int) -> Heads | None:
    """MatMul(Softmax(scale·QKᵀ + mask), V), the mask constant, added or put in by Where."""
    maker = _made(node.inputs[0], "Softmax")
    if maker is None:
        return None
    rank = len(node.inputs[0].shape)
    axis = maker.attributes["axis"].value if "axis" in maker.attributes else -1 if opset >= 13 else 1
    if axis not in (-1, rank - 1):
        return None
    value, scale, masked = maker.inputs[0], 1.0, False
    for _ in range(12):
        inner = value.producer()
        if inner is None or not is_default(inner):
            return None
        if inner.op_type == "MatMul":
            query, key = trace(inner.inputs[0], fold), trace(inner.inputs[1], fold)
            found = trace(node.inputs[1], fold)
            if query is None or key is None or found is None:
                return None
            key = replace(key, labels=key.labels.swapaxes(-1, -2))
            return _put_together(query, key, found, scale, masked)
        masked |= inner.op_type in ("Add", "Sub", "Where")
        step = _past(inner, fold, held)
        if step is None:
            return None
        value, scale = step[0], scale * step[1]
    return None


def _past(node: ir.Node, fold: Fold, held: _Held) -> tuple[ir.Value, float] | None:
    """(r, s) where a node is s·r, plus a constant or with −∞ in some places, and r is not copied."""
    found = _inside(node, fold, held)
    if found is None:
        return None
    others = [_dims(v, fold) for v in node.inputs if v is not None and v is not found[0]]
    copies = spread(dims(found[0]), others)
    return found if copies.count == 1 and not copies.meets else None


def _dims(value: ir.Value, fold: Fold) -> tuple[Dim, ...] | None:
    known = dims(value)
    if known is not None and all(isinstance(d, int) for d in known):
        return known
    array = fold(value)
    return known if array is None else array.shape


def _inside(node: ir.Node, fold: Fold, held: _Held) -> tuple[ir.Value, float] | None:
    """`_past`, whatever broadcasting copies."""
    op = node.op_type
    if op == "Where" and held(node.inputs[0]):  # a finite number in a logit's place leaves its key's weight
        return next(((a, 1.0) for a, b in (node.inputs[1:3], node.inputs[2:0:-1]) if _masks(fold(b))), None)
    if op in ("Add", "Mul"):
        for data, other in (node.inputs, node.inputs[::-1]):
            if held(other) and not held(data):
                return (data, 1.0) if op == "Add" else _scalar(data, fold(other), False)
    if op == "Sub" and held(node.inputs[1]):
        return node.inputs[0], 1.0
    if op == "Div" and held(node.inputs[1]):
        return _scalar(node.inputs[0], fold(node.inputs[1]), True)
    return (node.inputs[0], 1.0) if op == "Identity" else None


def _masks(array: np.ndarray | None) -> bool:
    return array is not None and bool((array == -np.inf).all())


def _scalar(data: ir.Value, array: np.ndarray | None, divides: bool) -> tuple[ir.Value, float] | None:
    if array is None or array.size != 1 or not np.isfinite(array).all():
        return None
    number = float(array.ravel()[0])
    if divides:
        return None if number == 0.0 else (data, 1.0 / number)
    return data, number


def _made(value: ir.Value, *ops: str) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and is_default(node) and node.op_type in ops else None


def _operator(node: ir.Node, fold: Fold, held: _Held, opset: int) -> Heads | None:
    """The Attention op (opset 23): 4-D, or 3-D with its numbers of heads; no cache, no softcap."""
    inputs = [*node.inputs, *(None,) * 7]
    attributes = {name: a.value for name, a in node.attributes.items()}
    if any(v is not None for v in inputs[4:6]) or attributes.get("softcap", 0.0):
        return None
    if any(v is not None and not held(v) for v in (inputs[3], inputs[6])):
        return None
    parts = [trace(v, fold) for v in inputs[:3]]
    counts = [attributes.get("q_num_heads"), *(attributes.get("kv_num_heads"),) * 2]
    parts = [_in_heads(one, count) for one, count in zip(parts, counts, strict=True)]
    query, key, value = parts
    again = query.labels.shape[1] // key.labels.shape[1]
    key, value = (replace(one, labels=np.repeat(one.labels, again, axis=1)) for one in (key, value))
    scale = attributes.get("scale") or 1.0 / math.sqrt(query.labels.shape[-1])
    masked = inputs[3] is not None or inputs[6] is not None or bool(attributes.get("is_causal", 0))
    return _put_together(query, key, value, float(scale), masked)


def _in_heads(tokens: Tokens, count: int | None) -> Tokens:
    if tokens.labels.ndim == 4:
        return tokens
    batch, rows, width = tokens.labels.shape
    labels = tokens.labels.reshape(batch, rows, count, width // count).swapaxes(1, 2)
    return replace(tokens, labels=labels)


def _packed(node: ir.Node, fold: Fold, held: _Held, opset: int) -> Heads | None:
    """com.microsoft.Attention: one matrix for queries, keys and values; no cache, no rotation."""
    inputs = [*node.inputs, *(None,) * 8]
    attributes = {name: a.value for name, a in node.attributes.items()}
    if inputs[4] is not None or inputs[6] is not None or attributes.get("do_rotary", 0):
        return None
    if any(v is not None and not held(v) for v in (inputs[3], inputs[5])):
        return None
    source, weight = trace(inputs[0], fold), fold(inputs[1])
    bias = None if inputs[2] is None else fold(inputs[2])
    sizes = list(attributes.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3)
    cuts = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(3)]
    parts = []
    for cut in cuts:
        one = source.applied(weight[:, cut].T)
        parts.append(one if bias is None else one.shifted(bias[cut]))
    return _with_count(parts, attributes, inputs[3] is not None or inputs[5] is not None)


def _multi_head(node: ir.Node, fold: Fold, held: _Held, opset: int) -> Heads | None:
    """com.microsoft.MultiHeadAttention with separate 3-D inputs and no cache; the bias is packed."""
    inputs = [*node.inputs, *(None,) * 10]
    attributes = {name: a.value for name, a in node.attributes.items()}
    if None in inputs[:3] or any(v is not None for v in inputs[6:10]):
        return None
    if any(v is not None and not held(v) for v in (inputs[4], inputs[5])):
        return None
    parts = [trace(v, fold) for v in inputs[:3]]
    if any(one is None or one.labels.ndim != 3 for one in parts):
        return None
    if inputs[3] is not None:
        ends = np.cumsum([one.labels.shape[-1] for one in parts])
        biases = np.split(fold(inputs[3]), ends[:-1])
        parts = [one.shifted(bias) for one, bias in zip(parts, biases, strict=True)]
    return _with_count(parts, attributes, inputs[4] is not None or inputs[5] is not None)


def _with_count(parts: list[Tokens], attributes: dict, masked: bool) -> Heads | None:
    query, key, value = (_in_heads(one, int(attributes["num_heads"])) for one in parts)
    scale = attributes.get("scale") or 1.0 / math.sqrt(query.labels.shape[-1])
    masked |= bool(attributes.get("unidirectional", 0))
    return _put_together(query, key, value, float(scale), masked)


def _put_together(query: Tokens, key: Tokens, value: Tokens, scale: float, masked: bool = True) -> Heads | None:
    """The heads, where all entries lie as they must: every row of a head is one token's, all rows of the same
    features, keys and values of one source paired token by token, and heads meet the same tokens of a source or none
    in common."""
    if not math.isfinite(scale) or value.turned is not None:
        return None
    tables = _tables((query, key, value))
    if tables is None or (key.source is value.source and not np.array_equal(tables[1][0], tables[2][0])):
        return None
    each: list[Head] = []
    groups: dict[tuple[bytes, ...], int] = {}
    sources = list(dict.fromkeys(one.source for one in (query, key, value)))
    for index in range(len(tables[0][0])):
        (rows, q), (columns, k), (others, v) = ((tokens[index], features[index]) for tokens, features in tables)
        if any(len(np.unique(one)) != len(one) for one in (rows, columns, others)):
            return None
        by_part = list(zip((query, key, value), (rows, columns, others), strict=True))
        if not _of_one_example(by_part):
            return None
        met = [np.unique(np.concatenate([t for one, t in by_part if one.source is s])) for s in sources]
        group = groups.setdefault(tuple(one.tobytes() for one in met), len(groups))
        each.append(Head(q, k, v, group, len(rows), len(columns)))
    for place in range(len(sources)):
        met = np.concatenate([np.frombuffer(tokens[place], np.int64) for tokens in groups])
        if len(np.unique(met)) != len(met):
            return None
    return Heads(query, key, value, scale, tuple(each), masked)


def _tables(parts: tuple[Tokens, ...]) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """For each part (tokens of each head's rows, features that all of its rows show); None where rows mix tokens."""
    leading = np.broadcast_shapes(*(one.labels.shape[:-2] for one in parts))
    found = []
    for one in parts:
        labels = np.broadcast_to(one.labels, (*leading, *one.labels.shape[-2:]))
        labels = labels.reshape(-1, *one.labels.shape[-2:])
        tokens, features = labels // one.rows, labels % one.rows
        if (tokens != tokens[:, :, :1]).any() or (features != features[:, :1, :]).any():
            return None
        if not one.whole_slices(labels):
            return None
        found.append((tokens[:, :, 0], features[:, 0, :]))
    return found


def _of_one_example(parts: list[tuple[Tokens, np.ndarray]]) -> bool:
    """Whether a head meets tokens of one example only, where their number is not known."""
    open_ones = dict.fromkeys(one.source for one, _ in parts if one.per_example is not None)
    names = {(dims(source) or (None,))[0] for source in open_ones}
    if len(open_ones) > 1 and (len(names) > 1 or None in names):
        return False  # of two unlike numbers of examples one may be 1, and copied
    met = [np.unique(tokens // one.per_example) for one, tokens in parts if one.per_example is not None]
    return not met or (len(met) == len(parts) and len(np.unique(np.concatenate(met))) == 1)


_FINDERS: dict[tuple[str, str], Callable[[ir.Node, Fold, _Held, int], Heads | None]] = {
    ("", "MatMul"): _written_out,
    ("", "Attention"): _operator,
    ("com.microsoft", "Attention"): _packed,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
}
