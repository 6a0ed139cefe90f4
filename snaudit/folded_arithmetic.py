"""Folding of arithmetic, exact in ONNX's own dtypes: each result is rounded as the runtime would."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from snaudit.attributes import attribute
from snaudit.folded import CannotFold, Inputs, Op, axes_of, axis_of, bounded


def _elementwise(function: Callable[..., Any], kinds: str = "iufV") -> Op:
    """numpy's function on operands of one dtype, which the result keeps (a comparison gives bool)."""

    def compute(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
        if "broadcast" in node.attributes or "axis" in node.attributes:  # opset 6 and older
            raise CannotFold("broadcasting as before opset 7")
        if any(array is None or array.dtype != inputs[0].dtype for array in inputs):
            raise CannotFold("operands of different types")
        if inputs[0].dtype.kind not in kinds:
            raise CannotFold(f"numbers of type {inputs[0].dtype}")
        bounded(np.broadcast_shapes(*(array.shape for array in inputs)), inputs[0].dtype, limit)
        result = np.asarray(function(*inputs))
        return result if result.dtype.kind == "b" else result.astype(inputs[0].dtype, copy=False)

    return Op(compute, elementwise=True)


def _folded_left(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def compute(first: Any, *others: Any) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return compute


def _divide(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    """Integers are divided toward zero."""
    a, b = inputs
    if a.dtype.kind not in "iu":
        return _elementwise(np.divide, "fV").compute(node, inputs, limit, fill)
    if b.dtype != a.dtype or not np.all(b) or np.any(b == -1):  # INT_MIN / -1 is not defined
        raise CannotFold("a division of integers that is not defined")
    bounded(np.broadcast_shapes(a.shape, b.shape), a.dtype, limit)
    floor, rest = np.divmod(a, b)
    return (floor + ((rest != 0) & (floor < 0))).astype(a.dtype)


def _modulo(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    a, b = inputs
    if a.dtype.kind in "iu" and not np.all(b):
        raise CannotFold("modulo zero")
    if attribute(node, "fmod", 0):
        return _elementwise(np.fmod).compute(node, inputs, limit, fill)
    return _elementwise(np.mod, "iu").compute(node, inputs, limit, fill)


def _power(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    base, exponent = inputs
    if base.dtype.kind in "iu" and (exponent.dtype.kind not in "iu" or np.any(exponent < 0)):
        raise CannotFold("an integer to a power that is no natural number")
    bounded(np.broadcast_shapes(base.shape, exponent.shape), base.dtype, limit)
    return np.asarray(np.power(base, exponent)).astype(base.dtype)


def _where(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    condition, a, b = inputs
    if condition.dtype.kind != "b" or a.dtype != b.dtype:
        raise CannotFold("operands of wrong types")
    bounded(np.broadcast_shapes(condition.shape, a.shape, b.shape), a.dtype, limit)
    return np.where(condition, a, b)


def _cast(array: Any, dtype: np.dtype, limit: int) -> Any:
    bounded(array.shape, dtype, limit)
    narrow = dtype.kind in "fV" and dtype.itemsize == 1 or dtype.name in ("int4", "uint4", "int2", "uint2")
    if narrow and dtype != array.dtype:
        raise CannotFold(f"a cast to {dtype}: how it rounds and saturates is an option")
    if dtype.kind in "iu" and array.dtype.kind not in "iub":
        wide = array.astype(np.float64)
        info = np.iinfo(dtype)
        inside = np.isfinite(wide) & (wide > float(info.min) - 1) & (np.trunc(wide) < float(info.max) + 1)
        if not inside.all():
            raise CannotFold("a cast to integers that do not fit")
        return wide.astype(dtype)
    return array.astype(dtype)


def _cast_to(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    kind = ir.DataType(attribute(node, "to"))
    if kind in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise CannotFold("a cast to strings")
    return _cast(inputs[0], kind.numpy(), limit)


def _cast_like(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    return _cast(inputs[0], inputs[1].dtype, limit)


def _range(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    start, end, step = inputs
    if any(v.size != 1 or v.dtype != start.dtype or v.dtype.kind not in "if" for v in inputs):
        raise CannotFold("no range")
    first, last, by = (v.reshape(()).item() for v in inputs)
    if not by or not all(map(math.isfinite, (first, last, by))):
        raise CannotFold("no range")
    exact = -((first - last) // by) if isinstance(first, int) else math.ceil((last - first) / by)
    (count,) = bounded([max(0, exact)], start.dtype, limit)
    return (start.reshape(()) + np.arange(count).astype(start.dtype) * step.reshape(())).astype(start.dtype)


def _constant(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    plain = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}
    for name, dtype in plain.items():
        if name in node.attributes:
            return np.asarray(attribute(node, name), dtype)
    held = attribute(node, "value")
    if held is None or isinstance(held, ir.ExternalTensor) or held.dtype == ir.DataType.STRING:
        raise CannotFold("a constant of another kind")
    return held.numpy()


def _reduce(function: Callable[..., Any]) -> Op:
    def compute(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
        array, keep = inputs[0], bool(attribute(node, "keepdims", 1))
        axes = axes_of(node, inputs, 1, array.ndim)
        if not axes:
            if attribute(node, "noop_with_empty_axes", 0):
                return array
            axes = list(range(array.ndim))
        if function is np.mean and array.dtype.kind in "iu":
            raise CannotFold("a mean of integers")
        return np.asarray(function(array, tuple(axes), keepdims=keep)).astype(array.dtype, copy=False)

    return Op(compute, needs=(1,))


def _dropout(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    if len(inputs) > 2 and inputs[2] is not None and np.any(inputs[2]):
        raise CannotFold("dropout in training")
    return [inputs[0]]


def _matmul(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    a, b = inputs
    if a.dtype != b.dtype or a.dtype.kind != "f" or a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise CannotFold("no product of two matrices")
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1])
    bounded(shape, a.dtype, limit)
    if math.prod(shape) * a.shape[-1] > 1 << 28:
        raise CannotFold("a product that is too large")
    return np.matmul(a, b)


def _dequantize(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    """(x − zero point)·scale, rounded once to the scale's dtype; per tensor, per axis, or in blocks."""
    x, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else None
    if attribute(node, "output_dtype", 0) or scale.dtype.name not in ("float32", "float16", "bfloat16"):
        raise CannotFold("a dequantizer of an unusual type")
    bounded(x.shape, np.dtype(np.float64), limit)
    scale, zero = (None if p is None else _along(node, p, x.shape) for p in (scale, zero))
    if x.dtype.kind in "iu" or x.dtype.name in ("int4", "uint4", "int2", "uint2"):
        numbers = x.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
        numbers = numbers.astype(np.float32)
    else:
        if zero is not None and np.any(zero.astype(np.float32)):
            raise CannotFold("floats with a zero point")
        numbers = x.astype(np.float32)
    return (numbers * scale.astype(np.float32)).astype(scale.dtype)


def _quantize(node: ir.Node, inputs: Inputs, limit: int, fill: Any) -> Any:
    """x/scale, rounded to the nearest integer (ties to even), plus the zero point, clipped to its type."""
    x, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 and inputs[2] is not None else np.zeros(scale.shape, np.uint8)
    if x.dtype != np.float32 or scale.dtype != np.float32 or zero.dtype.name not in ("int8", "uint8", "int16", "uint16"):
        raise CannotFold("a quantizer of an unusual type")
    if attribute(node, "output_dtype", 0) or attribute(node, "precision", 0):
        raise CannotFold("a quantizer of an unusual type")
    bounded(x.shape, np.dtype(np.float64), limit)
    scale, offset = _along(node, scale, x.shape), _along(node, zero, x.shape)
    rounded = np.rint(x / scale).astype(np.float64) + offset
    if not np.isfinite(rounded).all():
        raise CannotFold("no number")
    ends = np.iinfo(zero.dtype)
    return np.clip(rounded, ends.min, ends.max).astype(zero.dtype)


def _along(node: ir.Node, parameter: Any, shape: tuple[int, ...]) -> Any:
    """A scale or zero point, stretched to what it is the scale of."""
    block, rank = attribute(node, "block_size", 0), len(shape)
    if parameter.size == 1 and parameter.ndim <= 1 and not block:
        return parameter.reshape(())
    axis = axis_of(attribute(node, "axis", 1), rank)
    if block > 0:
        wanted = shape[:axis] + (-(-shape[axis] // block),) + shape[axis + 1 :]
        if parameter.shape != wanted:
            raise CannotFold("scales for other blocks")
        index = np.arange(shape[axis]) // block
        return np.take(parameter, index, axis)
    if parameter.shape != (shape[axis],):
        raise CannotFold("scales for another axis")
    return parameter.reshape([-1 if a == axis else 1 for a in range(rank)])


_ALL = (-1,)
OPS: dict[str, Op] = {
    "Abs": _elementwise(np.abs),
    "Add": _elementwise(np.add),
    "And": _elementwise(np.logical_and, "b"),
    "Cast": Op(_cast_to, may_truncate=True),
    "CastLike": Op(_cast_like, may_truncate=True),
    "Ceil": _elementwise(np.ceil, "fV"),
    "Constant": Op(_constant),
    "DequantizeLinear": Op(_dequantize, needs=(2,)),
    "Div": Op(_divide, needs=(1,)),
    "Dropout": Op(_dropout, needs=(2,)),
    "Equal": _elementwise(np.equal, "iufVb"),
    "Exp": _elementwise(np.exp, "fV"),
    "Floor": _elementwise(np.floor, "fV"),
    "Greater": _elementwise(np.greater),
    "GreaterOrEqual": _elementwise(np.greater_equal),
    "Less": _elementwise(np.less),
    "LessOrEqual": _elementwise(np.less_equal),
    "Log": _elementwise(np.log, "fV"),
    "MatMul": Op(_matmul),
    "Max": _elementwise(_folded_left(np.maximum)),
    "Min": _elementwise(_folded_left(np.minimum)),
    "Mod": Op(_modulo, needs=_ALL),
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative, "ifV"),
    "Not": _elementwise(np.logical_not, "b"),
    "Or": _elementwise(np.logical_or, "b"),
    "Pow": Op(_power, needs=(1,)),
    "QuantizeLinear": Op(_quantize, needs=(1, 2), may_truncate=True),
    "Range": Op(_range, needs=_ALL),
    "Reciprocal": _elementwise(np.reciprocal, "fV"),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Sqrt": _elementwise(np.sqrt, "fV"),
    "Sub": _elementwise(np.subtract),
    "Sum": _elementwise(_folded_left(np.add)),
    "Where": Op(_where),
    "Xor": _elementwise(np.logical_xor, "b"),
}
