"""Layers of nodes with integer weights: each as the real matrix (q − z)·s that its codes stand for.

An integer product whose result is scaled further down (MatMulInteger → Cast → Mul) has its layer at the
value where the scale has been applied. Where that scale is not found, the weight stays unread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from snaudit import folding
from snaudit.attributes import attribute
from snaudit.dequantized import Dequantized
from snaudit.domains import is_default, plain
from snaudit.layers import Geometry, Layer
from snaudit.model import Tensor
from snaudit.packing import Packing

MICROSOFT = "com.microsoft"
_INTEGERS = ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True)
class Product:
    """An integer product together with the steps that scale its result.

    output  the value that is a product with the real matrix
    source  the real value that a dynamic quantizer made into the codes
    scale   the weight's scale
    """

    output: ir.Value
    source: ir.Value
    scale: ir.Value


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if 0 <= index < len(node.inputs) else None


def _is_made_by(value: ir.Value | None, op: str, index: int | None = None, domain: str = "") -> bool:
    node = None if value is None else value.producer()
    if node is None or node.op_type != op or (plain(node.domain) != domain):
        return False
    return index is None or value.index() == index


def _quantizer(node: ir.Node, data: int, zero: int, scale: ir.Value | None = None) -> ir.Node | None:
    """The dynamic quantizer that made input `data` of a node, if its zero point (and scale) come with it."""
    value, offset = _input(node, data), _input(node, zero)
    if not _is_made_by(value, "DynamicQuantizeLinear", 0) or not _is_made_by(offset, "DynamicQuantizeLinear", 2):
        return None
    made = value.producer()
    if offset.producer() is not made or (scale is not None and scale is not made.outputs[1]):
        return None
    return made


def product_of(node: ir.Node) -> Product | None:
    """The product that an integer node is part of, if its result is scaled by both scales and used for
    nothing else."""
    quantizer = _quantizer(node, 0, 2)
    value = node.outputs[0]
    if quantizer is None or not (cast := _only_use(value)) or cast.op_type != "Cast" or not is_default(cast):
        return None
    if ir.DataType(attribute(cast, "to", 0)) not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    value, weights, dynamic = cast.outputs[0], [], 0
    while dynamic < 1 or len(weights) < 1:
        use = _only_use(value)
        if use is None or use.op_type != "Mul" or not is_default(use):
            return None
        other = use.inputs[1] if use.inputs[0] is value else use.inputs[0]
        for leaf in _factors(other):
            if leaf is quantizer.outputs[1]:
                dynamic += 1
            elif leaf is not None and folding.is_constant(leaf):
                weights.append(leaf)
            else:
                return None
        value = use.outputs[0]
    if dynamic != 1 or len(weights) != 1:
        return None
    return Product(value, quantizer.inputs[0], weights[0])


def _factors(value: ir.Value | None) -> list[ir.Value | None]:
    if _is_made_by(value, "Mul") and not folding.is_constant(value):
        return list(value.producer().inputs)
    return [value]


def _only_use(value: ir.Value) -> ir.Node | None:
    uses = [use.node for use in value.uses()]
    return uses[0] if len(uses) == 1 and not value.is_graph_output() else None


def source_of(node: ir.Node) -> ir.Value | None:
    """The real value of which a node's first output is a linear function, but for a dynamic quantizer's
    rounding: where the node is the last of a `Product`, a product of codes that scales them itself, or a
    dequantizer right behind the quantizer. None for any other node."""
    key = (plain(node.domain), node.op_type)
    if key == (MICROSOFT, "MatMulIntegerToFloat"):
        made = _quantizer(node, 0, 4, _input(node, 2))
    elif key == ("", "DequantizeLinear"):
        made = _quantizer(node, 0, 2, _input(node, 1))
    elif key == ("", "Mul"):
        found = next((p for n in _integer_nodes(node) if (p := product_of(n)) is not None), None)
        return found.source if found is not None and found.output is node.outputs[0] else None
    else:
        return None
    return None if made is None else made.inputs[0]


def _integer_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The integer products from which multiplications and one cast lead to a node."""
    stack: list[tuple[ir.Node, int]] = [(node, 0)]
    while stack:
        top, depth = stack.pop()
        for maker in (value.producer() for value in top.inputs if value is not None):
            if maker is None or depth > 3 or not is_default(maker):
                continue
            if maker.op_type in ("MatMulInteger", "ConvInteger"):
                yield maker
            elif maker.op_type in ("Mul", "Cast"):
                stack.append((maker, depth + 1))


# Forms


def _shape(value: ir.Value) -> tuple[int, ...]:
    tensor = value.meta.get("tensor")
    return tensor.shape if isinstance(tensor, Tensor) else folding.evaluate(value).shape


def _grid(value: ir.Value | None, shape: tuple[int, ...], axis: int) -> tuple[int, ...] | None:
    """The shape in which a scale or zero point is aligned with the weight; None if it cannot be."""
    own = () if value is None else _shape(value)
    ones = (1,) * len(shape)
    if all(size == 1 for size in own):
        return ones
    if sum(size != 1 for size in own) == 1 and max(own) == shape[axis]:
        return (*ones[:axis], shape[axis], *ones[axis + 1 :])
    return None


def _form(
    codes: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None, axis: int, index: tuple[Any, ...] = ()
) -> Dequantized | None:
    """The form of integer codes with one scale, or one for each entry along `axis`."""
    values = [value for value in (codes, scale, zero) if value is not None]
    if codes is None or scale is None or not all(folding.is_constant(value) for value in values):
        return None
    stored = codes.meta.get("tensor")
    kind = stored.dtype if isinstance(stored, Tensor) else folding.evaluate(codes).dtype.name
    shape = _shape(codes)
    if kind not in _INTEGERS or not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    grid, zero_grid = _grid(scale, shape, axis), _grid(zero, shape, axis)
    if grid is None or zero_grid is None:
        return None
    tensors = _roots(values)
    if not tensors:
        return None
    return Dequantized(
        codes, scale, zero, tensors, shape, grid, zero_grid, handle=_stored(scale), index=index
    )


def _roots(values: list[ir.Value]) -> tuple[Tensor, ...]:
    found = [tensor for value in values for tensor in folding.roots(value)]
    return tuple({id(tensor): tensor for tensor in found}.values())


def _stored(value: ir.Value) -> Tensor | None:
    tensor = value.meta.get("tensor")
    return tensor if isinstance(tensor, Tensor) and tensor.is_real else None


# Finders


def _linear(codes: int, scale: int, zero: int) -> Callable[[ir.Node], Iterator[Layer]]:
    """A product of rows with an (inputs, outputs) matrix."""

    def find(node: ir.Node) -> Iterator[Layer]:
        form = _form(_input(node, codes), _input(node, scale), _input(node, zero), -1)
        if form is not None and len(form.shape) == 2:
            yield Layer(form.tensors[0].name, "Linear", form, flipped=True)

    return find


def _qlinear_matmul(node: ir.Node) -> Iterator[Layer]:
    found = list(_linear(3, 4, 5)(node))
    yield from found
    form = None if found else _form(_input(node, 0), _input(node, 1), _input(node, 2), -2)
    if form is not None and len(form.shape) == 2:
        yield Layer(form.tensors[0].name, "Linear", form)


def _qgemm(node: ir.Node) -> Iterator[Layer]:
    across = bool(attribute(node, "transB", 0))
    form = _form(_input(node, 3), _input(node, 4), _input(node, 5), 0 if across else -1)
    if form is not None and len(form.shape) == 2:
        gain = abs(float(attribute(node, "alpha", 1.0)))
        yield Layer(form.tensors[0].name, "Linear", form, flipped=not across, gain=gain)


def _convolution(node: ir.Node, form: Dequantized | None) -> Iterator[Layer]:
    if form is None or len(form.shape) < 3 or attribute(node, "channels_last", 0):
        return
    axes = len(form.shape) - 2
    ones = [1] * axes
    geometry = Geometry(
        tuple(attribute(node, "strides", ones)), tuple(attribute(node, "dilations", ones)),
        int(attribute(node, "group", 1)),
    )  # fmt: skip
    whole = min((*geometry.stride, *geometry.dilation, geometry.groups)) >= 1
    if whole and len(geometry.stride) == len(geometry.dilation) == axes and not form.shape[0] % geometry.groups:
        yield Layer(form.tensors[0].name, f"Conv{axes}d", form, geometry)


def _qlinear_convolution(node: ir.Node) -> Iterator[Layer]:
    yield from _convolution(node, _form(_input(node, 3), _input(node, 4), _input(node, 5), 0))


def _integer_product(node: ir.Node) -> Iterator[Layer]:
    """MatMulInteger, ConvInteger: the layer is at the value where the scales have been applied."""
    product = product_of(node)
    if product is None:
        return
    if node.op_type == "ConvInteger":
        found = _convolution(node, _form(_input(node, 1), product.scale, _input(node, 3), 0))
    else:
        form = _form(_input(node, 1), product.scale, _input(node, 3), -1)
        fits = form is not None and len(form.shape) == 2
        found = iter([Layer(form.tensors[0].name, "Linear", form, flipped=True)] if fits else [])
    for layer in found:
        yield replace(layer, outputs=(product.output,))


def _blockwise(node: ir.Node) -> Iterator[Layer]:
    """MatMulNBits: codes [outputs, blocks, bytes of a block], low bits first; 2^(bits − 1) is zero where no
    zero points are given."""
    columns, rows = int(attribute(node, "K", 0)), int(attribute(node, "N", 0))
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 0))
    values = [_input(node, index) for index in (1, 2, 3)]
    codes, scale, zero = values
    if _input(node, 4) is not None or bits not in (2, 4, 8) or min(columns, rows, block) < 1:
        return
    if any(v is not None and _stored_any(v) is None for v in values) or codes is None or scale is None:
        return
    count = -(-columns // block)
    grid = (rows, count)
    if _shape(codes) != (rows, count, block * bits // 8) or _size(scale) != rows * count:
        return
    packed = zero is not None and _stored_any(zero).dtype == "uint8"
    if zero is not None and _size(zero) != rows * (-(-count * bits // 8) if packed else count):
        return
    tensors = _roots([v for v in values if v is not None])
    form = Dequantized(
        _stored_any(codes), _stored_any(scale), None if zero is None else _stored_any(zero), tensors,
        (rows, columns), grid, grid, (1, block), None, Packing(bits, 2, middle=zero is None), _stored(scale),
    )  # fmt: skip
    yield Layer(tensors[0].name, "Linear", form)


def _size(value: ir.Value) -> int:
    tensor = _stored_any(value)
    return -1 if tensor is None else tensor.size


def _stored_any(value: ir.Value) -> Tensor | None:
    tensor = value.meta.get("tensor")
    return tensor if isinstance(tensor, Tensor) else None


def _packed_attention(node: ir.Node) -> Iterator[Layer]:
    """QAttention: weights [inputs, 3·hidden], q | k | v side by side."""
    codes = _input(node, 1)
    if codes is None or not folding.is_constant(codes) or len(_shape(codes)) != 2 or _shape(codes)[1] % 3:
        return
    width = _shape(codes)[1] // 3
    for part, letter in enumerate("qkv"):
        index = (slice(None), slice(part * width, (part + 1) * width))
        form = _form(codes, _input(node, 4), _input(node, 7), -1, index)
        if form is not None:
            yield Layer(f"{form.tensors[0].name}[{letter}]", "Attention", form, flipped=True)


def _recurrent(node: ir.Node) -> Iterator[Layer]:
    """DynamicQuantizeLSTM: W and R [directions, inputs, 4·hidden], scales [directions] or, for each column,
    [directions, 4·hidden]."""
    for letter, codes, scale, zero in (("W", 1, 8, 9), ("R", 2, 10, 11)):
        values = [_input(node, index) for index in (codes, scale, zero)]
        if any(value is None or not folding.is_constant(value) for value in values):
            continue
        shape = _shape(values[0])
        grids = [_by_direction(_shape(value), shape) for value in values[1:]]
        tensors = _roots([v for v in values if v is not None])
        if len(shape) != 3 or None in grids or not tensors:
            continue
        for direction in range(shape[0]):
            form = Dequantized(
                *values, tensors, shape, *grids, handle=_stored(values[1]), index=(direction,)
            )
            label = f"[{letter}]" if shape[0] == 1 else f"[{letter}{direction}]"
            yield Layer(f"{tensors[0].name}{label}", "LSTM", form, flipped=True)


def _by_direction(own: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if len(shape) != 3:
        return None
    if own == (shape[0],):
        return (shape[0], 1, 1)
    return (shape[0], 1, shape[2]) if own == (shape[0], shape[2]) else None


def picked_rows(node: ir.Node) -> ir.Node | None:
    """The Gather that picks the codes which a DequantizeLinear makes into numbers, moved about at most."""
    if node.op_type != "DequantizeLinear" or not is_default(node):
        return None
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    while maker is not None and is_default(maker) and maker.op_type in _MOVES and maker.inputs[0]:
        maker = maker.inputs[0].producer()
    found = maker is not None and maker.op_type == "Gather" and is_default(maker)
    return maker if found else None


_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")


def _dequantized_rows(node: ir.Node) -> Iterator[Layer]:
    """DequantizeLinear of rows that Gather picks from a table of codes: an embedding."""
    gather = picked_rows(node)
    if gather is None:
        return
    table, indices = gather.inputs[:2]
    if attribute(gather, "axis", 0) != 0 or indices is None or folding.is_constant(indices):
        return
    form = _form(table, _input(node, 1), _input(node, 2), -1)
    if form is not None and form.grid == form.zero_grid == (1, 1):
        yield Layer(form.tensors[0].name, "Embedding", form, flipped=True, in_chain=False)


def _embeddings(node: ir.Node) -> Iterator[Layer]:
    """QEmbedLayerNormalization: tables of words, positions and segments, each with its scale."""
    for codes, scale, zero in ((2, 8, 13), (3, 9, 14), (4, 10, 15)):
        form = _form(_input(node, codes), _input(node, scale), _input(node, zero), -1)
        if form is not None and len(form.shape) == 2:
            yield Layer(form.tensors[0].name, "Embedding", form, flipped=True, in_chain=False)


FINDERS: dict[tuple[str, str], Callable[[ir.Node], Iterator[Layer]]] = {
    ("", "MatMulInteger"): _integer_product,
    ("", "ConvInteger"): _integer_product,
    ("", "QLinearMatMul"): _qlinear_matmul,
    ("", "QLinearConv"): _qlinear_convolution,
    ("", "DequantizeLinear"): _dequantized_rows,
    (MICROSOFT, "QLinearConv"): _qlinear_convolution,
    (MICROSOFT, "DynamicQuantizeMatMul"): _linear(1, 2, 3),
    (MICROSOFT, "MatMulIntegerToFloat"): _linear(1, 3, 5),
    (MICROSOFT, "QGemm"): _qgemm,
    (MICROSOFT, "MatMulNBits"): _blockwise,
    (MICROSOFT, "QAttention"): _packed_attention,
    (MICROSOFT, "DynamicQuantizeLSTM"): _recurrent,
    (MICROSOFT, "QEmbedLayerNormalization"): _embeddings,
}
