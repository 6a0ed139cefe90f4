"""Ops whose channels come last: between two transpositions they are ONNX's own."""

from __future__ import annotations

from collections.abc import Callable

from snaudit.lowered.interface import MICROSOFT, Call, Kept, Lowering
from snaudit.lowered.products import GEOMETRY, convolved

_POOLED = ("kernel_shape", "strides", "pads", "dilations", "auto_pad", "ceil_mode")


def _first(call: Call, value: str, rank: int) -> str:
    """A value (N, sizes…, C) as (N, C, sizes…)."""
    part = "channels-first" if value == call.input(0) else "residual"
    return call.emit("Transpose", [value], part, perm=[0, rank - 1, *range(1, rank - 1)])


def _last(call: Call, value: str, rank: int) -> None:
    """The node's output (N, sizes…, C) from a value (N, C, sizes…)."""
    call.emit("Transpose", [value], "channels-last", call.output(), perm=[0, *range(2, rank), 1])


def convolution(call: Call) -> None:
    """NhwcConv, NhwcFusedConv: a Conv of the transposed input, its residual transposed, too."""
    call.only(*GEOMETRY, "activation", "activation_params")
    call.signature(4 if call.node.op_type == "NhwcFusedConv" else 3)
    rank = call.rank(1)
    residual = _first(call, call.input(3), rank) if call.input(3) else ""
    kernel = call.needed(1)
    if call.node.op_type == "NhwcConv" and _channels_last(call):
        kernel = call.emit("Transpose", [kernel], "kernel", perm=[0, rank - 1, *range(1, rank - 1)])
    made = call.fresh(f"{call.output()}/first")
    convolved(call, _first(call, call.needed(0), rank), kernel, made, residual)
    _last(call, made, rank)


def _channels_last(call: Call) -> bool:
    """Whether NhwcConv's kernel is (M, sizes…, C/g), as onnxruntime's fusion writes it, and not (M, C/g, sizes…),
    as its schema says. The input's channels and kernel_shape tell; Kept where both fit or none does."""
    weight, data = call.shape(1), call.shape(0)
    channels, sizes = data[-1], call.attribute("kernel_shape")
    groups = call.attribute("group", 1)

    def fits(inner: int | None, taps: tuple[int | None, ...]) -> bool:
        return (channels is None or inner == channels // groups) and (sizes is None or list(taps) == list(sizes))

    first, last = fits(weight[1], weight[2:]), fits(weight[-1], weight[1:-1])
    if None in weight or first == last:
        raise Kept("has a kernel of one of two layouts, and its sizes do not tell which", "export it with Conv")
    return last


def max_pool(call: Call) -> None:
    """NhwcMaxPool: a MaxPool of the transposed input."""
    call.only(*_POOLED)
    call.signature(1)
    kernel = call.attribute("kernel_shape")
    if not isinstance(kernel, list) or not 1 <= len(kernel) <= 8:
        raise Kept("has no kernel_shape")
    rank = len(kernel) + 2
    made = call.emit("MaxPool", [_first(call, call.needed(0), rank)], **call.attributes(*_POOLED))
    _last(call, made, rank)


def _quantized(ranked: int | None, domain: str, inputs: int, *names: str) -> Callable[[Call], None]:
    def write(call: Call) -> None:
        call.only(*names, "channels_last")
        call.signature(inputs)
        if call.attribute("channels_last", 0) != 1:
            raise Kept("")
        rank = len(call.attribute("kernel_shape", ())) + 2 if ranked is None else call.rank(ranked)
        given = [_first(call, call.needed(0), rank), *call.node.input[1:]]
        made = call.emit(call.node.op_type, given, domain=domain, **call.attributes(*names))
        _last(call, made, rank)

    write.__doc__ = "The op with its channels in second place, between two transpositions."
    return write


_AVERAGED = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "count_include_pad")
ROWS = (
    Lowering("NhwcConv", convolution, "Transpose, Conv, Transpose"),
    Lowering("NhwcFusedConv", convolution, "Transpose, Conv, Add, activation, Transpose"),
    Lowering("NhwcMaxPool", max_pool, "Transpose, MaxPool, Transpose"),
    Lowering("QLinearConv", _quantized(3, "", 9, *GEOMETRY), "Transpose, QLinearConv, Transpose", "channels_last = 1"),
    Lowering("QLinearAveragePool", _quantized(None, MICROSOFT, 5, *_AVERAGED),
             "Transpose, QLinearAveragePool, Transpose", "channels_last = 1"),
    Lowering("QLinearGlobalAveragePool", _quantized(0, MICROSOFT, 5),
             "Transpose, QLinearGlobalAveragePool, Transpose", "channels_last = 1, known rank"),
)  # fmt: skip
