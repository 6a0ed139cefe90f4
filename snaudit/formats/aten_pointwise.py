"""Entrywise ATen ops as ONNX: functions of one real tensor, and arithmetic between tensors and numbers.

A translator's parameters are those of the op's schema, with the schema's defaults; it raises
Untranslated for whatever it would have to guess.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from snaudit.formats.aten_calls import (
    Ref,
    Untranslated,
    Writer,
    absent,
    flag,
    integers,
    number,
)

_WHOLE = ("bool", "uint8", "int8", "int16", "int32", "int64")
_TYPES = {"float32": 1, "float16": 10, "float64": 11}
"""ONNX's numbers for the dtypes that arithmetic is done in."""


def _same(op: str, w: Writer, self: Any) -> None:
    """An ONNX op of the same meaning, without attributes."""
    w.real(self)
    w.last(op, [self])




def _silu(w: Writer, self: Any) -> None:
    w.real(self)
    w.last("Mul", [self, w.add("Sigmoid", [self])])


def _gelu(w: Writer, self: Any, approximate: Any = "none") -> None:
    w.real(self)
    if approximate not in ("none", "tanh"):
        raise Untranslated("an unknown approximation")
    w.last("Gelu", [self], approximate=approximate)


def _leaky_relu(w: Writer, self: Any, negative_slope: Any = 0.01) -> None:
    w.real(self)
    w.last("LeakyRelu", [self], alpha=number(negative_slope))


def _elu(w: Writer, self: Any, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> None:
    w.real(self)
    if number(scale) != 1.0 or number(input_scale) != 1.0:
        raise Untranslated("a scaled Elu")
    w.last("Elu", [self], alpha=number(alpha))


def _celu(w: Writer, self: Any, alpha: Any = 1.0) -> None:
    w.real(self)
    w.last("Celu", [self], alpha=number(alpha))


def _softplus(w: Writer, self: Any, beta: Any = 1, threshold: Any = 20) -> None:
    w.real(self)
    if number(beta) != 1.0 or number(threshold) != 20.0:
        raise Untranslated("a scaled Softplus")
    w.last("Softplus", [self])


def _clamp(w: Writer, self: Any, min: Any = None, max: Any = None) -> None:
    if min is None and max is None:
        raise Untranslated("a clamp without ends")
    low, high = (None if end is None else w.scalar(end, self) for end in (min, max))
    w.last("Clip", [self, low, high])


def _hardtanh(w: Writer, self: Any, min_val: Any = -1, max_val: Any = 1) -> None:
    _clamp(w, self, min_val, max_val)


def _relu6(w: Writer, self: Any) -> None:
    _clamp(w, self, 0.0, 6.0)


def _hardsigmoid(w: Writer, self: Any) -> None:
    w.real(self)
    w.last("HardSigmoid", [self], alpha=1 / 6, beta=0.5)


def _prelu(w: Writer, self: Any, weight: Any) -> None:
    rank, axes = w.rank(self), w.rank(weight)
    if w.real(self) != w.real(weight) or axes != 1 or rank < 2:
        raise Untranslated("a PReLU of another form")
    w.last("PRelu", [self, w.add("Reshape", [weight, w.ints([-1] + [1] * (rank - 2))])])


def _softmax(op: str, w: Writer, self: Any, dim: Any, dtype: Any = None) -> None:
    absent(dtype)
    w.real(self)
    w.last(op, [self], axis=_axis(w, self, dim))


def _raw_softmax(op: str, w: Writer, self: Any, dim: Any, half_to_float: Any) -> None:
    if flag(half_to_float):
        raise Untranslated("a softmax that changes the dtype")
    _softmax(op, w, self, dim)


def _axis(w: Writer, ref: Any, dim: Any) -> int:
    if type(dim) is not int:
        raise Untranslated("an axis that is no integer")
    rank = w.rank(ref)
    if not -rank <= dim < rank:
        raise Untranslated(f"axis {dim} of {rank}")
    return dim % rank


def _pair(w: Writer, self: Any, other: Any) -> tuple[Any, Any]:
    """Both sides of an operation, a number in the tensor's dtype; integers beside reals become reals."""
    if isinstance(other, Ref):
        whole = [w.dtype(one) in _WHOLE for one in (self, other)]
        if whole == [True, False]:
            return w.add("Cast", [self], to=_TYPES[w.real(other)]), other
        if whole == [False, True]:
            return self, w.add("Cast", [other], to=_TYPES[w.real(self)])
        if w.dtype(self) == w.dtype(other) and w.dtype(self) in ("int32", "int64"):
            return self, other
        if w.real(self) != w.real(other):
            raise Untranslated("operands of two dtypes")
        return self, other
    if w.dtype(self) in ("int32", "int64") and type(other) is int:
        return self, w.constant(np.asarray(other, w.dtype(self)))
    if w.dtype(self) in _WHOLE and type(other) is float:
        return w.add("Cast", [self], to=_TYPES["float32"]), w.constant(np.asarray(other, np.float32))
    return self, w.scalar(other, self)


def _binary(op: str, w: Writer, self: Any, other: Any) -> None:
    if op == "Div":
        w.real(self if isinstance(self, Ref) else other)  # a quotient of integers is real in torch, none in ONNX
    w.last(op, _pair(w, self, other))


def _sum(op: str, w: Writer, self: Any, other: Any, alpha: Any = 1) -> None:
    left, right = _pair(w, self, other)
    if number(alpha) != 1.0:
        w.real(self)
        right = w.add("Mul", [right, w.scalar(alpha, self)])
    w.last(op, [left, right])


def _rsub(w: Writer, self: Any, other: Any, alpha: Any = 1) -> None:
    if number(alpha) != 1.0:
        raise Untranslated("a scaled difference")
    left, right = _pair(w, self, other)
    w.last("Sub", [right, left])


def _power(w: Writer, self: Any, exponent: Any) -> None:
    w.last("Pow", [self, w.scalar(exponent, self)])


def _identity(w: Writer, self: Any, memory_format: Any = None) -> None:
    w.last("Identity", [self])


def _dropout(w: Writer, input: Any, p: Any, train: Any) -> None:
    if flag(train):
        raise Untranslated("a dropout in training mode: the network is random")
    w.last("Identity", [input])


def _normalized(w: Writer, input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any) -> None:
    """Layer normalization over the last axes."""
    sizes = integers(normalized_shape)
    w.real(input)
    shape = tuple(w.size(input, axis) for axis in range(-len(sizes), 0))
    if shape != tuple(sizes) or not sizes:
        raise Untranslated("a normalized shape that is not the input's")
    scale = weight if weight is not None else w.filled(shape, 1.0, input)
    w.last("LayerNormalization", [input, scale, bias], axis=-len(sizes), epsilon=number(eps))


def _layer_norm(
    w: Writer, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5,
    cudnn_enable: Any = True,
) -> None:  # fmt: skip
    _normalized(w, input, normalized_shape, weight, bias, eps)


def _native_layer_norm(
    w: Writer, input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any
) -> None:
    _normalized(w, input, normalized_shape, weight, bias, eps)


def _square(w: Writer, self: Any) -> None:
    w.real(self)
    w.last("Mul", [self, self])


def _rsqrt(w: Writer, self: Any) -> None:
    w.real(self)
    w.last("Reciprocal", [w.add("Sqrt", [self])])


def _log1p(w: Writer, self: Any) -> None:
    w.last("Log", [w.add("Add", [self, w.scalar(1.0, self)])])


def _log_sigmoid(w: Writer, self: Any) -> None:
    """log σ(x) = −softplus(−x)."""
    w.real(self)
    w.last("Neg", [w.add("Softplus", [w.add("Neg", [self])])])


def _shrink(hard: bool, w: Writer, self: Any, lambd: Any = 0.5) -> None:
    w.real(self)
    w.last("Shrink", [self], lambd=number(lambd), bias=0.0 if hard else number(lambd))


def _glu(w: Writer, self: Any, dim: Any = -1) -> None:
    axis = _axis(w, self, dim)
    size = w.size(self, axis)
    w.real(self)
    if size % 2:
        raise Untranslated("halves of an odd size")
    halves = [w.fresh("half"), w.fresh("half")]
    half = w.ints([size // 2, size // 2])
    w.add("Split", [self, half], halves, axis=axis)
    w.last("Mul", [halves[0], w.add("Sigmoid", [halves[1]])])


def _clamp_min(w: Writer, self: Any, min: Any) -> None:
    _clamp(w, self, min, None)


def _clamp_max(w: Writer, self: Any, max: Any) -> None:
    _clamp(w, self, None, max)


def _raised(w: Writer, self: Any, exponent: Any) -> None:
    w.real(self)
    w.real(exponent)
    w.last("Pow", _pair(w, self, exponent))


def _lerp(w: Writer, self: Any, end: Any, weight: Any) -> None:
    """self + weight·(end − self)."""
    if w.real(self) != w.real(end):
        raise Untranslated("operands of two dtypes")
    w.last("Add", [self, w.add("Mul", [w.add("Sub", [end, self]), w.scalar(weight, self)])])


def _scaled(op: str, w: Writer, self: Any, tensor1: Any, tensor2: Any, value: Any = 1) -> None:
    """self + value·(tensor1 · or ÷ tensor2)."""
    if len({w.real(one) for one in (self, tensor1, tensor2)}) != 1:
        raise Untranslated("operands of two dtypes")
    product = w.add(op, [tensor1, tensor2])
    w.last("Add", [self, w.add("Mul", [product, w.scalar(value, self)])])


def _rms_norm(w: Writer, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> None:
    """x/√(mean(x²) + ε)·weight over the last axes."""
    sizes = integers(normalized_shape)
    shape = tuple(w.size(input, axis) for axis in range(-len(sizes), 0))
    if shape != tuple(sizes) or not sizes or eps is None:
        raise Untranslated("a normalized shape that is not the input's, or an ε of the dtype")
    axes = w.ints(list(range(-len(sizes), 0)))
    mean = w.add("ReduceMean", [w.add("Mul", [input, input]), axes], keepdims=1)
    root = w.add("Sqrt", [w.add("Add", [mean, w.scalar(eps, input)])])
    quotient = w.add("Div", [input, root])
    w.last("Identity", [quotient]) if weight is None else w.last("Mul", [quotient, weight])


Translator = Callable[..., None]

POINTWISE: dict[str, Translator] = {
    **{f"{name}.default": partial(_same, op) for name, op in {
        "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt",
        "neg": "Neg", "abs": "Abs", "erf": "Erf", "reciprocal": "Reciprocal", "sin": "Sin", "cos": "Cos",
        "selu": "Selu", "hardswish": "HardSwish", "mish": "Mish", "atan": "Atan", "asin": "Asin", "acos": "Acos",
        "tan": "Tan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "floor": "Floor", "ceil": "Ceil", "sign": "Sign",
        "round": "Round",
    }.items()},
    "square.default": _square,
    "rsqrt.default": _rsqrt,
    "log1p.default": _log1p,
    "log_sigmoid.default": _log_sigmoid,
    "softshrink.default": partial(_shrink, False),
    "hardshrink.default": partial(_shrink, True),
    "glu.default": _glu,
    "clamp_min.default": _clamp_min,
    "clamp_max.default": _clamp_max,
    "pow.Tensor_Tensor": _raised,
    "addcmul.default": partial(_scaled, "Mul"),
    "addcdiv.default": partial(_scaled, "Div"),
    "lerp.Scalar": _lerp,
    "max.other": partial(_binary, "Max"),
    "min.other": partial(_binary, "Min"),
    "rms_norm.default": _rms_norm,
    "silu.default": _silu,
    "gelu.default": _gelu,
    "leaky_relu.default": _leaky_relu,
    "elu.default": _elu,
    "celu.default": _celu,
    "softplus.default": _softplus,
    "clamp.default": _clamp,
    "hardtanh.default": _hardtanh,
    "relu6.default": _relu6,
    "hardsigmoid.default": _hardsigmoid,
    "prelu.default": _prelu,
    "softmax.int": partial(_softmax, "Softmax"),
    "log_softmax.int": partial(_softmax, "LogSoftmax"),
    "_softmax.default": partial(_raw_softmax, "Softmax"),
    "_log_softmax.default": partial(_raw_softmax, "LogSoftmax"),
    "add.Tensor": partial(_sum, "Add"),
    "add.Scalar": partial(_sum, "Add"),
    "sub.Tensor": partial(_sum, "Sub"),
    "sub.Scalar": partial(_sum, "Sub"),
    "rsub.Scalar": _rsub,
    "mul.Tensor": partial(_binary, "Mul"),
    "mul.Scalar": partial(_binary, "Mul"),
    "div.Tensor": partial(_binary, "Div"),
    "div.Scalar": partial(_binary, "Div"),
    "maximum.default": partial(_binary, "Max"),
    "minimum.default": partial(_binary, "Min"),
    "pow.Tensor_Scalar": _power,
    "layer_norm.default": _layer_norm,
    "native_layer_norm.default": _native_layer_norm,
    "clone.default": _identity,
    "contiguous.default": _identity,
    "alias.default": _identity,
    "detach.default": _identity,
    "lift_fresh_copy.default": _identity,
    "dropout.default": _dropout,
    "feature_dropout.default": _dropout,
    "alpha_dropout.default": _dropout,
}
