"""Ops that have a rule, written out for those who evaluate a graph: ONNX's reference implementation and
onnxruntime's kernels for double do not know them."""

from __future__ import annotations

import math

from snaudit.lowered.interface import Call, Kept, Lowering


def gelu(call: Call) -> None:
    """x/2·(1 + erf(x/√2))."""
    call.only()
    call.signature(1)
    x = call.needed(0)
    inner = call.emit("Mul", [x, call.constant(math.sqrt(0.5), "root")], "scaled")
    _gated(call, x, call.emit("Erf", [inner], "erf"))


def fast_gelu(call: Call) -> None:
    """x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), x with the bias."""
    call.only()
    call.signature(2)
    x = call.emit("Add", [call.needed(0), call.input(1)], "sum") if call.input(1) else call.needed(0)
    square = call.emit("Mul", [x, x], "square")
    cube = call.emit("Mul", [call.emit("Mul", [square, x], "cube"), call.constant(0.044715, "third")], "small")
    inner = call.emit("Mul", [call.emit("Add", [x, cube], "inner"), call.constant(math.sqrt(2 / math.pi), "root")], "scaled")
    _gated(call, x, call.emit("Tanh", [inner], "tanh"))


def _gated(call: Call, x: str, gate: str) -> None:
    twice = call.emit("Mul", [x, call.emit("Add", [gate, call.constant(1.0, "one")], "gate")], "twice")
    call.emit("Mul", [twice, call.constant(0.5, "half")], output=call.output())


def quick_gelu(call: Call) -> None:
    """x·σ(alpha·x)."""
    call.only("alpha")
    call.signature(1)
    alpha = call.constant(float(call.attribute("alpha", 1.702)), "alpha")
    gate = call.emit("Sigmoid", [call.emit("Mul", [call.needed(0), alpha], "scaled")], "gate")
    call.emit("Mul", [call.needed(0), gate], output=call.output())


def _mean(call: Call, value: str, part: str) -> str:
    """The mean over the last axis, kept."""
    if call.opset < 18:
        return call.emit("ReduceMean", [value], part, axes=[-1], keepdims=1)
    return call.emit("ReduceMean", [value, call.constant([-1], "axis")], part, keepdims=1)


def simplified(call: Call) -> None:
    """γ·x/√(mean(x²) + ε) over the last axis."""
    call.only("axis", "epsilon", "stash_type")
    call.signature(2)
    if call.attribute("axis", -1) != -1:
        raise Kept("normalizes other axes than the last")
    _normalized(call, call.needed(0), call.output())


def layer_normalization(call: Call) -> None:
    """γ·(x − mean)/√(var + ε) + β over the last axis, in opsets that do not have the op."""
    if call.opset >= 17:
        raise Kept("")
    call.only("axis", "epsilon", "stash_type")
    call.signature(3)
    if call.attribute("axis", -1) != -1:
        raise Kept("normalizes other axes than the last")
    x = call.needed(0)
    centred = call.emit("Sub", [x, _mean(call, x, "mean")], "centred")
    scaled = _normalized(call, centred, "" if call.input(2) else call.output())
    if call.input(2):
        call.emit("Add", [scaled, call.input(2)], "shifted", call.output())


def _normalized(call: Call, value: str, output: str) -> str:
    variance = _mean(call, call.emit("Mul", [value, value], "square"), "variance")
    floor = call.emit("Add", [variance, call.constant(float(call.attribute("epsilon", 1e-5)), "epsilon")], "floor")
    normal = call.emit("Div", [value, call.emit("Sqrt", [floor], "root")], "normal")
    return call.emit("Mul", [normal, call.needed(1)], "", output)


def packed_attention(call: Call) -> None:
    """Softmax(QKᵀ·s)·V for each head, Q, K and V parts of x·W + b; without masks or a cache."""
    call.only("num_heads", "scale", "mask_filter_value", "unidirectional")
    call.signature(3)
    width = call.shape(1)[1]
    if call.attribute("unidirectional", 0) or width is None or width % 3 or call.opset < 10:
        raise Kept("looks only back, or has parts of unlike width")
    product = call.emit("MatMul", [call.needed(0), call.needed(1)], "product")
    product = call.emit("Add", [product, call.input(2)], "biased") if call.input(2) else product
    _attend(call, [_cut(call, product, i, width // 3, 2) for i in range(3)], width // 3)


def multi_head_attention(call: Call) -> None:
    """Softmax(QKᵀ·s)·V for each head of 3-D Q, K and V of one width, with biases; without masks or a cache."""
    call.only("num_heads", "scale", "mask_filter_value", "unidirectional")
    call.signature(4)
    parts, width = [call.needed(i) for i in range(3)], call.shape(0)[-1]
    widths = {call.shape(i)[-1] for i in range(3)} | {call.rank(i) for i in range(3)}
    if call.attribute("unidirectional", 0) or width is None or widths != {width, 3} or call.opset < 10:
        raise Kept("looks only back, or has parts of unlike width")
    if call.input(3):
        parts = [call.emit("Add", [p, _cut(call, call.input(3), i, width, 0)], "biased") for i, p in enumerate(parts)]
    _attend(call, parts, width)


def _cut(call: Call, value: str, index: int, width: int, axis: int) -> str:
    ends = (call.constant([index * width], "start"), call.constant([(index + 1) * width], "end"))
    return call.emit("Slice", [value, *ends, call.constant([axis], "axis")], "part")


def _attend(call: Call, parts: list[str], width: int) -> None:
    heads = int(call.attribute("num_heads"))
    if heads < 1 or width % heads:
        raise Kept("has a number of heads that makes no sense")
    shape = call.constant([0, 0, heads, width // heads], "split")
    orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    query, key, value = (
        call.emit("Transpose", [call.emit("Reshape", [part, shape], "heads")], "turned", perm=order)
        for part, order in zip(parts, orders, strict=True)
    )
    scale = float(call.attribute("scale", 0.0)) or 1.0 / math.sqrt(width // heads)
    logits = call.emit("Mul", [call.emit("MatMul", [query, key], "product"), call.constant(scale, "scale")], "logits")
    made = call.emit("MatMul", [call.emit("Softmax", [logits], "weights", axis=3), value], "mixed")
    turned = call.emit("Transpose", [made], "back", perm=[0, 2, 1, 3])
    call.emit("Reshape", [turned, call.constant([0, 0, width], "whole")], "", call.output())


ROWS = (
    Lowering("Gelu", gelu, "Erf"),
    Lowering("FastGelu", fast_gelu, "Tanh"),
    Lowering("QuickGelu", quick_gelu, "Sigmoid"),
    Lowering("SimplifiedLayerNormalization", simplified, "ReduceMean, Div", domain=""),
    Lowering("LayerNormalization", layer_normalization, "ReduceMean, Div", domain=""),
    Lowering("Attention", packed_attention, "MatMul, Softmax, MatMul"),
    Lowering("MultiHeadAttention", multi_head_attention, "MatMul, Softmax, MatMul"),
)
