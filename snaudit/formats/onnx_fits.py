"""Sizes that a graph refuses: what inference passes over, and a runtime does not (a convolution's channels)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx

Shape = tuple[int | None, ...]

_SPREADS = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Where", "Min", "Max", "Sum", "Mean"))
_HANDED_ON = frozenset(("Identity", "Transpose", "Cast", "DequantizeLinear", "Reshape", "Unsqueeze", "Squeeze"))


def misfit(nodes: Iterable[onnx.NodeProto], shapes: Mapping[str, Shape]) -> str | None:
    """Why the first node whose inputs do not go together does not run on them; None where all may."""
    makers: dict[str, onnx.NodeProto] = {}
    for node in nodes:
        given = [shapes.get(name) if name else None for name in node.input]
        check = _CHECKS.get(node.op_type, _spread if node.op_type in _SPREADS else None)
        found = check(node, given) if check else None
        if found is not None:
            return f"{_called(node, makers)} {found}"
        makers.update((name, node) for name in node.output)
    return None


def shapes_of(graph: onnx.GraphProto) -> dict[str, Shape]:
    """{value: its sizes}, None for an open one, of all values of the graph whose rank is known."""
    found: dict[str, Shape] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _called(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The weight's name, behind what only turns it about; of an op without one, the op."""
    if node.op_type in _SPREADS or len(node.input) < 2:
        return f"{node.op_type} {node.name}".strip()
    name = node.input[1]
    while name in makers and makers[name].op_type in _HANDED_ON:
        name = makers[name].input[0]
    return f"{node.op_type} {node.name}".strip() if name in makers else name.removeprefix("held:")


def _differ(taken: int | None, given: int | None, what: str) -> str | None:
    if taken is None or given is None or taken == given:
        return None
    return f"takes {taken} {what}, and is given {given}"


def _number(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((one.i for one in node.attribute if one.name == name), default)


def _convolved(node: onnx.NodeProto, given: Sequence[Shape | None]) -> str | None:
    x, kernel = given[0], given[1]
    if x is None or kernel is None or len(kernel) < 2:
        return None
    if len(x) != len(kernel):
        return _differ(len(kernel), len(x), "axes")
    turned = node.op_type == "ConvTranspose"
    per_group = kernel[0] if turned else kernel[1]
    groups = 1 if turned else _number(node, "group", 1)
    return _differ(None if per_group is None else per_group * groups, x[1], "channels")


def _gemm(node: onnx.NodeProto, given: Sequence[Shape | None]) -> str | None:
    x, weight = given[0], given[1]
    if x is None or weight is None or len(weight) != 2:
        return None
    if len(x) != 2:
        return _differ(2, len(x), "axes")
    return _differ(weight[1 if _number(node, "transB", 0) else 0], x[0 if _number(node, "transA", 0) else 1], "features")


def _multiplied(node: onnx.NodeProto, given: Sequence[Shape | None]) -> str | None:
    x, weight = given[0], given[1]
    if not x or not weight:
        return None
    return _differ(weight[-2] if len(weight) > 1 else weight[0], x[-1], "features")


def _by_channel(node: onnx.NodeProto, given: Sequence[Shape | None]) -> str | None:
    x, scale = given[0], given[1]
    if x is None or scale is None or len(x) < 2 or len(scale) != 1:
        return None
    return _differ(scale[0], x[1], "channels")


def _by_row(node: onnx.NodeProto, given: Sequence[Shape | None]) -> str | None:
    x, scale = given[0], given[1]
    if x is None or scale is None or len(scale) > len(x):
        return None
    for taken, size in zip(scale[::-1], x[::-1]):
        if taken != 1 and (found := _differ(taken, size, "features")):
            return found
    return None


def _recurrent(node: onnx.NodeProto, given: Sequence[Shape | None]) -> str | None:
    x, weight = given[0], given[1]
    return None if x is None or weight is None or len(x) != 3 or len(weight) != 3 else _differ(weight[2], x[2], "features")


def _spread(node: onnx.NodeProto, given: Sequence[Shape | None]) -> str | None:
    """NumPy's broadcasting: sizes are equal, or one of them is 1."""
    known = [shape for shape in given if shape is not None]
    for at in range(1, max((len(shape) for shape in known), default=0) + 1):
        sizes = {shape[-at] for shape in known if len(shape) >= at} - {None, 1}
        if len(sizes) > 1:
            listed = " and ".join("x".join("?" if n is None else str(n) for n in shape) or "no axes" for shape in known)
            return f"is given {listed}, which do not go together"
    return None


_CHECKS: dict[str, Callable[[onnx.NodeProto, Sequence[Shape | None]], str | None]] = {
    "Conv": _convolved, "ConvTranspose": _convolved, "FusedConv": _convolved, "ConvInteger": _convolved,
    "Gemm": _gemm, "MatMul": _multiplied, "MatMulInteger": _multiplied,
    "BatchNormalization": _by_channel, "InstanceNormalization": _by_channel, "LayerNormalization": _by_row,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip
