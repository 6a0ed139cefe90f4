"""Activations with a bias in front, masks that are added before a softmax, and ops that ONNX has, too."""

from __future__ import annotations

from collections.abc import Callable

from snaudit.lowered.interface import MICROSOFT, Call, Kept, Lowering


def bias_gelu(call: Call) -> None:
    """Gelu(A + B), the one with erf."""
    call.only()
    call.signature(2)
    total = call.emit("Add", [call.needed(0), call.needed(1)], "sum")
    call.emit("Gelu", [total], output=call.output(), domain=MICROSOFT)


def fast_gelu(call: Call) -> None:
    """Gelu(X + bias), the one with tanh; without a bias it has a rule."""
    call.only()
    call.signature(2)
    if not call.input(1):
        raise Kept("")
    total = call.emit("Add", [call.needed(0), call.input(1)], "sum")
    call.emit("FastGelu", [total], output=call.output(), domain=MICROSOFT)


def bias_add(call: Call) -> None:
    """X + bias + skip."""
    call.only()
    call.signature(3)
    total = call.emit("Add", [call.needed(0), call.needed(1)], "sum")
    call.emit("Add", [total, call.needed(2)], output=call.output())


def bias_split_gelu(call: Call) -> None:
    """With X + bias in two halves of the last axis: left·Gelu(right)."""
    call.only()
    call.signature(2)
    total = call.emit("Add", [call.needed(0), call.needed(1)], "sum")
    left = call.emit("Split", [total], "left", axis=-1, **({"num_outputs": 2} if call.opset >= 18 else {}))
    right = call.fresh(f"{left}.right")
    call.made[-1].output.append(right)
    gelu = call.emit("Gelu", [right], "Gelu", domain=MICROSOFT)
    call.emit("Mul", [left, gelu], output=call.output())


def bias_softmax(call: Call) -> None:
    """Softmax(data + bias) over the last axis, the bias broadcast as Add does it."""
    call.only("axis", "is_inner_broadcast")
    call.signature(2)
    rank, axis = call.rank(0), int(call.attribute("axis", 1))
    if axis not in (-1, rank - 1):
        raise Kept("normalizes several axes at once")
    if call.rank(1) > rank or not _broadcasts(call.shape(0), call.shape(1)):
        raise Kept("adds a bias whose shape is broadcast otherwise than by Add, or not known")
    total = call.emit("Add", [call.needed(0), call.needed(1)], "sum")
    call.emit("Softmax", [total], output=call.output(), axis=rank - 1)


def _broadcasts(data: tuple[int | None, ...], bias: tuple[int | None, ...]) -> bool:
    pairs = zip(data[::-1], bias[::-1], strict=False)
    return all(b == 1 or (b is not None and a == b) for a, b in pairs)


def _renamed(inputs: int, opset: int, *names: str) -> Callable[[Call], None]:
    def write(call: Call) -> None:
        call.only(*names)
        call.signature(inputs)
        call.needed(0)
        if call.opset < opset:
            raise Kept(f"needs opset {opset} to be written as ONNX's own")
        call.emit(call.node.op_type, list(call.node.input), output=call.output(), **call.attributes(*names))

    write.__doc__ = "ONNX's op of the same name, which computes the same."
    return write


def expand_dims(call: Call) -> None:
    """Unsqueeze at one axis."""
    call.only()
    call.signature(2)
    if call.opset < 13:
        raise Kept("needs opset 13 to be written as Unsqueeze")
    wide = call.emit("Cast", [call.needed(1)], "wide", to=7)
    axis = call.emit("Reshape", [wide, call.constant([1], "one")], "axis")
    call.emit("Unsqueeze", [call.needed(0), axis], output=call.output())


ROWS = (
    Lowering("BiasGelu", bias_gelu, "Add, Gelu"),
    Lowering("FastGelu", fast_gelu, "Add, FastGelu", "with a bias"),
    Lowering("BiasAdd", bias_add, "Add, Add"),
    Lowering("BiasSplitGelu", bias_split_gelu, "Add, Split, Gelu, Mul"),
    Lowering("BiasSoftmax", bias_softmax, "Add, Softmax", "over the last axis, shapes known"),
    Lowering("Pad", _renamed(3, 11, "mode"), "Pad", "opset ≥ 11"),
    Lowering("Trilu", _renamed(2, 14, "upper"), "Trilu", "opset ≥ 14"),
    Lowering("GatherND", _renamed(2, 11), "GatherND", "opset ≥ 11"),
    Lowering("ExpandDims", expand_dims, "Unsqueeze", "opset ≥ 13"),
)
