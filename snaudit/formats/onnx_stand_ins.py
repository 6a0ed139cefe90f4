"""Shapes of quantized and fused ops that onnx's inference does not know: each stands in as an op of equal shapes.

`put` changes the nodes in place and returns what to give to `restore` afterwards.
"""

from __future__ import annotations

import onnx

_MICROSOFT = "com.microsoft"
_STAND_INS: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "QuantizeLinear": ("QuantizeLinear", (0, 1, 2), ()),
    "DequantizeLinear": ("DequantizeLinear", (0, 1, 2), ()),
    "QLinearAdd": ("Add", (0, 3), ()),
    "QLinearMul": ("Mul", (0, 3), ()),
    "QLinearSigmoid": ("Identity", (0,), ()),
    "QLinearLeakyRelu": ("Identity", (0,), ()),
    "QLinearSoftmax": ("Identity", (0,), ()),
    "QLinearAveragePool": ("AveragePool", (0,), ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode")),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,), ()),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1), ()),
    "QGemm": ("Gemm", (0, 3), ("transA", "transB")),
    "Gelu": ("Identity", (0,), ()),
    "FastGelu": ("Identity", (0,), ()),
    "QuickGelu": ("Identity", (0,), ()),
    "RotaryEmbedding": ("Identity", (0,), ()),
    "DynamicQuantizeLSTM": ("LSTM", (0, 1, 2), ("hidden_size", "direction")),
}
"""Op of com.microsoft: the op of equal shapes, which inputs it is given, which attributes."""
_NOT_YET = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 30, "Trilu": 14}
"""onnxruntime's ops in ONNX's own domain before ONNX had them: since which opset it has. Each has the shape
of its first input."""


def put(graph: onnx.GraphProto, opset: int) -> dict[int, onnx.NodeProto]:
    """The nodes as they were, by their place in the graph. opset: of ONNX's own ops."""
    kept = {}
    widths = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for place, node in enumerate(graph.node):
        found = _attention(node, widths) or _stand_in(node, opset)
        if found is not None:
            kept[place] = onnx.NodeProto()
            kept[place].CopyFrom(node)
            node.CopyFrom(found)
    return kept


def restore(graph: onnx.GraphProto, kept: dict[int, onnx.NodeProto]) -> None:
    """Put the nodes back; inference leaves their order as it is."""
    for place, node in kept.items():
        graph.node[place].CopyFrom(node)


def _attention(node: onnx.NodeProto, widths: dict[str, tuple[int, ...]]) -> onnx.NodeProto | None:
    """Attention whose values are as wide as its input (batch, tokens, width): they have one shape. One with
    3-D queries and values: (batch, tokens, width of the values)."""
    if node.domain != _MICROSOFT or len(node.input) < 3:
        return None
    made = list(node.output[:1])
    if node.op_type == "Attention":
        rows, columns = (*widths.get(node.input[1], ()), 0, 0)[:2]
        if columns != 3 * rows or any(a.name == "qkv_hidden_sizes" for a in node.attribute):
            return None
        return onnx.helper.make_node("Identity", [node.input[0]], made)
    if node.op_type == "MultiHeadAttention" and node.input[1] and node.input[2]:
        inputs = [node.input[0], node.input[2]]
        return onnx.helper.make_node("Einsum", inputs, made, equation="bij,bkl->bil")  # of other ranks: none
    return None


def _stand_in(node: onnx.NodeProto, opset: int) -> onnx.NodeProto | None:
    if node.domain in ("", "ai.onnx") and opset < _NOT_YET.get(node.op_type, 0):
        return onnx.helper.make_node("Identity", list(node.input[:1]), list(node.output[:1]))
    if node.domain != _MICROSOFT or any(a.name == "channels_last" and a.i for a in node.attribute):
        return None
    if node.op_type == "QLinearConcat":
        op, chosen, attributes = "Concat", tuple(range(2, len(node.input), 3)), ("axis",)
    elif node.op_type == "QGemm" and (len(node.input) < 8 or not node.input[7]):
        return None  # its result is real, and a Gemm of codes would not be
    elif node.op_type in _STAND_INS:
        op, chosen, attributes = _STAND_INS[node.op_type]
    else:
        return None
    outputs = list(node.output[: 3 if op == "LSTM" else 1])
    made = onnx.helper.make_node(op, [node.input[i] for i in chosen if i < len(node.input)], outputs)
    made.attribute.extend(a for a in node.attribute if a.name in attributes)
    return made
