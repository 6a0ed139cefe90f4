"""Shapes of quantized ops that onnx's inference does not know: each stands in as an op of equal shapes.

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
}
"""Op of com.microsoft: the op of equal shapes, which inputs it is given, which attributes."""


def put(graph: onnx.GraphProto) -> dict[int, onnx.NodeProto]:
    """The nodes as they were, by their place in the graph."""
    kept = {}
    for place, node in enumerate(graph.node):
        found = _stand_in(node)
        if found is not None:
            kept[place] = onnx.NodeProto()
            kept[place].CopyFrom(node)
            node.CopyFrom(found)
    return kept


def restore(graph: onnx.GraphProto, kept: dict[int, onnx.NodeProto]) -> None:
    """Put the nodes back; inference leaves their order as it is."""
    for place, node in kept.items():
        graph.node[place].CopyFrom(node)


def _stand_in(node: onnx.NodeProto) -> onnx.NodeProto | None:
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
    made = onnx.helper.make_node(op, [node.input[i] for i in chosen if i < len(node.input)], list(node.output[:1]))
    made.attribute.extend(a for a in node.attribute if a.name in attributes)
    return made
