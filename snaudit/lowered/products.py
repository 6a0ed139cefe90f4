"""Products with what onnxruntime fuses into them: transpositions, scales, biases, activations."""

from __future__ import annotations

from typing import Any

from snaudit.lowered.interface import Call, Kept, Lowering

_ALONE = {"Relu": (), "Sigmoid": (), "Tanh": (), "Softplus": (), "Softsign": ()}
_WITH = {"LeakyRelu": ("alpha",), "Elu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "ThresholdedRelu": ("alpha",)}
GEOMETRY = ("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad")


def activated(call: Call, value: str, name: str, given: tuple[float, ...] | None, output: str) -> None:
    """Write activation `name` of a value into `output`; `given`: all parameters that the node states."""
    if name == "Clip":
        if given is None or len(given) != 2 or not given[0] <= given[1]:
            raise Kept("clips between limits that make no sense")
        if call.opset < 11:
            call.emit("Clip", [value], "Clip", output, min=given[0], max=given[1])
        else:
            limits = [call.constant(limit, "limit") for limit in given]
            call.emit("Clip", [value, *limits], "Clip", output)
        return
    names = _ALONE.get(name, _WITH.get(name))
    if names is None:
        raise Kept(f"ends in an activation {name!r} that is not known")
    if names and (given is None or len(given) != len(names)):
        raise Kept(f"does not state the {' and '.join(names)} of its {name}")
    call.emit(name, [value], name, output, **dict(zip(names, given or (), strict=False)))


def _named(call: Call, prefix: str = "activation") -> tuple[float, ...] | None:
    """The parameters of FusedGemm's activation, each an attribute of its own."""
    wanted = _WITH.get(call.attribute(prefix, ""), ())
    given = [call.attribute(f"{prefix}_{name}") for name in wanted]
    return None if None in given else tuple(float(value) for value in given)


def fused_gemm(call: Call) -> None:
    """act(alpha·A·B + beta·C): a Gemm and its activation."""
    own = ("alpha", "beta", "transA", "transB")
    call.only(*own, "activation", "activation_alpha", "activation_beta", "activation_gamma")
    call.signature(3)
    inputs = [call.needed(0), call.needed(1), call.input(2)]
    if call.opset < 11:
        call.needed(2)
    name = call.attribute("activation", "")
    made = call.emit("Gemm", inputs, output="" if name else call.output(), **call.attributes(*own))
    if name:
        activated(call, made, name, _named(call), call.output())


def fused_convolution(call: Call) -> None:
    """act(conv(X, W) + B + Z): a Conv, an Add and its activation."""
    call.only(*GEOMETRY, "activation", "activation_params")
    call.signature(4)
    convolved(call, call.needed(0), call.needed(1), call.output())


def convolved(
    call: Call, value: str, kernel: str, output: str, residual: str | None = None, bias: str | None = None
) -> None:
    """Write the node's convolution of a value with its bias, residual and activation into `output`. residual, bias:
    what stands for the node's own."""
    name, added = call.attribute("activation", ""), call.input(3) if residual is None else residual
    last = "" if added or name else output
    made = call.emit("Conv", [value, kernel, call.input(2) if bias is None else bias], output=last, **call.attributes(*GEOMETRY))
    if added:
        made = call.emit("Add", [made, added], "Add", "" if name else output)
    if name:
        given = call.attribute("activation_params")
        activated(call, made, name, None if given is None else tuple(float(v) for v in given), output)


def _turned(call: Call, index: int, trans: bool, batch: bool) -> str:
    """An input with its axes in the order in which MatMul takes them.

    batch: the rows are in front of the batch, (rows, batch…, columns). Vectors are not transposed.
    """
    if not trans and not batch:
        return call.needed(index)
    rank = call.rank(index)
    order = [*range(1, rank - 1), 0, rank - 1] if batch and rank > 1 else list(range(rank))
    if trans and rank > 1:
        order[-2:] = order[:-3:-1]
    if order == list(range(rank)):
        return call.needed(index)
    return call.emit("Transpose", [call.needed(index)], "transposed", perm=order)


def _matmul(call: Call, output: str) -> str:
    """alpha·A·B. What onnxruntime does with transposed stacks and vectors together is its own affair."""
    flags = [name for name in _SIDES[:4] if call.attribute(name, 0)]
    ranks = {call.rank(i) for i in (0, 1)} if flags else {2}
    if min(ranks) < 2:
        raise Kept("transposes a stack of matrices beside a vector")
    if any("Batch" in name for name in flags) and (len(ranks) > 1 or min(ranks) < 3):
        raise Kept("moves a batch that one of its inputs does not have")
    sides = [
        _turned(call, index, bool(call.attribute(f"trans{side}", 0)), bool(call.attribute(f"transBatch{side}", 0)))
        for index, side in enumerate("AB")
    ]
    alpha = float(call.attribute("alpha", 1.0))
    made = call.emit("MatMul", sides, output="" if alpha != 1.0 else output)
    if alpha != 1.0:
        made = call.emit("Mul", [made, call.constant(alpha, "alpha")], "scaled", output)
    return made


_SIDES = ("transA", "transB", "transBatchA", "transBatchB", "alpha")


def fused_matmul(call: Call) -> None:
    """alpha·A·B, each side transposed on the way: Transpose, MatMul, Mul."""
    call.only(*_SIDES)
    call.signature(2)
    _matmul(call, call.output())


def fused_matmul_activation(call: Call) -> None:
    """act(alpha·A·B): as FusedMatMul, and its activation."""
    parameters = ("activation_alpha", "activation_beta", "activation_gamma", "activation_axis")
    call.only(*_SIDES, "activation", *parameters)
    call.signature(2)
    name: Any = call.attribute("activation", "")
    activated(call, _matmul(call, ""), name, _named(call), call.output())


_ACTIVATIONS = "activation of a known name with all its parameters"
ROWS = (
    Lowering("FusedConv", fused_convolution, "Conv, Add, activation", _ACTIVATIONS),
    Lowering("FusedGemm", fused_gemm, "Gemm, activation", _ACTIVATIONS),
    Lowering("FusedMatMul", fused_matmul, "Transpose, MatMul, Mul", "known ranks where an input is transposed; then no vector"),
    Lowering("TransposeMatMul", fused_matmul, "Transpose, MatMul, Mul", "known ranks where an input is transposed; then no vector"),
    Lowering("FusedMatMulActivation", fused_matmul_activation, "Transpose, MatMul, Mul, activation", _ACTIVATIONS),
)
