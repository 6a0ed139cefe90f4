"""Normalizations with what onnxruntime fuses into them: a residual and a bias before, embeddings, SiLU behind."""

from __future__ import annotations

from snaudit.lowered.interface import Call, Kept, Lowering

_EPSILON = 1e-12
"""The default of onnxruntime's transformer ops; GroupNorm has its own."""


def _summed(call: Call, *indices: int) -> str:
    """The sum of the inputs that are there, the last one under the name of output 3 where that is in use."""
    there = [call.needed(0), *(call.input(i) for i in indices if call.input(i))]
    made = there[0]
    for number, term in enumerate(there[1:], 2):
        part = "sum" if number == len(there) else f"sum{number - 1}"
        made = call.emit("Add", [made, term], part, call.output(3) if number == len(there) else "")
    return made


def skip_layer_normalization(call: Call) -> None:
    """LayerNormalization(input + skip + bias) over the last axis; the sum is output 3."""
    call.only("epsilon")
    call.signature(5, (0, 3))
    call.needed(1)
    total = _summed(call, 1, 4)
    inputs = [total, call.needed(2), call.input(3)]
    epsilon = float(call.attribute("epsilon", _EPSILON))
    call.emit("LayerNormalization", inputs, output=call.output(), axis=-1, epsilon=epsilon)


def skip_simplified(call: Call) -> None:
    """SimplifiedLayerNormalization(input + skip + bias) over the last axis; the sum is output 3."""
    call.only("epsilon")
    call.signature(4, (0, 3))
    call.needed(1)
    inputs = [_summed(call, 1, 3), call.needed(2)]
    epsilon = float(call.attribute("epsilon", _EPSILON))
    call.emit("SimplifiedLayerNormalization", inputs, output=call.output(), axis=-1, epsilon=epsilon)


def embed_layer_normalization(call: Call) -> None:
    """LayerNormalization of the sum of the rows that the tokens, positions and segments pick; output 1 counts
    the mask, output 2 is the sum."""
    call.only("epsilon", "mask_index_type")
    call.signature(9, (0, 1, 2))
    if call.opset < 10:
        raise Kept("needs opset 10 to be written out")
    words = call.emit("Gather", [call.needed(2), call.needed(0)], "word", axis=0)
    if call.input(8):
        positions = call.emit("Gather", [call.needed(3), call.input(8)], "position", axis=0)
    else:
        shape = call.emit("Shape", [call.needed(0)], "shape")
        length = call.emit("Gather", [shape, call.constant([1], "axis")], "length", axis=0)
        first = call.constant([0], "first")
        positions = call.emit("Slice", [call.needed(3), first, length, first], "position")
    segmented = bool(call.input(1) and call.input(4))
    if call.input(1) and not call.input(4):
        raise Kept("has segments and no embedding of them")
    total = call.emit("Add", [words, positions], "sum1" if segmented else "sum", "" if segmented else call.output(2))
    if segmented:
        rows = call.emit("Gather", [call.needed(4), call.input(1)], "segment", axis=0)
        total = call.emit("Add", [total, rows], "sum", call.output(2))
    inputs = [total, call.needed(5), call.needed(6)]
    epsilon = float(call.attribute("epsilon", _EPSILON))
    call.emit("LayerNormalization", inputs, output=call.output(), axis=-1, epsilon=epsilon)
    if call.output(1):
        _counted(call)


def _counted(call: Call) -> None:
    """Output 1: how many words each row of the mask keeps."""
    mask = call.input(7)
    if not mask:
        raise Kept("gives an index of a mask that it is not given")
    if call.opset < 13:
        call.emit("ReduceSum", [mask], "mask", call.output(1), axes=[1], keepdims=0)
    else:
        call.emit("ReduceSum", [mask, call.constant([1], "row")], "mask", call.output(1), keepdims=0)


def group_norm(call: Call) -> None:
    """GroupNorm of NHWC or NCHW data, then SiLU where asked for: an InstanceNormalization of the groups."""
    call.only("epsilon", "groups", "activation", "channels_last")
    call.signature(3)
    _grouped(call, call.needed(0), call.output())


def skip_group_norm(call: Call) -> None:
    """GroupNorm(X + skip + bias); the sum is output 1. Only for a 4-D skip."""
    call.only("epsilon", "groups", "activation", "channels_last")
    call.signature(5, (0, 1))
    if call.rank(3) != 4:
        raise Kept("adds a skip that is not 4-D")
    bias = call.input(4)
    total = call.emit("Add", [call.needed(0), call.needed(3)], "sum1" if bias else "sum", "" if bias else call.output(1))
    if bias:
        if not call.attribute("channels_last", 1):
            bias = call.emit("Reshape", [bias, call.constant([-1, 1, 1], "column")], "bias")
        total = call.emit("Add", [total, bias], "sum", call.output(1))
    _grouped(call, total, call.output())


def _grouped(call: Call, value: str, output: str) -> None:
    """γ·(x − mean)/√(var + ε) + β over each group of channels.

    Reshaped to (N, groups, rest) it is an InstanceNormalization of unit scale.
    """
    groups, last = call.attribute("groups"), call.attribute("channels_last", 1)
    silu = call.attribute("activation", 0)
    if not isinstance(groups, int) or groups < 1 or silu not in (0, 1) or last not in (0, 1):
        raise Kept("has groups, a layout or an activation that make no sense")
    first = call.emit("Transpose", [value], "channels-first", perm=[0, 3, 1, 2]) if last else value
    shape = call.emit("Shape", [first], "shape")
    flat = call.emit("Reshape", [first, call.constant([0, groups, -1], "groups")], "grouped")
    one, zero = call.constant([1.0] * groups, "one"), call.constant([0.0] * groups, "zero")
    epsilon = float(call.attribute("epsilon", 1e-5))
    normal = call.emit("InstanceNormalization", [flat, one, zero], epsilon=epsilon)
    back = call.emit("Reshape", [normal, shape], "ungrouped")
    column = call.constant([-1, 1, 1], "column")
    scale, shift = (call.emit("Reshape", [call.needed(i), column], name) for i, name in ((1, "gamma"), (2, "beta")))
    made = call.emit("Mul", [back, scale], "scaled")
    made = call.emit("Add", [made, shift], "shifted", "" if last or silu else output)
    if silu:
        made = call.emit("QuickGelu", [made], "SiLU", "" if last else output, "com.microsoft", alpha=1.0)
    if last:
        call.emit("Transpose", [made], "channels-last", output, perm=[0, 2, 3, 1])


ROWS = (
    Lowering("SkipLayerNormalization", skip_layer_normalization, "Add, LayerNormalization"),
    Lowering("SkipSimplifiedLayerNormalization", skip_simplified, "Add, SimplifiedLayerNormalization"),
    Lowering("EmbedLayerNormalization", embed_layer_normalization, "Gather, Add, LayerNormalization",
             "the bound starts at the rows that the tokens pick"),
    Lowering("GroupNorm", group_norm, "Reshape, InstanceNormalization, Mul, Add, SiLU"),
    Lowering("SkipGroupNorm", skip_group_norm, "Add, and as GroupNorm", "a 4-D skip of known rank"),
)  # fmt: skip
