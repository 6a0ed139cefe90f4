"""com.microsoft.nchwc: what onnxruntime makes of convolutions for one processor, channels in blocks.

There the channels of an activation are padded to a multiple of B, and the bytes of a kernel
(O, I, H, W) are laid out as (O/B, I/B, H, W, B, B), or as (O/B, I, H, W, B) where its input has fewer
channels than B or it is depthwise (onnxruntime/core/optimizer/nchwc_transformer.cc). B is 8 or 16, as
the processor that optimized the model has it, and the file does not say which. `block_of` tells from
the sizes where it can. Activations are written as plain (N, channels, H, W), with the padding where anything reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import onnx

from snaudit.lowered.interface import NCHWC, Call, Kept, Lowering
from snaudit.lowered.products import GEOMETRY, convolved

_BLOCKS = (8, 16)
_SETTLE = "save the optimized model at ORT_ENABLE_EXTENDED, or audit the model that was optimized"
_Shapes = Mapping[str, tuple[int | None, ...]]
_POOLS = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}


def block_of(nodes: Iterable[onnx.NodeProto], shapes: _Shapes) -> int | None:
    """The one block that all sizes of the graph agree with; None where there are two, or none.

    shapes: of the initializers.
    """
    nodes = list(nodes)
    makers = {name: node for node in nodes for name in node.output}
    held: set[str] = set()
    for node in nodes:  # a Concat, an Add of blocked values gives one, too
        if node.op_type != "ReorderOutput" and (node.domain == NCHWC or held.intersection(node.input)):
            held.update(node.output)
    found = [block for block in _BLOCKS if all(_agrees(node, makers, held, shapes, block) for node in nodes)]
    return found[0] if len(found) == 1 else None


def _agrees(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], held: set[str], shapes: _Shapes, block: int
) -> bool:
    if node.domain != NCHWC or not node.input:
        return True
    if node.op_type == "Conv" and len(node.input) > 1:
        outer, inner, *_ = (*(shapes.get(node.input[1]) or ()), 0, 0)
        if next((a.i for a in node.attribute if a.name == "group"), 1) > 1:
            return outer % block == 0
        whole = inner % block == 0 if inner >= block else True
        return outer % block == 0 and whole and (inner >= block) == (node.input[0] in held)
    if node.op_type == "ReorderOutput":
        maker = makers.get(node.input[0])
        while maker is not None and maker.domain == NCHWC and maker.op_type in _POOLS and maker.input:
            maker = makers.get(maker.input[0])
        if maker is None or maker.domain != NCHWC or maker.op_type != "Conv" or len(maker.input) < 2:
            return True
        channels = next((a.i for a in node.attribute if a.name == "channels"), 0)
        return -(-channels // block) * block == (shapes.get(maker.input[1]) or (0,))[0]
    return True


def kept_of(graph: onnx.GraphProto, shapes: _Shapes) -> dict[str, int]:
    """How many channels of a value are written where the rest, the padding, reaches no output.

    What a value's channels are read by, from the outputs on: as many as a ReorderOutput keeps; where channels stay
    apart (a residual, a pool), as many as of the result; all of them by anything else, a body's node among it.
    Nothing where nodes stand before what they read.
    """
    reads: dict[str, float] = {value.name: math.inf for value in graph.output}
    reads |= {name: math.inf for node in graph.node for name in _named_in_bodies(node)}
    makers = {name: node for node in graph.node for name in node.output if name}
    coming = set(makers)
    for node in graph.node:
        if not coming.isdisjoint(node.input):
            return {}
        coming -= set(node.output)
    for node in reversed(graph.node):
        apart = node.domain == NCHWC and (node.op_type in _POOLS or _channels(node, shapes) is not None)
        for index, name in enumerate(node.input):
            asked = math.inf
            if node.domain == NCHWC and node.op_type == "ReorderOutput":
                asked = next((a.i for a in node.attribute if a.name == "channels" and a.i > 0), math.inf)
            elif apart and index == (3 if node.op_type == "Conv" else 0):
                asked = reads.get(node.output[0], math.inf)
            reads[name] = max(reads.get(name, 0), asked)
    found: dict[str, int] = {}
    for name, node in makers.items():
        if name != node.output[0]:
            continue
        if reads.get(name, math.inf) < (_channels(node, shapes) or 0):
            found[name] = int(reads[name])
        elif node.domain == NCHWC and node.op_type in _POOLS and node.input and node.input[0] in found:
            found[name] = found[node.input[0]]
    return found


def _channels(node: onnx.NodeProto, shapes: _Shapes) -> int | None:
    """How many channels a convolution without groups writes; None for any other node."""
    if node.domain != NCHWC or node.op_type != "Conv" or len(node.input) < 2:
        return None
    if any(a.name == "group" and a.i != 1 for a in node.attribute):
        return None
    return (shapes.get(node.input[1]) or (None,))[0]


def _named_in_bodies(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from (*inner.input, *inner.output)
                yield from _named_in_bodies(inner)


def _first(call: Call, value: str, count: int, output: str = "", axis: int = 0) -> str:
    """The first `count` slices of a value along an axis."""
    ends = ("starts", [0]), ("ends", [count]), ("axes", [axis])
    if call.opset < 10:
        return call.emit("Slice", [value], "" if output else "kept", output, **dict(ends))
    constants = [call.constant(value, name) for name, value in ends]
    return call.emit("Slice", [value, *constants], "" if output else "kept", output)


def _block(call: Call) -> int:
    if call.block is None:
        raise Kept(
            "has a kernel stored in blocks of 8 or 16 channels, as the processor that optimized the model has it: "
            "the file does not say which",
            _SETTLE,
        )
    return call.block


def convolution(call: Call) -> None:
    """act(conv(X, W) + B + Z), the kernel's entries put back into ONNX's order."""
    call.only(*GEOMETRY, "activation", "activation_params")
    call.signature(4)
    block, shape, groups = _block(call), call.shape(1), call.attribute("group", 1)
    if len(shape) != 4 or None in shape:
        raise Kept("has a kernel that is not 4-D")
    outer, inner, high, wide = shape
    if outer % block:
        raise Kept(f"has a kernel whose {outer} channels are not in blocks of {block}")
    if groups == 1 and inner < block or inner == 1 and groups == outer:
        parts, order = [outer // block, inner, high, wide, block], [0, 4, 1, 2, 3]
    elif inner % block == 0:
        parts, order = [outer // block, inner // block, high, wide, block, block], [0, 5, 1, 4, 2, 3]
    else:
        raise Kept(f"has a kernel whose {inner} input channels are not in blocks of {block}")
    blocks = call.emit("Reshape", [call.needed(1), call.constant(parts, "blocks")], "blocked")
    plain = call.emit("Transpose", [blocks], "unblocked", perm=order)
    kernel = call.emit("Reshape", [plain, call.constant(list(shape), "kernel-shape")], "kernel")
    kept, residual = call.kept.get(call.output()), call.input(3)
    if kept is None:
        convolved(call, call.needed(0), kernel, call.output())
        return
    if residual and call.kept.get(residual) != kept:
        residual = _first(call, residual, kept, axis=1)
    bias = _first(call, call.input(2), kept) if call.input(2) else ""
    convolved(call, call.needed(0), _first(call, kernel, kept), call.output(), residual, bias)


def reorder_input(call: Call) -> None:
    """The input, its channels padded with zeros to whole blocks."""
    call.only("channels_last")
    call.signature(1)
    shape, last = call.shape(0), call.attribute("channels_last", 0)
    channels = shape[3 if last else 1] if len(shape) == 4 else None
    if channels is None:
        raise Kept("pads a number of channels that is not known")
    short = -channels % _block(call) if channels % max(_BLOCKS) else 0
    if short and call.opset < 11:
        raise Kept("needs opset 11 to be written out")
    value = call.needed(0)
    if last:
        value = call.emit("Transpose", [value], "" if short else "first", "" if short else call.output(), perm=[0, 3, 1, 2])
    if short:
        pads = call.constant([0, 0, 0, 0, 0, short, 0, 0], "pads")
        call.emit("Pad", [value, pads], "padded", call.output())
    elif not last:
        call.emit("Identity", [value], output=call.output())


def reorder_output(call: Call) -> None:
    """The first `channels` channels of the input."""
    call.only("channels", "channels_last")
    call.signature(1)
    channels, last = call.attribute("channels", 0), call.attribute("channels_last", 0)
    if not isinstance(channels, int) or channels < 1:
        raise Kept("keeps a number of channels that makes no sense")
    if call.kept.get(call.needed(0)) == channels:
        made = call.needed(0) if last else call.emit("Identity", [call.needed(0)], output=call.output())
    else:
        made = _first(call, call.needed(0), channels, "" if last else call.output(), axis=1)
    if last:
        call.emit("Transpose", [made], "last", call.output(), perm=[0, 2, 3, 1])


def _pooled(*names: str) -> Callable[[Call], None]:
    def write(call: Call) -> None:
        call.only(*names)
        call.signature(1)
        call.emit(call.node.op_type, [call.needed(0)], output=call.output(), **call.attributes(*names))

    write.__doc__ = "ONNX's op of the same name, channel by channel."
    return write


_WINDOW = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode")
_SETTLED = "the sizes settle the block (8 or 16)"
ROWS = (
    Lowering("Conv", convolution, "Reshape, Transpose, Conv, Add, activation", _SETTLED, NCHWC),
    Lowering("MaxPool", _pooled(*_WINDOW, "dilations", "storage_order"), "MaxPool", "", NCHWC),
    Lowering("AveragePool", _pooled(*_WINDOW, "count_include_pad"), "AveragePool", "", NCHWC),
    Lowering("GlobalMaxPool", _pooled(), "GlobalMaxPool", "", NCHWC),
    Lowering("GlobalAveragePool", _pooled(), "GlobalAveragePool", "", NCHWC),
    Lowering("ReorderInput", reorder_input, "Transpose, Pad", "known channels", NCHWC),
    Lowering("ReorderOutput", reorder_output, "Slice, Transpose", "", NCHWC),
)
