"""Layers of a graph: what its nodes do with constants, in the main graph and in all bodies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from snaudit import folding, quantized_nodes
from snaudit.attributes import attribute
from snaudit.contractions import Arranged, contraction_of
from snaudit.dequantized import Dequantized
from snaudit.domains import plain
from snaudit.forms import Folded, Form, Plain
from snaudit.layers import Extraction, Geometry, Layer
from snaudit.model import LeftOut, Tensor
from snaudit.places import place_of

_QUANTIZED = {
    "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm", "QAttention", "QLinearAdd",
    "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QEmbedLayerNormalization",
}  # fmt: skip

_NO_MATRIX = {
    "Add", "Sub", "Mul", "Div", "PRelu", "Where", "Concat", "Pad", "Shape", "Size", "Identity", "Reshape", "Gather",
    "Expand", "Tile", "Equal", "Less", "Greater", "Pow", "Max", "Min", "Mod", "And", "Or", "Slice", "Range", "Cast",
    "Squeeze", "Unsqueeze", "Transpose", "ConstantOfShape", "Resize", "Upsample", "Clip", "If", "BatchNormalization",
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
    "SimplifiedLayerNormalization", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Split", "TopK",
    "ReduceSum", "ReduceMean", "ReduceMax", "Dropout", "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN",
}  # fmt: skip
"""Ops whose other constants are no matrix that the network applies: added, multiplied entry by entry,
shapes, indices, biases. A constant of two axes or more in any other op may be one, and is named."""
_WEIGHT_SLOTS = {
    "MatMul": (0, 1), "Einsum": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip
_MOVES = {
    "Identity", "Reshape", "Transpose", "Expand", "Tile", "Gather", "GatherND", "Slice", "Split", "Concat", "Where",
    "Cast", "Squeeze", "Unsqueeze", "Flatten",
}  # fmt: skip
_INTEGER_WEIGHTS = "integer weights"


@dataclass(slots=True)
class _Reading:
    layers: dict[object, Layer] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    why_not: dict[str, str] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    behind: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)


def extract_from_graph(graph: ir.Model, tensors: Mapping[str, Tensor]) -> Extraction:
    """All layers that the nodes of a graph and of its bodies apply, in the graph's order."""
    reading = _Reading()
    for node in _nodes(graph):
        for layer in _layers_of(node, reading):
            _add(reading, layer, node)
    left_out = [
        _left_out(tensor, reading.why_not.get(name), reading.missed.get(name) or reading.behind.get(name))
        for name, tensor in tensors.items()
        if name not in reading.used or name in reading.missed
    ]
    left_out += [LeftOut(name, reason, missed=True) for name, reason in reading.attributes.items()]
    return Extraction(tuple(reading.layers.values()), tuple(left_out))


def _nodes(graph: ir.Model) -> Iterator[ir.Node]:
    for body in (graph.graph, *graph.functions.values()):
        yield from ir.traversal.RecursiveGraphIterator(body)


def _add(reading: _Reading, layer: Layer, node: ir.Node) -> None:
    """Count a further use where the same numbers are applied in the same way already."""
    form = layer.form
    handle = form.handle if isinstance(form, Folded) else form.tensors[0]
    inner = form.form if isinstance(form, Arranged) else form
    digest = inner.digest if isinstance(inner, Folded) else b""
    index = str(getattr(form, "index", ""))
    handles = form.tensors if isinstance(form, Dequantized) else (handle,)
    key = (*(t and t.place for t in handles), digest, index, layer.geometry, layer.flipped, layer.op, layer.shape, layer.gain)
    known = reading.layers.get(key)
    used_by = (node.name or node.outputs[0].name or node.op_type,)
    outputs = layer.outputs or (node.outputs[0],)
    place = None if layer.geometry is None else place_of(node, layer.shape, layer.geometry)
    places = () if layer.geometry is None else (place,) * len(outputs)
    if known is None:
        reading.names[layer.name] = count = reading.names.get(layer.name, 0) + 1
        name = layer.name if count == 1 else f"{layer.name}#{count}"  # one weight, applied in two ways
        reading.layers[key] = replace(layer, name=name, used_by=used_by, outputs=outputs, places=places)
    else:
        reading.layers[key] = replace(
            known,
            used_by=known.used_by + used_by,
            outputs=known.outputs + outputs,
            places=known.places + places,
        )


def _layers_of(node: ir.Node, reading: _Reading) -> Iterator[Layer]:
    """The layers of one node; for each other constant input, the reason why it is none."""
    op, own = node.op_type, set[str]()
    find = _FINDERS.get((plain(node.domain), op))
    if find is not None:
        for layer in find(node):
            own.update(tensor.name for tensor in layer.form.tensors)
            if isinstance(layer.form, Dequantized):
                layer = replace(layer, form=replace(layer.form, where=node.name or node.outputs[0].name or op))
            yield layer
    reading.used |= own
    folds = op == "DequantizeLinear" and folding.is_constant(node.outputs[0])  # whoever uses it, says for what
    _look_behind(node, reading)
    for value in node.inputs:
        if value is None or not folding.is_constant(value):
            continue
        for tensor in folding.roots(value):
            codes = op in _QUANTIZED and not tensor.is_real
            reason = f"{_INTEGER_WEIGHTS} of {op}" if codes else f"no weight matrix of {op}"
            reading.why_not[tensor.name] = reason
            bias = op in _QUANTIZED and bool(own) and tensor.is_real
            known = tensor.name in own or bias or folds or not (op in _QUANTIZED or plain(node.domain) or op not in _NO_MATRIX)
            if not known and max(_rank(value), len(tensor.shape)) > 1:
                reading.missed.setdefault(tensor.name, reason.replace("no weight", "perhaps a weight"))


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)


def _look_behind(node: ir.Node, reading: _Reading) -> None:
    """Note weights that reach a node through steps that depend on its input (an index, a shape, a
    modulation), so that no constant is left to measure; and weights that stand in attributes."""
    if plain(node.domain):
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.FLOATS and attribute.value and len(attribute.value) > 4:
                where = node.name or node.outputs[0].name or node.op_type
                reading.attributes[f"{where}.{name}"] = f"perhaps a weight matrix of {node.op_type}"
    slots = _WEIGHT_SLOTS.get(node.op_type) if not plain(node.domain) else None
    through = _MOVES if node.op_type == "MatMul" else _MOVES | {"Mul", "Div"}
    stack = [node.inputs[i] for i in slots or () if i < len(node.inputs)]
    seen: set[ir.Value] = set()
    while stack:
        value = stack.pop()
        maker = None if value is None or value in seen else value.producer()
        if maker is None or folding.is_constant(value) or plain(maker.domain) or maker.op_type not in through:
            continue
        seen.add(value)
        for part in maker.inputs:
            if part is not None and folding.is_constant(part):
                for tensor in folding.roots(part):
                    if tensor.is_real and len(tensor.shape) > 1:
                        text = f"a weight of {node.op_type} that {maker.op_type} picks or changes while it runs"
                        reading.behind.setdefault(tensor.name, text)
            else:
                stack.append(part)


def _left_out(tensor: Tensor, reason: str | None, missed: str | None) -> LeftOut:
    if missed is not None and tensor.dtype not in ("int64", "bool"):
        return LeftOut(tensor.name, missed, missed=True)
    if not tensor.is_real:
        narrow = tensor.dtype in ("int4", "uint4", "int8", "uint8") and len(tensor.shape) > 1
        return LeftOut(tensor.name, f"integers or booleans ({tensor.dtype})", missed=narrow)
    if len(tensor.shape) < 2:
        return LeftOut(tensor.name, "a vector or scalar (bias, norm scale, statistic)")
    return LeftOut(tensor.name, reason or "used by no node")


def _form(node: ir.Node, index: int) -> Form | None:
    """The form of a constant real input, or None."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or not folding.is_constant(value):
        return None
    tensor = value.meta.get("tensor")
    if isinstance(tensor, Tensor):
        return Plain(tensor) if tensor.is_real else None
    roots = folding.roots(value)
    if not roots:
        return None
    array = folding.evaluate(value)
    if array.dtype.kind in "iub":
        return None
    content = f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes()
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Folded(value, roots, tuple(array.shape), _handle(value), digest)


def _handle(value: ir.Value | None) -> Tensor | None:
    """The stored tensor in which a folded constant is linear, where one is: follow the ops that
    scale with one of their inputs (a transpose, a cast, a dequantizer's scale, parts put together)."""
    while value is not None:
        tensor = value.meta.get("tensor")
        if isinstance(tensor, Tensor):
            return tensor if tensor.is_real else None
        node = value.producer()
        if node is None or plain(node.domain):
            return None
        if node.op_type == "Concat":
            handles = [_handle(part) for part in node.inputs]
            same = len({None if handle is None else handle.place for handle in handles}) == 1
            return handles[0] if same else None
        if node.op_type not in _LINEAR_IN:
            return None
        value = node.inputs[_LINEAR_IN[node.op_type]]
        codes = folding.roots(node.inputs[0]) if node.op_type == "DequantizeLinear" else ()
        if any(tensor.is_real for tensor in codes):
            return None  # what quantizes them may divide by the same scale
    return None


_LINEAR_IN = {
    "Identity": 0, "Transpose": 0, "Reshape": 0, "Flatten": 0, "Squeeze": 0, "Unsqueeze": 0, "Cast": 0,
    "CastLike": 0, "Slice": 0, "Split": 0, "Gather": 0, "DequantizeLinear": 1,
}  # fmt: skip


def _name(form: Form) -> str:
    """The stored tensor's name where there is one real one, else that of the folded value."""
    real = [tensor for tensor in form.tensors if tensor.is_real and len(tensor.shape) > 1]
    if isinstance(form, Folded) and len(real) != 1:
        big = max(form.tensors, key=lambda tensor: tensor.size)
        return big.name
    return real[0].name if real else form.tensors[0].name


def _convolution(node: ir.Node) -> Iterator[Layer]:
    form = _form(node, 1)
    if form is None or len(form.shape) < 3:
        return
    axes = len(form.shape) - 2
    ones = [1] * axes
    transposed = node.op_type == "ConvTranspose"
    geometry = Geometry(
        tuple(attribute(node, "strides", ones)),
        tuple(attribute(node, "dilations", ones)),
        attribute(node, "group", 1),
        transposed,
    )
    numbers = (*geometry.stride, *geometry.dilation, geometry.groups)
    whole = all(isinstance(number, int) and number >= 1 for number in numbers)
    if not whole or len(geometry.stride) != axes or len(geometry.dilation) != axes or form.shape[0] % geometry.groups:
        return  # no runtime takes it; the weight is left out, the node becomes a gap
    kind = "ConvTranspose" if transposed else "Conv"
    yield Layer(_name(form), f"{kind}{axes}d", form, geometry)


def _gemm(node: ir.Node) -> Iterator[Layer]:
    gain = abs(float(attribute(node, "alpha", 1.0)))
    right, left = _form(node, 1), _form(node, 0)
    if right is not None and left is None and len(right.shape) == 2:
        flipped = not attribute(node, "transB", 0)
        yield Layer(_name(right), "Linear", right, flipped=flipped, gain=gain)
    elif left is not None and right is None and len(left.shape) == 2:
        flipped = bool(attribute(node, "transA", 0))
        yield Layer(_name(left), "Linear", left, flipped=flipped, gain=gain)


def _matmul(node: ir.Node) -> Iterator[Layer]:
    right, left = _form(node, 1), _form(node, 0)
    if (right is None) == (left is None):
        return
    form, flipped = (right, True) if right is not None else (left, False)
    if form is None or not form.shape:
        return
    flipped = flipped or len(form.shape) == 1  # a vector is one row, on whichever side
    op = "Linear" if len(form.shape) <= 2 else "Experts"
    yield Layer(_name(form), op, form, flipped=flipped, stacked=len(form.shape) > 2)


def _gather(node: ir.Node) -> Iterator[Layer]:
    form = _form(node, 0)
    indices = node.inputs[1]
    if form is None or len(form.shape) != 2 or attribute(node, "axis", 0) != 0:
        return
    if indices is None or folding.is_constant(indices):
        return
    yield Layer(_name(form), "Embedding", form, flipped=True, in_chain=False)


def _recurrent(node: ir.Node) -> Iterator[Layer]:
    """W [directions, gates·hidden, inputs] and R [directions, gates·hidden, hidden], each direction
    a matrix of its own."""
    for index, letter in ((1, "W"), (2, "R")):
        form = _form(node, index)
        if form is None or len(form.shape) != 3:
            continue
        for direction in range(form.shape[0]):
            part: Form
            if isinstance(form, Plain):
                part = replace(form, index=(direction,))
            elif isinstance(form, Folded):
                part = replace(form, index=(direction,), shape=form.shape[1:])
            label = f"[{letter}]" if form.shape[0] == 1 else f"[{letter}{direction}]"
            yield Layer(f"{_name(form)}{label}", node.op_type, part)


def _packed_attention(node: ir.Node) -> Iterator[Layer]:
    """com.microsoft.Attention: weights [inputs, 3·hidden], q | k | v side by side."""
    form = _form(node, 1)
    if not isinstance(form, Plain) or len(form.shape) != 2:
        return
    sizes = attribute(node, "qkv_hidden_sizes", None)
    width = form.shape[1] // 3
    sizes = list(sizes) if sizes else [width] * 3
    start = 0
    for letter, size in zip("qkv", sizes, strict=False):
        part = replace(form, index=(slice(None), slice(start, start + size)))
        start += size
        yield Layer(f"{_name(form)}[{letter}]", "Attention", part, flipped=True)


def _einsum(node: ir.Node) -> Iterator[Layer]:
    """The one constant of an Einsum over one varying value."""
    varying = [i for i, v in enumerate(node.inputs) if v is not None and not folding.is_constant(v)]
    if len(varying) != 1 or len(node.inputs) != 2:
        return
    form = _form(node, 1 - varying[0])
    found = contraction_of(attribute(node, "equation", ""), 2, varying[0])
    if form is not None and found is not None and len(found.constant) == len(form.shape) > 0:
        yield Layer(_name(form), "Einsum", Arranged(form, found), stacked=True)


_FINDERS = {
    ("", "Einsum"): _einsum,
    ("", "Conv"): _convolution,
    ("", "ConvTranspose"): _convolution,
    ("com.microsoft", "FusedConv"): _convolution,
    ("", "Gemm"): _gemm,
    ("com.microsoft", "FusedGemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "Gather"): _gather,
    ("", "LSTM"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "RNN"): _recurrent,
    ("com.microsoft", "Attention"): _packed_attention,
    **quantized_nodes.FINDERS,
}
