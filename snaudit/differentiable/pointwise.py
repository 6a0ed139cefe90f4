"""Curves, arithmetic and comparisons, entry by entry."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from snaudit.differentiable.interface import Call, Given, Row, Tensor


def curve(function: Callable[[Tensor], Tensor]) -> Row:
    """The row of a function of one input without attributes."""
    return lambda call, x, *rest: function(x)


def pair(function: Callable[[Tensor, Tensor], Tensor]) -> Row:
    """The row of a function of two inputs."""
    return lambda call, a, b: function(a, b)


def fold(function: Callable[[Tensor, Tensor], Tensor]) -> Row:
    """The row of a function of any number of inputs, taken two at a time."""
    return lambda call, *xs: functools.reduce(function, xs)


def mean(call: Call, *xs: Given) -> Tensor:
    return functools.reduce(torch.add, xs) / len(xs)


def cast(call: Call, x: Given, *like: Given) -> Tensor:
    """Real numbers stay as they are; others become the run's real type or integers."""
    to = call.get("to")
    real = like[0].is_floating_point() if like else to in (1, 10, 11, 16)
    if real:
        return x if x.is_floating_point() else x.to(call.real)
    if (like and like[0].dtype == torch.bool) or to == 9:
        return x != 0
    return x.to(torch.int64)


def clip(call: Call, x: Given, low: Given = None, high: Given = None) -> Tensor:
    low = call.get("min") if low is None else low
    high = call.get("max") if high is None else high
    if low is not None:
        x = torch.maximum(x, torch.as_tensor(low, dtype=x.dtype))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))


def leaky(call: Call, x: Given) -> Tensor:
    return torch.where(x < 0, x * call.get("alpha", 0.01), x)


def prelu(call: Call, x: Given, slope: Given) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def thresholded(call: Call, x: Given) -> Tensor:
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


def shrink(call: Call, x: Given) -> Tensor:
    bias, edge = call.get("bias", 0.0), call.get("lambd", 0.5)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, torch.zeros_like(x)))


def elu(call: Call, x: Given) -> Tensor:
    return F.elu(x, call.get("alpha", 1.0))


def celu(call: Call, x: Given) -> Tensor:
    return F.celu(x, call.get("alpha", 1.0))


def selu(call: Call, x: Given) -> Tensor:
    return call.get("gamma", 1.0507009873554804934193349852946) * F.elu(x, call.get("alpha", 1.67326319217681884765625))


def gelu(call: Call, x: Given, *bias: Given) -> Tensor:
    x = x + bias[0] if bias and bias[0] is not None else x
    tanh = call.op == "FastGelu" or call.get("approximate") == "tanh"
    return F.gelu(x, approximate="tanh" if tanh else "none")


def swish(call: Call, x: Given) -> Tensor:
    slope = 1.702 if call.op == "QuickGelu" else 1.0
    return x * torch.sigmoid(call.get("alpha", slope) * x)


def hard_sigmoid(call: Call, x: Given) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0.0, 1.0)


def hard_swish(call: Call, x: Given) -> Tensor:
    return x * torch.clamp(x / 6.0 + 0.5, 0.0, 1.0)


def divided(call: Call, a: Given, b: Given) -> Tensor:
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def remainder(call: Call, a: Given, b: Given) -> Tensor:
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def chosen(call: Call, condition: Given, a: Given, b: Given) -> Tensor:
    return torch.where(condition, a, b)


def is_inf(call: Call, x: Given) -> Tensor:
    return torch.isinf(x)


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


def power(a: Tensor, b: Tensor) -> Any:
    return torch.pow(a, b.to(a.dtype))


def rounded(x: Tensor) -> Tensor:
    """Steps have the derivative zero."""
    return torch.round(x)


ROWS: dict[str, Row] = {
    "Abs": curve(torch.abs), "Acos": curve(torch.acos), "Acosh": curve(torch.acosh), "Add": pair(torch.add),
    "And": pair(torch.logical_and), "Asin": curve(torch.asin), "Asinh": curve(torch.asinh),
    "Atan": curve(torch.atan), "Atanh": curve(torch.atanh), "BiasGelu": gelu, "Cast": cast, "CastLike": cast,
    "Ceil": curve(torch.ceil), "Celu": celu, "Clip": clip, "Cos": curve(torch.cos), "Cosh": curve(torch.cosh),
    "Div": divided, "Dropout": curve(lambda x: x), "Elu": elu, "Equal": pair(torch.eq), "Erf": curve(torch.erf),
    "Exp": curve(torch.exp), "FastGelu": gelu, "Floor": curve(torch.floor), "Gelu": gelu,
    "Greater": pair(torch.gt), "GreaterOrEqual": pair(torch.ge), "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish, "Identity": curve(lambda x: x), "IsInf": is_inf, "IsNaN": curve(torch.isnan),
    "LeakyRelu": leaky, "Less": pair(torch.lt), "LessOrEqual": pair(torch.le), "Log": curve(torch.log),
    "Max": fold(torch.maximum), "Mean": mean, "Min": fold(torch.minimum), "Mish": curve(mish), "Mod": remainder,
    "Mul": pair(torch.mul), "Neg": curve(torch.neg), "Not": curve(torch.logical_not),
    "Or": pair(torch.logical_or), "PRelu": prelu, "Pow": pair(power), "QuickGelu": swish,
    "Reciprocal": curve(torch.reciprocal), "Relu": curve(torch.relu), "Round": curve(rounded), "Selu": selu,
    "Shrink": shrink, "Sigmoid": curve(torch.sigmoid), "Sign": curve(torch.sign), "Sin": curve(torch.sin),
    "Sinh": curve(torch.sinh), "Softplus": curve(F.softplus),
    "Softsign": curve(F.softsign), "Sqrt": curve(torch.sqrt), "Sub": pair(torch.sub), "Sum": fold(torch.add),
    "Swish": swish, "Tan": curve(torch.tan), "Tanh": curve(torch.tanh), "ThresholdedRelu": thresholded,
    "Where": chosen, "Xor": pair(torch.logical_xor),
}  # fmt: skip
