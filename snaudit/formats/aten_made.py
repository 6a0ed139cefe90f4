"""ATen ops that make tensors of known numbers, choose between numbers, or resize images, as ONNX."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from onnx import helper

from snaudit.formats.aten_calls import (
    DOMAIN,
    Code,
    Ref,
    Untranslated,
    Writer,
    axis_of,
    flag,
    integer,
    integers,
    number,
)
from snaudit.formats.aten_pointwise import Translator
from snaudit.formats.onnx_tensors import DTYPES as ONNX_DTYPES

_MOST_MADE, _MOST_STEPS = 1 << 20, 1 << 14
_NUMBERS = {name: number for number, name in ONNX_DTYPES.items()}
_KINDS = ("float16", "float32", "float64", "int32", "int64", "bool")


def _kind(dtype: Any, default: str) -> str:
    if dtype is None:
        return default
    if not isinstance(dtype, Code) or dtype.kind != "as_scalar_type" or dtype.value not in _KINDS:
        raise Untranslated("a dtype of another kind")
    return dtype.value


def _fits(value: Any, kind: str) -> bool:
    """Whether a number is one of the dtype's range; NumPy raises or warns for others."""
    if type(value) not in (bool, int, float):
        return False
    if kind == "bool":
        return type(value) is bool or value in (0, 1)
    if kind.startswith("float"):
        return (type(value) is float and not math.isfinite(value)) or abs(value) <= float(np.finfo(kind).max)
    return math.isfinite(value) and np.iinfo(kind).min <= int(value) <= np.iinfo(kind).max


def _make(w: Writer, shape: list[int], fill: Any, kind: str) -> None:
    if any(one < 0 for one in shape) or math.prod(shape) > _MOST_MADE or not _fits(fill, kind):
        raise Untranslated("more than a million numbers, or none of the dtype")
    w.last("Identity", [w.constant(np.full(tuple(shape), fill, kind))])


def _filled(
    fill: float, w: Writer, size: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> None:
    _make(w, integers(size), fill, _kind(dtype, "float32"))


def _full(
    w: Writer, size: Any, fill_value: Any, dtype: Any = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None,
) -> None:  # fmt: skip
    kinds = {float: "float32", int: "int64", bool: "bool"}
    if type(fill_value) not in kinds:
        raise Untranslated("no number to fill with")
    _make(w, integers(size), fill_value, _kind(dtype, kinds[type(fill_value)]))


def _scalar(
    w: Writer, s: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> None:
    _make(w, [], s, _kind(dtype, "float32"))


def _filled_like(
    fill: float, w: Writer, self: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    memory_format: Any = None,
) -> None:  # fmt: skip
    _make(w, [w.size(self, axis) for axis in range(w.rank(self))], fill, _kind(dtype, w.dtype(self)))


def _full_like(
    w: Writer, self: Any, fill_value: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    memory_format: Any = None,
) -> None:  # fmt: skip
    _make(w, [w.size(self, axis) for axis in range(w.rank(self))], fill_value, _kind(dtype, w.dtype(self)))


def _filled_new(
    fill: float, w: Writer, self: Any, size: Any, dtype: Any = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None,
) -> None:  # fmt: skip
    _make(w, integers(size), fill, _kind(dtype, w.dtype(self)))


def _arange_made(w: Writer, start: Any, end: Any, step: Any, dtype: Any) -> None:
    given = (start, end, step)
    if not all(type(one) is int or (type(one) is float and one.is_integer()) for one in given) or step == 0:
        raise Untranslated("steps that are no integers")
    default = "int64" if all(type(one) is int for one in given) else "float32"
    start, end, step = (int(one) for one in given)
    if len(range(start, end, step)) > _MOST_MADE:
        raise Untranslated("more than a million numbers")
    w.last("Identity", [w.constant(np.arange(start, end, step, dtype=_kind(dtype, default)))])


def _arange(
    w: Writer, end: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> None:
    _arange_made(w, 0, end, 1, dtype)


def _arange_from(
    w: Writer, start: Any, end: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> None:
    _arange_made(w, start, end, 1, dtype)


def _arange_by(
    w: Writer, start: Any, end: Any, step: Any = 1, dtype: Any = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None,
) -> None:  # fmt: skip
    _arange_made(w, start, end, step, dtype)


def _eye_of(
    w: Writer, n: Any, m: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> None:
    rows, columns = integer(n), integer(m)
    if min(rows, columns) < 0 or rows * columns > _MOST_MADE:
        raise Untranslated("more than a million numbers, or a negative size")
    w.last("Identity", [w.constant(np.eye(rows, columns, dtype=_kind(dtype, "float32")))])


def _eye(
    w: Writer, n: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> None:
    _eye_of(w, n, n, dtype)


def _linspace(
    w: Writer, start: Any, end: Any, steps: Any, dtype: Any = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None,
) -> None:  # fmt: skip
    """Its numbers where none is rounded."""
    count, low, high = integer(steps), number(start), number(end)
    kind = _kind(dtype, "float32")
    if not 1 <= count <= _MOST_STEPS or not kind.startswith("float"):
        raise Untranslated("steps of another form")
    if not max(abs(low), abs(high)) <= float(np.finfo(kind).max) / 4:
        raise Untranslated("steps out of the dtype's range")
    step = (Fraction(high) - Fraction(low)) / max(1, count - 1)
    ways = [step * at for at in range(count)]
    exact = [Fraction(low) + way for way in ways]
    if any(Fraction(float(np.asarray(float(one), kind))) != one for one in (*ways, *exact)):
        _unknown(w, "linspace.default", count, kind)
        return
    w.last("Identity", [w.constant(np.array([float(one) for one in exact], kind))])


def _logspace(
    w: Writer, start: Any, end: Any, steps: Any, base: Any = 10.0, dtype: Any = None, layout: Any = None,
    device: Any = None, pin_memory: Any = None,
) -> None:  # fmt: skip
    number(start), number(end), number(base)
    count = integer(steps)
    if not 1 <= count <= _MOST_STEPS:
        raise Untranslated("steps of another form")
    _unknown(w, "logspace.default", count, _kind(dtype, "float32"))


def _unknown(w: Writer, op: str, count: int, kind: str) -> None:
    """So many numbers of which nothing is said: they are rounded, which machines do differently."""
    made = w.fresh("numbers")
    w.nodes.append(helper.make_node(op, [], [made], name=w.label, domain=DOMAIN))
    w.last("Reshape", [w.add("Cast", [made], to=_NUMBERS[kind]), w.ints([count])])


def _tensor(w: Writer, data: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False) -> None:
    """Numbers written in the code."""
    given = data if type(data) is list else [data]
    kinds = {float: "float32", int: "int64", bool: "bool"}
    found = {type(one) for one in given}
    if len(found) != 1 or not found <= set(kinds):
        raise Untranslated("no numbers, or of several kinds")
    kind = _kind(dtype, kinds[found.pop()])
    if not all(_fits(one, kind) for one in given):
        raise Untranslated("numbers that are none of the dtype")
    w.last("Identity", [w.constant(np.array(data, kind))])


# choices


def _compared(op: str, negated: bool, w: Writer, self: Any, other: Any) -> None:
    kind = w.dtype(self)
    if kind not in _KINDS or kind == "bool" or (isinstance(other, Ref) and w.dtype(other) != kind):
        raise Untranslated("a comparison between two dtypes")
    if not isinstance(other, Ref):
        if not kind.startswith("float") and type(other) is not int:
            raise Untranslated("a comparison between two dtypes")
        other = w.constant(np.asarray(number(other) if kind.startswith("float") else other).astype(kind))
    if negated:
        w.last("Not", [w.add(op, [self, other])])
    else:
        w.last(op, [self, other])


def _logical(op: str, w: Writer, self: Any, other: Any) -> None:
    if w.dtype(self) != "bool" or w.dtype(other) != "bool":
        raise Untranslated("logic on numbers")
    w.last(op, [self, other])


def _not(w: Writer, self: Any) -> None:
    if w.dtype(self) != "bool":
        raise Untranslated("logic on numbers")
    w.last("Not", [self])


def _where(w: Writer, condition: Any, self: Any, other: Any) -> None:
    likes = [one for one in (self, other) if isinstance(one, Ref)]
    if not likes or w.dtype(condition) != "bool" or len({w.real(one) for one in likes}) != 1:
        raise Untranslated("a choice between numbers, or between two dtypes")
    picks = [one if isinstance(one, Ref) else w.scalar(one, likes[0]) for one in (self, other)]
    w.last("Where", [condition, *picks])


def _masked_fill(w: Writer, self: Any, mask: Any, value: Any) -> None:
    if w.dtype(mask) != "bool":
        raise Untranslated("a mask that is no truth values")
    filler = value if isinstance(value, Ref) else w.scalar(value, self)
    if isinstance(value, Ref) and (w.real(value) != w.real(self) or w.rank(value)):
        raise Untranslated("a filler that is no number")
    w.last("Where", [mask, filler, self])


def _triangle(upper: int, w: Writer, self: Any, diagonal: Any = 0) -> None:
    w.last("Trilu", [self, w.constant(np.asarray(integer(diagonal), np.int64))], upper=upper)


# picking by index


def _index_select(w: Writer, self: Any, dim: Any, index: Any) -> None:
    if w.dtype(index) not in ("int32", "int64") or w.rank(index) != 1:
        raise Untranslated("an index of another form")
    w.last("Gather", [self, index], axis=axis_of(dim, w.rank(self)))


def _index(w: Writer, self: Any, indices: Any) -> None:
    """One integer index on one axis; all else is untranslated."""
    given = [(axis, one) for axis, one in enumerate(indices) if one is not None] if type(indices) is list else []
    if len(given) != 1 or not isinstance(given[0][1], Ref) or w.dtype(given[0][1]) not in ("int32", "int64"):
        raise Untranslated("several indices, or a mask")
    w.last("Gather", [self, given[0][1]], axis=axis_of(given[0][0], w.rank(self)))


def _gather(w: Writer, self: Any, dim: Any, index: Any, sparse_grad: Any = False) -> None:
    if w.dtype(index) not in ("int32", "int64") or w.rank(index) != w.rank(self) or not w.rank(self):
        raise Untranslated("an index of another form")
    w.last("GatherElements", [self, index], axis=axis_of(dim, w.rank(self)))


# images


def _ratios(w: Writer, self: Any, axes: int, output_size: Any, factors: list[Any]) -> list[int]:
    """The output's sizes, where they are those sizes times the factors that are given."""
    given = [w.size(self, axis + 2) for axis in range(axes)]
    if w.rank(self) != axes + 2 or min(given) < 1:
        raise Untranslated("an image of another rank")
    w.real(self)
    if output_size is None:
        sizes = [int(n * number(f)) for n, f in zip(given, factors, strict=True)]
    else:
        sizes = integers(output_size, axes)
    for n, m, f in zip(given, sizes, factors, strict=True):
        if m < 1 or (f is not None and number(f) * n != m):
            raise Untranslated("a factor that the sizes do not have")
    return sizes


def _nearest(axes: int, w: Writer, self: Any, output_size: Any, factors: list[Any]) -> None:
    """By whole factors, where no rounding of an index can matter."""
    sizes = _ratios(w, self, axes, output_size, factors)
    given = [w.size(self, axis + 2) for axis in range(axes)]
    if any(m % n and n % m for n, m in zip(given, sizes, strict=True)):
        raise Untranslated("a factor that is not whole")
    whole = w.ints([w.size(self, 0), w.size(self, 1), *sizes])
    w.last(
        "Resize", [self, None, None, whole], mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip


def _smooth(mode: str, axes: int, w: Writer, self: Any, output_size: Any, align: Any, factors: list[Any]) -> None:
    sizes = _ratios(w, self, axes, output_size, factors)
    how = "align_corners" if flag(align) else "half_pixel"
    whole = w.ints([w.size(self, 0), w.size(self, 1), *sizes])
    more = {"cubic_coeff_a": -0.75} if mode == "cubic" else {}
    w.last("Resize", [self, None, None, whole], mode=mode, coordinate_transformation_mode=how, **more)


def _factors(axes: int, scale_factors: Any) -> list[Any]:
    if scale_factors is None:
        return [None] * axes
    if type(scale_factors) is not list or len(scale_factors) != axes:
        raise Untranslated("factors of another number")
    return scale_factors


def _nearest_vec(axes: int, w: Writer, input: Any, output_size: Any, scale_factors: Any) -> None:
    _nearest(axes, w, input, output_size, _factors(axes, scale_factors))


def _smooth_vec(
    mode: str, axes: int, w: Writer, input: Any, output_size: Any, align_corners: Any, scale_factors: Any
) -> None:
    _smooth(mode, axes, w, input, output_size, align_corners, _factors(axes, scale_factors))


def _nearest1(w: Writer, self: Any, output_size: Any, scales: Any = None) -> None:
    _nearest(1, w, self, output_size, [scales])


def _nearest2(w: Writer, self: Any, output_size: Any, scales_h: Any = None, scales_w: Any = None) -> None:
    _nearest(2, w, self, output_size, [scales_h, scales_w])


def _nearest3(
    w: Writer, self: Any, output_size: Any, scales_d: Any = None, scales_h: Any = None, scales_w: Any = None
) -> None:
    _nearest(3, w, self, output_size, [scales_d, scales_h, scales_w])


def _smooth1(w: Writer, self: Any, output_size: Any, align_corners: Any, scales: Any = None) -> None:
    _smooth("linear", 1, w, self, output_size, align_corners, [scales])


def _smooth2(
    mode: str, w: Writer, self: Any, output_size: Any, align_corners: Any, scales_h: Any = None, scales_w: Any = None
) -> None:
    _smooth(mode, 2, w, self, output_size, align_corners, [scales_h, scales_w])


def _pixel_unshuffle(w: Writer, self: Any, downscale_factor: Any) -> None:
    """The channel's r·r pixels behind each other: a Reshape and a Transpose."""
    r = integer(downscale_factor)
    if w.rank(self) != 4 or r < 1 or w.size(self, 2) % r or w.size(self, 3) % r:
        raise Untranslated("pixels of another form")
    n, c, h, v = (w.size(self, axis) for axis in range(4))
    parts = w.add("Reshape", [self, w.ints([n, c, h // r, r, v // r, r])])
    moved = w.add("Transpose", [parts], perm=[0, 1, 3, 5, 2, 4])
    w.last("Reshape", [moved, w.ints([n, c * r * r, h // r, v // r])])


MADE: dict[str, Translator] = {
    "zeros.default": partial(_filled, 0), "ones.default": partial(_filled, 1), "full.default": _full,
    "scalar_tensor.default": _scalar,
    "zeros_like.default": partial(_filled_like, 0), "ones_like.default": partial(_filled_like, 1),
    "full_like.default": _full_like, "new_zeros.default": partial(_filled_new, 0),
    "new_ones.default": partial(_filled_new, 1), "arange.default": _arange, "arange.start": _arange_from,
    "arange.start_step": _arange_by, "eye.default": _eye, "eye.m": _eye_of, "linspace.default": _linspace,
    "logspace.default": _logspace, "tensor.default": _tensor,
    **{
        f"{name}.{kind}": partial(_compared, op, negated)
        for name, op, negated in (
            ("eq", "Equal", False), ("ne", "Equal", True), ("lt", "Less", False), ("le", "LessOrEqual", False),
            ("gt", "Greater", False), ("ge", "GreaterOrEqual", False),
        )
        for kind in ("Scalar", "Tensor")
    },
    "logical_and.default": partial(_logical, "And"), "logical_or.default": partial(_logical, "Or"),
    "bitwise_and.Tensor": partial(_logical, "And"), "bitwise_or.Tensor": partial(_logical, "Or"),
    "__and__.Tensor": partial(_logical, "And"), "__or__.Tensor": partial(_logical, "Or"),
    "logical_xor.default": partial(_logical, "Xor"), "logical_not.default": _not, "bitwise_not.default": _not,
    "where.self": _where, "where.ScalarSelf": _where, "where.ScalarOther": _where,
    "masked_fill.Scalar": _masked_fill, "masked_fill.Tensor": _masked_fill,
    "tril.default": partial(_triangle, 0), "triu.default": partial(_triangle, 1),
    "index_select.default": _index_select, "index.Tensor": _index, "gather.default": _gather,
    "upsample_nearest1d.default": _nearest1, "upsample_nearest2d.default": _nearest2,
    "upsample_nearest3d.default": _nearest3, "upsample_nearest1d.vec": partial(_nearest_vec, 1),
    "upsample_nearest2d.vec": partial(_nearest_vec, 2), "upsample_nearest3d.vec": partial(_nearest_vec, 3),
    "upsample_linear1d.default": _smooth1, "upsample_linear1d.vec": partial(_smooth_vec, "linear", 1),
    "upsample_bilinear2d.default": partial(_smooth2, "linear"), "upsample_bilinear2d.vec": partial(_smooth_vec, "linear", 2),
    "upsample_bicubic2d.default": partial(_smooth2, "cubic"), "upsample_bicubic2d.vec": partial(_smooth_vec, "cubic", 2),
    "pixel_unshuffle.default": _pixel_unshuffle,
}  # fmt: skip
"""None of them shares its numbers with its input."""
