"""ATen ops that move, copy, join, pick or sum up numbers, as ONNX."""

from __future__ import annotations

from functools import partial
from typing import Any

from snaudit.formats.aten_calls import (
    Code,
    Symbol,
    Untranslated,
    Writer,
    axis_of,
    integer,
    integers,
    tensors,
)
from snaudit.formats.aten_pointwise import Translator
from snaudit.formats.onnx_tensors import DTYPES as ONNX_DTYPES

_END = (1 << 63) - 1
_OF_NAME = {name: number for number, name in ONNX_DTYPES.items()}


def _view(w: Writer, self: Any, size: Any) -> None:
    """A Reshape; one size that is only known at run time is whatever is left over."""
    if type(size) is not list:
        raise Untranslated("a shape that is no list")
    sizes = [-1 if isinstance(one, Symbol) else integer(one) for one in size]
    if any(one < -1 or one == 0 for one in sizes) or sizes.count(-1) > 1:
        raise Untranslated("a shape with several open sizes")
    w.last("Reshape", [self, w.ints(sizes)])


def _reshape(w: Writer, self: Any, shape: Any) -> None:
    _view(w, self, shape)


def _flatten(w: Writer, self: Any, start_dim: Any = 0, end_dim: Any = -1) -> None:
    rank = w.rank(self)
    start, end = axis_of(start_dim, rank), axis_of(end_dim, rank)
    if start > end:
        raise Untranslated("a flattening from back to front")
    w.last("Reshape", [self, w.ints([*[0] * start, -1, *(w.size(self, axis) for axis in range(end + 1, rank))])])


def _unflatten(w: Writer, self: Any, dim: Any, sizes: Any) -> None:
    rank = w.rank(self)
    axis, parts = axis_of(dim, rank), integers(sizes)
    if any(one < 1 for one in parts):
        raise Untranslated("a shape with open sizes")
    behind = [w.size(self, at) for at in range(axis + 1, rank)]
    w.last("Reshape", [self, w.ints([*[0] * axis, *parts, *behind])])


def _permute(w: Writer, self: Any, dims: Any) -> None:
    rank = w.rank(self)
    order = [axis_of(axis, rank) for axis in integers(dims)]
    if sorted(order) != list(range(rank)):
        raise Untranslated("no permutation of the axes")
    w.last("Transpose", [self], perm=order)


def _transpose(w: Writer, self: Any, dim0: Any, dim1: Any) -> None:
    order = list(range(w.rank(self)))
    a, b = axis_of(dim0, len(order)), axis_of(dim1, len(order))
    order[a], order[b] = order[b], order[a]
    w.last("Transpose", [self], perm=order)


def _t(w: Writer, self: Any) -> None:
    w.last("Transpose", [self], perm=list(reversed(range(w.rank(self)))))


def _unsqueeze(w: Writer, self: Any, dim: Any) -> None:
    w.last("Unsqueeze", [self, w.ints([axis_of(dim, w.rank(self) + 1)])])


def _squeeze(w: Writer, self: Any, dim: Any = None) -> None:
    """Axes of size 1 among those named; the others stay."""
    rank = w.rank(self)
    named = range(rank) if dim is None else [axis_of(axis, rank) for axis in integers(dim, 1 if type(dim) is int else None)]
    gone = sorted({axis for axis in named if w.size(self, axis) == 1})
    w.last("Squeeze", [self, w.ints(gone)]) if gone else w.last("Identity", [self])


def _cat(w: Writer, tensors_: Any, dim: Any = 0) -> None:
    parts = tensors(tensors_)
    if len({w.rank(part) for part in parts}) != 1 or len({w.dtype(part) for part in parts}) != 1:
        raise Untranslated("parts of unlike ranks or dtypes")
    w.last("Concat", parts, axis=axis_of(dim, w.rank(parts[0])))


def _stack(w: Writer, tensors_: Any, dim: Any = 0) -> None:
    parts = tensors(tensors_)
    if len({w.dtype(part) for part in parts}) != 1:
        raise Untranslated("parts of unlike dtypes")
    axis = axis_of(dim, w.rank(parts[0]) + 1)
    w.last("Concat", [w.add("Unsqueeze", [part, w.ints([axis])]) for part in parts], axis=axis)


def _slice(w: Writer, self: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> None:
    axis, pace = axis_of(dim, w.rank(self)), integer(step)
    first, last = (0 if start is None else integer(start)), (_END if end is None else integer(end))
    if pace < 1:
        raise Untranslated("a slice from back to front")
    w.last("Slice", [self, w.ints([first]), w.ints([last]), w.ints([axis]), w.ints([pace])])


def _select(w: Writer, self: Any, dim: Any, index: Any) -> None:
    import numpy as np

    axis = axis_of(dim, w.rank(self))
    w.last("Gather", [self, w.constant(np.asarray(integer(index), np.int64))], axis=axis)


def _parted(w: Writer, self: Any, dim: Any, sizes: list[int]) -> None:
    if len(sizes) != len(w.outputs) or min(sizes) < 0:
        raise Untranslated("parts that are not those of its outputs")
    w.add("Split", [self, w.ints(sizes)], w.outputs, axis=axis_of(dim, w.rank(self)))


def _split(w: Writer, self: Any, split_size: Any, dim: Any = 0) -> None:
    whole, part = w.size(self, dim), integer(split_size)
    if part < 1 or whole < 1 or -(-whole // part) != len(w.outputs):
        raise Untranslated("parts that are not those of its outputs")
    full, rest = divmod(whole, part)
    _parted(w, self, dim, [part] * full + [rest] * bool(rest))


def _split_with_sizes(w: Writer, self: Any, split_sizes: Any, dim: Any = 0) -> None:
    if type(split_sizes) is not list or any(type(one) is not int for one in split_sizes):
        raise Untranslated("sizes that are no integers")
    _parted(w, self, dim, split_sizes)


def _chunk(w: Writer, self: Any, chunks: Any, dim: Any = 0) -> None:
    count = integer(chunks)
    if count < 1:
        raise Untranslated("no chunks")
    _split(w, self, max(1, -(-w.size(self, dim) // count)), dim)


def _unbind(w: Writer, self: Any, dim: Any = 0) -> None:
    axis = axis_of(dim, w.rank(self))
    if w.size(self, axis) != len(w.outputs):
        raise Untranslated("parts that are not those of its outputs")
    parts = [w.fresh("part") for _ in w.outputs]
    w.add("Split", [self, w.ints([1] * len(parts))], parts, axis=axis)
    for part, output in zip(parts, w.outputs, strict=True):
        w.add("Squeeze", [part, w.ints([axis])], [output])


def _expand(w: Writer, self: Any, size: Any, implicit: Any = False) -> None:
    if type(size) is not list:
        raise Untranslated("a shape that is no list")
    sizes = [1 if one == -1 else integer(one) for one in size]
    if any(one < 1 for one in sizes):
        raise Untranslated("a shape with open sizes")
    w.last("Expand", [self, w.ints(sizes)])


def _repeat(w: Writer, self: Any, repeats: Any) -> None:
    times = integers(repeats)
    rank = w.rank(self)
    if any(one < 1 for one in times) or len(times) < rank:
        raise Untranslated("no repeats")
    lifted: Any = self
    if len(times) > rank:
        lifted = w.add("Unsqueeze", [self, w.ints(list(range(len(times) - rank)))])
    w.last("Tile", [lifted, w.ints(times)])


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(w: Writer, self: Any, pad: Any, mode: Any = "constant", value: Any = None) -> None:
    """torch names the last axis first, before and behind in turn."""
    rank, widths = w.rank(self), integers(pad)
    if mode not in _MODES or len(widths) % 2 or len(widths) > 2 * rank or any(one < 0 for one in widths):
        raise Untranslated("a padding of another form")
    before, behind = ([0] * (rank - len(widths) // 2) + widths[side::2][::-1] for side in (0, 1))
    fill = w.scalar(0.0 if value is None else value, self) if mode == "constant" else None
    w.last("Pad", [self, w.ints([*before, *behind]), fill], mode=_MODES[mode])


def _constant_pad(w: Writer, self: Any, pad: Any, value: Any = 0) -> None:
    _pad(w, self, pad, "constant", value)


def _edge_pad(mode: str, w: Writer, self: Any, padding: Any) -> None:
    _pad(w, self, padding, mode)


def _embedding(
    w: Writer, weight: Any, indices: Any, padding_idx: Any = -1, scale_grad_by_freq: Any = False, sparse: Any = False
) -> None:
    if w.rank(weight) != 2 or w.dtype(indices) not in ("int32", "int64"):
        raise Untranslated("indices that are no integers")
    w.last("Gather", [weight, indices], axis=0)


def _cast(
    w: Writer, self: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    non_blocking: Any = False, copy: Any = False, memory_format: Any = None,
) -> None:  # fmt: skip
    """A conversion; to what it is already, nothing."""
    if layout is not None and layout != Code("as_layout", 7):
        raise Untranslated("a layout that is not strided")
    if dtype is None:
        w.last("Identity", [self])
        return
    if not isinstance(dtype, Code) or dtype.kind != "as_scalar_type" or dtype.value not in _OF_NAME:
        raise Untranslated("a dtype that ONNX does not have")
    same = w.dtype(self) == dtype.value
    w.last("Identity", [self]) if same else w.last("Cast", [self], to=_OF_NAME[dtype.value])


def _pixel_shuffle(w: Writer, self: Any, upscale_factor: Any) -> None:
    if w.rank(self) != 4 or integer(upscale_factor) < 1:
        raise Untranslated("pixels of another form")
    w.last("DepthToSpace", [self], blocksize=integer(upscale_factor), mode="CRD")


def _narrow(w: Writer, self: Any, dim: Any, start: Any, length: Any) -> None:
    first, count = integer(start), integer(length)
    size = w.size(self, dim)
    first += size if first < 0 else 0
    if not 0 <= first <= first + count <= size:
        raise Untranslated("a part that is not within")
    _slice(w, self, dim, first, first + count)


def _move(w: Writer, self: Any, source: Any, destination: Any) -> None:
    rank = w.rank(self)
    order, at = list(range(rank)), axis_of(source, rank)
    order.insert(axis_of(destination, rank), order.pop(at))
    w.last("Transpose", [self], perm=order)


def _last_two(w: Writer, self: Any) -> None:
    _transpose(w, self, -2, -1)


def _as_other(translate: Translator, w: Writer, self: Any, other: Any) -> None:
    translate(w, self, [w.size(other, axis) for axis in range(w.rank(other))])


def _type_as(w: Writer, self: Any, other: Any) -> None:
    _cast(w, self, Code("as_scalar_type", w.dtype(other)))


def _flip(w: Writer, self: Any, dims: Any) -> None:
    axes = sorted({axis_of(axis, w.rank(self)) for axis in integers(dims)})
    if not axes:
        w.last("Identity", [self])
        return
    last = w.ints([-1] * len(axes))
    w.last("Slice", [self, last, w.ints([-_END] * len(axes)), w.ints(axes), last])


def _roll(w: Writer, self: Any, shifts: Any, dims: Any = []) -> None:
    shift, axes = integers(shifts, 1), integers(dims, 1)
    size = w.size(self, axes[0])
    cut = (size - shift[0]) % max(size, 1)
    axis = w.ints([axis_of(axes[0], w.rank(self))])
    parts = [w.add("Slice", [self, w.ints([a]), w.ints([b]), axis]) for a, b in ((cut, size), (0, cut))]
    w.last("Concat", parts, axis=axis_of(axes[0], w.rank(self)))


MOVES: dict[str, Translator] = {
    "view.default": _view,
    "_unsafe_view.default": _view,
    "reshape.default": _reshape,
    "flatten.using_ints": _flatten,
    "unflatten.int": _unflatten,
    "permute.default": _permute,
    "transpose.int": _transpose,
    "t.default": _t,
    "unsqueeze.default": _unsqueeze,
    "squeeze.default": _squeeze,
    "squeeze.dim": _squeeze,
    "squeeze.dims": _squeeze,
    "swapaxes.default": lambda w, self, axis0, axis1: _transpose(w, self, axis0, axis1),
    "movedim.int": _move,
    "numpy_T.default": _t,
    "mT.default": _last_two,
    "view_as.default": partial(_as_other, _view),
    "reshape_as.default": partial(_as_other, _view),
    "expand_as.default": partial(_as_other, lambda w, self, size: _expand(w, self, size)),
    "type_as.default": _type_as,
    "narrow.default": _narrow,
    "slice.Tensor": _slice,
    "select.int": _select,
    "split.Tensor": _split,
    "split_with_sizes.default": _split_with_sizes,
    "chunk.default": _chunk,
    "unsafe_chunk.default": _chunk,
    "unsafe_split.Tensor": _split,
    "unbind.int": _unbind,
    "expand.default": _expand,
    "to.dtype": _cast,
    "to.dtype_layout": _cast,
}
"""Those whose outputs may share their numbers with the input: what is written there is seen here."""

COPIES: dict[str, Translator] = {
    "cat.default": lambda w, tensors, dim=0: _cat(w, tensors, dim),
    "stack.default": lambda w, tensors, dim=0: _stack(w, tensors, dim),
    "repeat.default": _repeat,
    "flip.default": _flip,
    "roll.default": _roll,
    "pad.default": _pad,
    "constant_pad_nd.default": _constant_pad,
    "reflection_pad1d.default": partial(_edge_pad, "reflect"),
    "reflection_pad2d.default": partial(_edge_pad, "reflect"),
    "replication_pad1d.default": partial(_edge_pad, "replicate"),
    "replication_pad2d.default": partial(_edge_pad, "replicate"),
    "embedding.default": _embedding,
    "_to_copy.default": _cast,
    "pixel_shuffle.default": _pixel_shuffle,
}
