"""Float64 kernels for ONNX's reference implementation, where its own take seconds, follow another opset or
round to float32 on the way.

Convolution and pooling are a sum or a maximum over the taps of their window: one strided view of the
padded input for each tap, and for a convolution one matrix product with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun


class Conv(OpRun):
    """Convolution with explicit padding, in any number of dimensions."""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[np.ndarray]:
        groups, kernel = attributes.get("group") or 1, w.shape[2:]
        out, taps = _taps(x, kernel, attributes, 0.0)
        rows, columns = w.shape[0] // groups, w.shape[1]
        result = np.zeros((x.shape[0], groups, rows, math.prod(out)), x.dtype)
        for place, view in taps:
            weight = w[(slice(None), slice(None), *place)].reshape(groups, rows, columns)
            result += weight @ view.reshape(x.shape[0], groups, columns, -1)
        result = result.reshape(x.shape[0], w.shape[0], *out)
        return (result if b is None else result + b.reshape(-1, *[1] * len(out)),)


class MaxPool(OpRun):
    """The largest entry of each window, padding not counted; without indices."""

    def _run(self, x: Any, **attributes: Any) -> tuple[np.ndarray]:
        out, taps = _taps(x, attributes["kernel_shape"], attributes, -np.inf)
        result = np.full((*x.shape[:2], *out), -np.inf, x.dtype)
        for _, view in taps:
            np.maximum(result, view, out=result)
        return (result,)


class AveragePool(OpRun):
    """The mean of each window's entries, padding counted or not."""

    def _run(self, x: Any, **attributes: Any) -> tuple[np.ndarray]:
        kernel = attributes["kernel_shape"]
        counted = np.ones((1, 1, *x.shape[2:]), x.dtype)
        total, number = (
            sum(view for _, view in _taps(a, kernel, attributes, 0.0)[1]) for a in (x, counted)
        )
        return (total / (math.prod(kernel) if attributes.get("count_include_pad") else number),)


class BatchNormalization(OpRun):
    """(x − mean)/√(variance + epsilon)·scale + bias with the stored statistics."""

    def _run(self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, **attributes: Any) -> tuple[np.ndarray]:
        epsilon = attributes.get("epsilon") or 1e-5
        along = (-1, *[1] * (x.ndim - 2))
        gain = (scale / np.sqrt(var + epsilon)).reshape(along)
        return ((x - mean.reshape(along)) * gain + bias.reshape(along),)


class Softmax(OpRun):
    """Softmax before opset 13: over all axes from `axis` on, together."""

    def _run(self, x: Any, **attributes: Any) -> tuple[np.ndarray]:
        axis = attributes.get("axis")
        axes = tuple(range(x.ndim))[1 if axis is None else axis :]
        powers = np.exp(x - x.max(axis=axes, keepdims=True))
        return (powers / powers.sum(axis=axes, keepdims=True),)


class Erf(OpRun):
    """The error function: the reference's rounds to float32 on the way."""

    def _run(self, x: Any) -> tuple[np.ndarray]:
        return (_erf(x).astype(x.dtype),)


class Gelu(OpRun):
    """x·Φ(x), or its form with tanh."""

    def _run(self, x: Any, approximate: str = "none") -> tuple[np.ndarray]:
        if approximate == "tanh":
            inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
            return ((0.5 * x * (1.0 + np.tanh(inner))).astype(x.dtype),)
        return ((0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))).astype(x.dtype),)


class HardSwish(OpRun):
    """x·min(1, max(0, x/6 + ½))."""

    def _run(self, x: Any) -> tuple[np.ndarray]:
        return ((x * np.clip(x / 6.0 + 0.5, 0.0, 1.0)).astype(x.dtype),)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _taps(
    x: np.ndarray, kernel: Sequence[int], attributes: dict[str, Any], fill: float
) -> tuple[tuple[int, ...], Iterator[tuple[tuple[int, ...], np.ndarray]]]:
    """(the result's spatial shape, for each place in the window the entries that stand there)."""
    axes = len(kernel)
    strides = attributes.get("strides") or [1] * axes
    dilations = attributes.get("dilations") or [1] * axes
    pads = attributes.get("pads") or [0] * 2 * axes
    out, ends = [], []
    for n, k, s, d, p, q in zip(x.shape[2:], kernel, strides, dilations, pads, pads[axes:], strict=False):
        span = d * (k - 1) + 1
        count = (n + p + q - span) // s + 1
        if attributes.get("ceil_mode"):
            count = -(-(n + p + q - span) // s) + 1
            count -= (count - 1) * s >= n + p  # a window must not begin in the padding behind
        out.append(count)
        ends.append(max(q, (count - 1) * s + span - n - p))
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads, ends, strict=False)], constant_values=fill)

    def views() -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        for place in itertools.product(*(range(k) for k in kernel)):
            cut = (
                slice(i * d, i * d + (count - 1) * s + 1, s)
                for i, d, s, count in zip(place, dilations, strides, out, strict=True)
            )
            yield place, padded[(slice(None), slice(None), *cut)]

    return tuple(out), views()


def fitting(model: onnx.ModelProto) -> list[type[OpRun]]:
    """Those of these kernels that all nodes of their kind in the graph fit."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    kinds = [Conv, MaxPool, AveragePool, BatchNormalization, Erf, Gelu, HardSwish]
    kinds += [Softmax] if opset < 13 else []
    return [
        kind
        for kind in kinds
        if all(_fits(node) for node in model.graph.node if node.op_type == kind.__name__)
    ]


def _fits(node: onnx.NodeProto) -> bool:
    held = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if held.get("auto_pad", b"NOTSET") != b"NOTSET" or len(node.output) != 1:
        return False
    if held.get("training_mode") or held.get("spatial") == 0 or held.get("epsilon") == 0.0:
        return False
    return node.op_type == "MaxPool" or not held.get("ceil_mode")
