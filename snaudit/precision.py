"""An ONNX graph in another floating precision: the same real function, evaluated with other rounding.

Every real constant of the stored model is a float64, so the copy in double holds the same numbers.
Casts between real types, which real arithmetic does not know, become casts to the new type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

REAL = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64}
_ROUNDS = ("QuantizeLinear", "DynamicQuantize", "QLinear", "ConvInteger", "MatMulInteger", "MatMulNBits", "QGemm",
           "QAttention")
_NARROW = frozenset(kind for name, kind in TensorProto.DataType.items() if name.startswith("FLOAT8"))
_SCALES = {"Resize": 2, "Upsample": 1}
"""The input that onnxruntime takes in float32 only. The copy in double has it in double, which only the
reference implementation takes: coordinates rounded alike in both precisions would hide their error."""


class Unfit(Exception):
    """The graph has no copy in another precision; the message says why."""


def in_precision(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """A copy whose real tensors are all of `kind` (FLOAT or DOUBLE). Raises Unfit for a graph that
    rounds to integers or float8, or holds sparse tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.training_info[:]
    for function in copy.functions:
        _nodes(function.node, kind)
    _graph(copy.graph, kind)
    return copy


def _graph(graph: onnx.GraphProto, kind: int) -> None:
    if graph.sparse_initializer:
        raise Unfit("it holds sparse tensors")
    for tensor in graph.initializer:
        _tensor(tensor, kind)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        held = value.type.tensor_type
        if held.elem_type in REAL:
            held.elem_type = kind
    _nodes(graph.node, kind)


def _nodes(nodes: Any, kind: int) -> None:
    made = [new for node in nodes for new in _node(node, kind)]
    del nodes[:]
    nodes.extend(made)


def _node(node: onnx.NodeProto, kind: int) -> Iterator[onnx.NodeProto]:
    """The node in the new precision, and before it what casts the scales of a Resize back."""
    if node.op_type.startswith(_ROUNDS):
        raise Unfit(f"{node.op_type} rounds, and the bound is about the function without that rounding")
    for attribute in node.attribute:
        _attribute(node, attribute, kind)
    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = numpy_helper.from_array(np.zeros(1, NUMPY[kind]))
        node.attribute.append(helper.make_attribute("value", zero))
    slot = _SCALES.get(node.op_type, len(node.input))
    if kind == TensorProto.FLOAT and slot < len(node.input) and node.input[slot]:
        name = f"{node.input[slot]}/as float32/{node.output[0]}"
        yield helper.make_node("Cast", [node.input[slot]], [name], to=TensorProto.FLOAT)
        node.input[slot] = name
    yield node


def _attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto, kind: int) -> None:
    if attribute.HasField("t"):
        _tensor(attribute.t, kind)
    if attribute.HasField("g"):
        _graph(attribute.g, kind)
    for graph in attribute.graphs:
        _graph(graph, kind)
    for tensor in attribute.tensors:
        _tensor(tensor, kind)
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        raise Unfit("it holds sparse tensors")
    if node.op_type in ("Cast", "EyeLike") and attribute.name in ("to", "dtype"):
        if attribute.i in _NARROW:
            raise Unfit("it casts to float8, and the bound is about the function without that rounding")
        attribute.i = kind if attribute.i in REAL else attribute.i
    if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        numbers: Iterable[float] | float = attribute.f if attribute.name == "value_float" else attribute.floats
        array = np.asarray(numbers if isinstance(numbers, float) else list(numbers), NUMPY[kind])
        attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))


def _tensor(tensor: onnx.TensorProto, kind: int) -> None:
    if tensor.data_type in REAL and tensor.data_type != kind:
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(NUMPY[kind]), name))
