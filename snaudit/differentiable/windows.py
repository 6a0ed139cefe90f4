"""Products with weights, and windows over images: convolutions, pools, interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from snaudit.differentiable.interface import Call, Given, Row, Tensor, integers
from snaudit.rules.resampling import Kind


def gemm(call: Call, a: Given, b: Given, c: Given = None) -> Tensor:
    a = a.mT if call.get("transA", 0) else a
    b = b.mT if call.get("transB", 0) else b
    y = call.get("alpha", 1.0) * (a @ b)
    return y if c is None else y + call.get("beta", 1.0) * c


def fused_matmul(call: Call, a: Given, b: Given) -> Tensor:
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise call.refuse("a transposed batch")
    return gemm(call, a, b)


def einsum(call: Call, *xs: Given) -> Tensor:
    return torch.einsum(call.get("equation").replace(" ", ""), *xs)


def _window(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """(strides, dilations, pads before, pads behind, pads behind so that the last window fits)."""
    axes = len(kernel)
    strides = list(call.get("strides", [1] * axes))
    dilations = list(call.get("dilations", [1] * axes))
    pads = list(call.get("pads", [0] * 2 * axes))
    before, behind = pads[:axes], pads[axes:]
    auto = call.get("auto_pad", "NOTSET")
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(0, (-(-n // s) - 1) * s + e - n) for n, s, e in zip(sizes, strides, spans, strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        before, behind = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto == "VALID":
        before, behind = [0] * axes, [0] * axes
    ends = list(behind)
    if call.get("ceil_mode", 0):
        for i, (n, s, e) in enumerate(zip(sizes, strides, spans, strict=True)):
            count = -(-(n + before[i] + behind[i] - e) // s) + 1
            count -= (count - 1) * s >= n + before[i]  # no window begins in the padding behind
            ends[i] = max(behind[i], (count - 1) * s + e - n - before[i])
    return strides, dilations, before, behind, ends


def _padded(x: Tensor, before: Sequence[int], behind: Sequence[int], fill: float = 0.0) -> Tensor:
    flat = [n for pair in reversed(list(zip(before, behind, strict=True))) for n in pair]
    return F.pad(x, flat, value=fill) if any(flat) else x


def conv(call: Call, x: Given, weight: Given, bias: Given = None) -> Tensor:
    kernel = weight.shape[2:]
    strides, dilations, before, _, ends = _window(call, x.shape[2:], kernel)
    function = getattr(F, f"conv{len(kernel)}d")
    if before == ends:  # torch pads both ends alike without a copy
        return function(x, weight, bias, strides, before, dilations, call.get("group", 1))
    return function(_padded(x, before, ends), weight, bias, strides, 0, dilations, call.get("group", 1))


def conv_transpose(call: Call, x: Given, weight: Given, bias: Given = None) -> Tensor:
    """The whole scattered sum, of which pads at both ends are cut off."""
    axes = weight.ndim - 2
    strides = call.get("strides", [1] * axes)
    dilations = call.get("dilations", [1] * axes)
    more = call.get("output_padding", [0] * axes)
    function = getattr(F, f"conv_transpose{axes}d")
    y = function(x, weight, None, strides, 0, 0, call.get("group", 1), dilations)
    y = _padded(y, [0] * axes, more)
    pads = list(call.get("pads", [0] * 2 * axes))
    auto, shape = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if auto.startswith("SAME") and shape is None:
        shape = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if shape is not None:
        total = [n - m for n, m in zip(y.shape[2:], shape[-axes:], strict=True)]
        less, rest = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*less, *rest] if auto == "SAME_UPPER" else [*rest, *less]
    y = _padded(y, [-p for p in pads[:axes]], [-p for p in pads[axes:]])
    return y if bias is None else y + bias.reshape(-1, *[1] * axes)


def max_pool(call: Call, x: Given) -> tuple[Tensor, ...]:
    """Without indices."""
    kernel = call.get("kernel_shape")
    strides, dilations, before, _, ends = _window(call, x.shape[2:], kernel)
    function = getattr(F, f"max_pool{len(kernel)}d")
    return function(_padded(x, before, ends, -math.inf), kernel, strides, 0, dilations), None


def _sums(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype)
    function = getattr(F, f"conv{len(kernel)}d")
    flat = x.reshape(-1, 1, *x.shape[2:])
    y = function(flat, ones, None, strides, 0, dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


def average_pool(call: Call, x: Given) -> Tensor:
    kernel = call.get("kernel_shape")
    strides, dilations, before, behind, ends = _window(call, x.shape[2:], kernel)
    counted = _padded(torch.ones(1, 1, *x.shape[2:], dtype=x.dtype), before, behind, 1.0 if call.get("count_include_pad") else 0.0)
    counted = _padded(counted, [0] * len(ends), [e - b for e, b in zip(ends, behind, strict=True)])
    total = _sums(_padded(x, before, ends), kernel, strides, dilations)
    return total / _sums(counted, kernel, strides, dilations)


def lp_pool(call: Call, x: Given) -> Tensor:
    kernel, p = call.get("kernel_shape"), call.get("p", 2)
    strides, dilations, before, _, ends = _window(call, x.shape[2:], kernel)
    return _sums(_padded(x.abs() ** p, before, ends), kernel, strides, dilations) ** (1.0 / p)


def global_pool(call: Call, x: Given) -> Tensor:
    axes = tuple(range(2, x.ndim))
    if call.op == "GlobalMaxPool":
        return torch.amax(x, axes, keepdim=True)
    if call.op == "GlobalLpPool":
        p = call.get("p", 2)
        return (x.abs() ** p).sum(axes, keepdim=True) ** (1.0 / p)
    return x.mean(axes, keepdim=True)


def resize(call: Call, x: Given, *rest: Given) -> Tensor:
    """One matrix for each axis that changes, as the rule for the norm builds it."""
    old = call.op == "Upsample" or call.opset < 11
    coordinates = "asymmetric" if old else call.get("coordinate_transformation_mode", "half_pixel")
    plain = call.get("antialias", 0) == 0 and call.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if not plain or coordinates == "tf_crop_and_resize":
        raise call.refuse("antialiasing, cropping or a kept aspect ratio")
    mode = {"bilinear": "linear"}.get(call.get("mode", "nearest"), call.get("mode", "nearest"))
    nearest = "floor" if old else call.get("nearest_mode", "round_prefer_floor")
    cubic, exclude = float(call.get("cubic_coeff_a", -0.75)), bool(call.get("exclude_outside", 0))
    kind = Kind(mode, coordinates, nearest, cubic, exclude)
    for axis, out, scale in _resized(call, x, rest):
        if mode == "nearest":
            index = kind.indices(kind.positions(x.shape[axis], out, scale), x.shape[axis])
            x = x.index_select(axis, torch.as_tensor(index))
        elif out != x.shape[axis] or scale != 1.0:
            matrix = torch.as_tensor(kind.matrix(x.shape[axis], out, scale), dtype=x.dtype)
            x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.T, -1, axis)
    return x


def _resized(call: Call, x: Tensor, rest: tuple[Given, ...]) -> list[tuple[int, int, float]]:
    """(axis, its new size, the scale) for each axis that is given."""
    scales: Any = call.get("scales")
    sizes = None
    if scales is None:
        at = 0 if call.op == "Upsample" or call.opset < 11 else 1
        held = rest[at] if len(rest) > at else None
        scales = None if held is None or not held.numel() else [float(s) for s in held.reshape(-1)]
        sizes = integers(rest[2]) if scales is None and len(rest) > 2 else None
    axes = [int(a) % x.ndim for a in call.get("axes", range(x.ndim))]
    if scales is not None:
        return [(a, math.floor(x.shape[a] * s), s) for a, s in zip(axes, scales, strict=True)]
    if sizes is None:
        raise call.refuse("neither scales nor sizes")
    return [(a, n, n / x.shape[a]) for a, n in zip(axes, sizes, strict=True)]


def grid_sample(call: Call, x: Given, grid: Given) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(call.get("mode", "linear"), call.get("mode", "linear"))
    padding = call.get("padding_mode", "zeros")
    return F.grid_sample(x, grid, mode, padding, bool(call.get("align_corners", 0)))


def lrn(call: Call, x: Given) -> Tensor:
    size = call.get("size")
    less = (size - 1) // 2
    squares = _padded(x.square().movedim(1, -1), [less], [size - 1 - less]).unfold(-1, size, 1).sum(-1)
    scale = call.get("alpha", 1e-4) / size * squares.movedim(-1, 1)
    return x / (call.get("bias", 1.0) + scale) ** call.get("beta", 0.75)


ROWS: dict[str, Row] = {
    "AveragePool": average_pool, "Conv": conv, "ConvTranspose": conv_transpose, "Einsum": einsum,
    "FusedMatMul": fused_matmul, "Gemm": gemm, "GlobalAveragePool": global_pool, "GlobalLpPool": global_pool,
    "GlobalMaxPool": global_pool, "GridSample": grid_sample, "LRN": lrn, "LpPool": lp_pool,
    "MatMul": lambda call, a, b: a @ b, "MaxPool": max_pool, "Resize": resize, "Upsample": resize,
}  # fmt: skip
