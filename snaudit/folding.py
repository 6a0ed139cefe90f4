"""Constants of a graph: which values are computed from stored tensors alone, and their arrays.

Only ops of a short list are followed (`OPS`), all pure. The arithmetic is ONNX's, in the stored
dtype: `W * scale` in float16 is rounded to float16, as the runtime that folds it would. Sizes are
known before anything is computed: a small file cannot ask for a large array.

Where a value is found to be constant is remembered in its `meta`; graphs are not changed after they
are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from snaudit.domains import is_default
from snaudit import folded_arithmetic, folded_shapes
from snaudit.folded import CannotFold, Op, Quiet
from snaudit.model import Tensor

OPS: dict[str, Op] = {**folded_arithmetic.OPS, **folded_shapes.OPS}
"""Every op that is followed; of ONNX's own domain only."""

_SMALL = 4096
"""Elements up to which a computed array is remembered."""
_MOST_STEPS = 1000
"""Nodes that one constant may take, but for remembered ones (shared ones count each time)."""
_MOST_ROOTS = 256
_LEAST_LIMIT = 1 << 26


@dataclass(frozen=True, slots=True)
class _Known:
    """A constant: its shape and dtype, how many nodes it takes to compute it, the stored tensors that it is
    computed from, and the array where it is small."""

    shape: tuple[int, ...]
    dtype: np.dtype
    steps: int
    roots: tuple[Tensor, ...] = ()
    array: np.ndarray | None = None

    @property
    def limit(self) -> int:
        """Bytes that an array on the way to it may take: 64 MB, or twice the roots in float64."""
        return max(_LEAST_LIMIT, 16 * sum(tensor.size for tensor in self.roots))

    def stand_in(self) -> np.ndarray:
        """The array, or zeros of its shape that take no memory."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape) if self.array is None else self.array


def is_constant(value: ir.Value) -> bool:
    """Whether `evaluate` can compute the value: it is stored, or computed from stored tensors and
    static shapes by ops of the list, each result within bounds. Loads no big tensor to find out."""
    return _known(value) is not None


def kind_of(value: ir.Value) -> tuple[tuple[int, ...], np.dtype] | None:
    """(shape, dtype) of a constant, found without loading a big tensor; None for a value that is none."""
    known = _known(value)
    return None if known is None else (known.shape, known.dtype)


def roots(value: ir.Value) -> tuple[Tensor, ...]:
    """The stored tensors whose numbers a constant is computed from, each once, in the order of use.

    A tensor of which only the shape is used is no root. Empty for a value that is not constant.
    """
    known = _known(value)
    return () if known is None else known.roots


_MOVES = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split"})


def only_moves(value: ir.Value) -> bool:
    """Whether a constant is a stored tensor whose entries are moved or left out, none of them changed
    or taken twice."""
    while not isinstance(value.meta.get("tensor"), Tensor):
        node = value.producer()
        if node is None or not is_default(node) or node.op_type not in _MOVES:
            return False
        value = node.inputs[0]
    return True


def evaluate(
    value: ir.Value,
    replaced: Mapping[str, np.ndarray] | None = None,
    limit_bytes: int | None = None,
) -> np.ndarray:
    """The array of a constant, where tensors named in `replaced` hold other numbers than stored.

    limit_bytes: of any one intermediate array; by default 64 MB, or twice what its roots take in
    float64, where that is more. Raises ValueError for a value that is not constant or over the limit,
    a ModelError where stored bytes cannot be read. The array may be a read-only view.
    """
    known = _known(value)
    if known is None:
        raise ValueError(f"{value.name} is no constant")
    if not replaced and known.array is not None:
        return known.array
    if limit_bytes is None:
        limit_bytes = known.limit
    arrays: dict[ir.Value, np.ndarray] = {}
    order = list(_order(value, past_remembered=bool(replaced)))
    uses: dict[ir.Value, int] = {value: 1}
    for step in order:
        for read in _reads(step):
            uses[read] = uses.get(read, 0) + 1
    for step in order:
        try:
            arrays[step] = _one(step, arrays, replaced or {}, limit_bytes)
        except CannotFold as error:
            raise ValueError(f"{value.name}: {error}") from error
        for read in _reads(step):
            uses[read] -= 1
            if not uses[read]:
                arrays.pop(read, None)  # not there where `step` was remembered
    return arrays[value]


def _one(
    value: ir.Value, arrays: Mapping[ir.Value, np.ndarray], replaced: Mapping[str, np.ndarray], limit: int
) -> np.ndarray:
    """The array of one value, given those of what it reads."""
    tensor = value.meta.get("tensor")
    if isinstance(tensor, Tensor):
        return np.asarray(replaced[tensor.name]) if tensor.name in replaced else tensor.load()
    if not replaced and (known := _known(value)) is not None and known.array is not None:
        return known.array
    node = value.producer()
    if node is None:
        return value.const_value.numpy()  # type: ignore[union-attr]
    held = node.meta.get("tensor")
    fill = None
    if isinstance(held, Tensor):
        fill = np.asarray(replaced[held.name]) if held.name in replaced else held.load()
    inputs = [None if read is None else arrays.get(read) for read in node.inputs]
    return _apply(node, value, inputs, limit, fill)


def _apply(
    node: ir.Node, value: ir.Value, inputs: list[np.ndarray | None], limit: int, fill: np.ndarray | None
) -> np.ndarray:
    with Quiet():
        result = OPS[node.op_type].compute(node, inputs, limit, fill)
    index = value.index() or 0
    if isinstance(result, list):
        if index >= len(result):
            raise CannotFold("an output that is not computed")
        return result[index]
    if index:
        raise CannotFold("an output that is not computed")
    return result


def _known(value: ir.Value) -> _Known | None:
    """What is known of a constant, None for a value that is none; remembered."""
    stack = [value]
    while stack:
        top = stack[-1]
        if "constant" in top.meta:
            stack.pop()
            continue
        waiting = [read for read in _reads(top) if "constant" not in read.meta]
        if waiting:
            stack += waiting
            continue
        top.meta["constant"] = _judge(top)
        stack.pop()
    return value.meta["constant"]


def _judge(value: ir.Value) -> _Known | None:
    """`_known` of a value all of whose inputs are judged."""
    tensor = value.meta.get("tensor")
    if isinstance(tensor, Tensor):
        return _Known(tensor.shape, _dtype(tensor), 1, (tensor,))
    node = value.producer()
    if node is None:
        return _held(value)
    op = _op(node)
    if op is None:
        return None
    reads = _reads(value)
    known = {read: read.meta.get("constant") for read in reads}
    if any(item is None for item in known.values()):
        return None
    held = node.meta.get("tensor")
    found = [tensor for item in known.values() for tensor in item.roots]
    found += [held] if isinstance(held, Tensor) else []
    distinct = tuple({id(tensor): tensor for tensor in found}.values())
    draft = _Known((), np.dtype(bool), 1 + sum(item.steps for item in known.values()), distinct)
    if draft.steps > _MOST_STEPS or len(distinct) > _MOST_ROOTS:
        return None
    try:
        return _dry_run(node, value, op, known, draft)
    except (CannotFold, ValueError, IndexError, TypeError, KeyError, OverflowError, ArithmeticError):
        return None


def _dry_run(
    node: ir.Node, value: ir.Value, op: Op, known: Mapping[ir.Value, _Known], draft: _Known
) -> _Known:
    """Compute a value from stand-ins; from its real inputs where it is small or they decide shapes."""
    all_small = all(item.array is not None or _size(item.shape) <= _SMALL for item in known.values())
    limit = draft.limit
    inputs: list[np.ndarray | None] = []
    for index, read in enumerate(node.inputs):
        if read is None or read not in known:
            inputs.append(None)
        elif all_small or index in op.exact(node):
            inputs.append(evaluate(read))
        else:
            inputs.append(known[read].stand_in())
    held = node.meta.get("tensor")
    fill = held.load() if isinstance(held, Tensor) else None
    if op.elementwise and not all_small:
        shape = np.broadcast_shapes(*(array.shape for array in inputs if array is not None))
        if _size(shape) * 8 > limit:
            raise CannotFold("too large")
        ones = [None if array is None else np.zeros((1,) * array.ndim, array.dtype) for array in inputs]
        result = np.broadcast_to(np.zeros((), _apply(node, value, ones, limit, fill).dtype), shape)
    else:
        result = _apply(node, value, inputs, limit, fill)
    if op.may_truncate and not all_small and result.dtype.kind in "iu":
        result = _apply(node, value, [evaluate(v) if v is not None else v for v in node.inputs], limit, fill)
    array = np.array(result) if all_small and result.size <= _SMALL else None
    steps = draft.steps if array is None else 1
    return replace(draft, shape=result.shape, dtype=result.dtype, steps=steps, array=array)


def _held(value: ir.Value) -> _Known | None:
    """An initializer without a Tensor: what onnx_ir itself holds, if it does."""
    held = value.const_value
    if held is None or isinstance(held, ir.ExternalTensor) or held.dtype == ir.DataType.STRING:
        return None
    if not value.is_initializer() or value.is_graph_input():
        return None
    array = held.numpy()
    return _Known(array.shape, array.dtype, 1, (), array)


def _op(node: ir.Node) -> Op | None:
    if not is_default(node) or any(a.is_ref() for a in node.attributes.values()):
        return None
    return OPS.get(node.op_type)


def _reads(value: ir.Value) -> tuple[ir.Value, ...]:
    """The values that a value's array is computed from; none for a stored one."""
    node = value.producer()
    if node is None or isinstance(value.meta.get("tensor"), Tensor):
        return ()
    op = _op(node)
    if op is None or op.shape_only:
        return ()
    return tuple(read for read in node.inputs if read is not None)


def _order(value: ir.Value, past_remembered: bool) -> Iterator[ir.Value]:
    """The values to compute, each once, what it reads before it; on request also what
    remembered arrays were computed from."""
    done: set[ir.Value] = set()
    stack = [(value, False)]
    while stack:
        top, ready = stack.pop()
        if top in done:
            continue
        if ready:
            done.add(top)
            yield top
            continue
        stack.append((top, True))
        known = top.meta.get("constant")
        if not past_remembered and known is not None and known.array is not None:
            continue
        stack += [(read, False) for read in reversed(_reads(top)) if read not in done]


def _dtype(tensor: Tensor) -> np.dtype:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, tensor.dtype, tensor.dtype))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
