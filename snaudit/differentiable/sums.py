"""Reductions, normalizations and attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from snaudit.differentiable.interface import Call, Given, Row, Tensor, axes_of


def reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Row:
    """The row of a reduction over axes that are an attribute or the second input."""

    def row(call: Call, x: Given, *axes: Given) -> Tensor:
        found = axes_of(call, (x, *axes), x.ndim)
        if not found and call.get("noop_with_empty_axes", 0):
            return x
        return function(x, tuple(found or range(x.ndim)), bool(call.get("keepdims", 1)))

    return row


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _length(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sqrt(x.square().sum(axes, keep))


def softmax(call: Call, x: Given) -> Tensor:
    """Before opset 13 over all axes from `axis` on, together."""
    old = call.opset < 13
    axis = call.get("axis", 1 if old else -1) % max(x.ndim, 1)
    flat = x.reshape(math.prod(x.shape[:axis]), -1) if old else x
    function = torch.log_softmax if call.op == "LogSoftmax" else torch.softmax
    return function(flat, -1 if old else axis).reshape(x.shape)


def batch_norm(call: Call, x: Given, scale: Given, bias: Given, mean: Given, variance: Given) -> Tensor:
    if call.get("training_mode", 0) or call.outputs > 1:
        raise call.refuse("statistics of the batch")
    along = (-1, *[1] * (x.ndim - 2))
    gain = (scale / torch.sqrt(variance + call.get("epsilon", 1e-5))).reshape(along)
    return (x - mean.reshape(along)) * gain + bias.reshape(along)


def _standard(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    x = x - x.mean(axes, keepdim=True)
    return x / torch.sqrt(x.square().mean(axes, keepdim=True) + epsilon)


def instance_norm(call: Call, x: Given, scale: Given, bias: Given) -> Tensor:
    along = (-1, *[1] * (x.ndim - 2))
    y = _standard(x, tuple(range(2, x.ndim)), call.get("epsilon", 1e-5))
    return y * scale.reshape(along) + bias.reshape(along)


def group_norm(call: Call, x: Given, scale: Given, bias: Given) -> Tensor:
    """Scale and bias are one for each group before opset 21, then one for each channel."""
    groups = call.get("num_groups")
    y = _standard(x.reshape(x.shape[0], groups, -1), (2,), call.get("epsilon", 1e-5))
    if call.opset < 21 and scale.numel() == groups:
        return (y * scale.reshape(-1, 1) + bias.reshape(-1, 1)).reshape(x.shape)
    along = (-1, *[1] * (x.ndim - 2))
    return y.reshape(x.shape) * scale.reshape(along) + bias.reshape(along)


def layer_norm(call: Call, x: Given, scale: Given, bias: Given = None) -> tuple[Tensor, ...]:
    """Without the statistics as further outputs."""
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    y = _standard(x, axes, call.get("epsilon", 1e-5)) * scale
    return (y if bias is None else y + bias), None


def rms_norm(call: Call, x: Given, scale: Given) -> Tensor:
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    return x / torch.sqrt(x.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5)) * scale


def skip_norm(call: Call, x: Given, skip: Given, scale: Given, *rest: Given) -> tuple[Tensor, ...]:
    """A normalization of a sum; the sum itself is the fourth output."""
    simplified = call.op.startswith("SkipSimplified")
    bias = rest[-1] if rest and (simplified or len(rest) > 1) else None
    total = x + skip if bias is None else x + skip + bias
    epsilon = call.get("epsilon", 1e-5 if simplified else 1e-12)
    if simplified:
        y = total / torch.sqrt(total.square().mean(-1, keepdim=True) + epsilon) * scale
    else:
        y = _standard(total, (-1,), epsilon) * scale
        y = y if not rest or rest[0] is None else y + rest[0]
    return y, None, None, total


def mean_variance(call: Call, x: Given) -> Tensor:
    axes = tuple(call.get("axes", (0, 2, 3)))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt(centred.square().mean(axes, keepdim=True)) + 1e-9)


def lp_normalization(call: Call, x: Given) -> Tensor:
    axis, p = call.get("axis", -1), call.get("p", 2)
    size = x.abs().sum(axis, keepdim=True) if p == 1 else torch.sqrt(x.square().sum(axis, keepdim=True))
    return x / torch.where(size == 0, torch.ones_like(size), size)


def running_sum(call: Call, x: Given, axis: Given) -> Tensor:
    at = int(axis)
    x = torch.flip(x, (at,)) if call.get("reverse", 0) else x
    y = torch.cumsum(x, at)
    y = y - x if call.get("exclusive", 0) else y
    return torch.flip(y, (at,)) if call.get("reverse", 0) else y


def top(call: Call, x: Given, *count: Given) -> tuple[Tensor, Tensor]:
    k = call.get("k") if not count else int(count[0])
    values, indices = torch.topk(x, k, call.get("axis", -1), bool(call.get("largest", 1)))
    return values, indices


def extreme(call: Call, x: Given) -> Tensor:
    function = torch.argmax if call.op == "ArgMax" else torch.argmin
    return function(x, call.get("axis", 0), bool(call.get("keepdims", 1)))


def attention(call: Call, q: Given, k: Given, v: Given, mask: Given = None, *past: Given) -> Tensor:
    """softmax(QKᵀ·scale + mask)·V by heads, of 3- or 4-dimensional inputs; no past, no further outputs."""
    if call.outputs > 1 or any(p is not None for p in past):
        raise call.refuse("a past, or further outputs")
    joined = q.ndim == 3
    if joined:
        heads = call.get("q_num_heads"), call.get("kv_num_heads"), call.get("kv_num_heads")
        q, k, v = (x.reshape(*x.shape[:2], n, -1).transpose(1, 2) for x, n in zip((q, k, v), heads, strict=True))
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scale = call.get("scale") or 1.0 / math.sqrt(q.shape[-1])
    scores = (q @ k.mT) * scale
    if call.get("softcap", 0.0):
        scores = call.get("softcap") * torch.tanh(scores / call.get("softcap"))
    if call.get("is_causal", 0):
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1) > 0, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    y = torch.softmax(scores, -1) @ v
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1) if joined else y


ROWS: dict[str, Row] = {
    "ArgMax": extreme, "ArgMin": extreme, "Attention": attention, "BatchNormalization": batch_norm,
    "CumSum": running_sum, "GroupNormalization": group_norm, "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm, "LogSoftmax": softmax, "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance, "RMSNormalization": rms_norm,
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keep)), "ReduceL2": reduction(_length),
    "ReduceLogSum": reduction(lambda x, axes, keep: torch.log(x.sum(axes, keep))),
    "ReduceLogSumExp": reduction(torch.logsumexp), "ReduceMax": reduction(torch.amax),
    "ReduceMean": reduction(torch.mean), "ReduceMin": reduction(torch.amin), "ReduceProd": reduction(_product),
    "ReduceSum": reduction(torch.sum), "ReduceSumSquare": reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "SimplifiedLayerNormalization": rms_norm, "SkipLayerNormalization": skip_norm,
    "SkipSimplifiedLayerNormalization": skip_norm, "Softmax": softmax, "TopK": top,
}  # fmt: skip
