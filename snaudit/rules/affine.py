"""Nodes with a weight matrix: Gemm, MatMul, Conv, ConvTranspose. The weight's norm arrives measured."""

from __future__ import annotations

import math

import numpy as np

from snaudit import joint
from snaudit.bound import Bound, scaled
from snaudit.broadcasting import dims, spread
from snaudit.gains import copies
from snaudit.rules.interface import Row, Step, Unbounded, Value, through

_PRODUCT = "multiplies two values that both depend on the network's input: its slope grows with either"
_BOUND_ONE = (
    "bound both factors (state an input range, put Sigmoid, Tanh or Clip before), or make one a constant"
)


def product(step: Step) -> Unbounded:
    """The refusal of a product of two varying values."""
    return Unbounded(f"{step.node.op_type} {_PRODUCT}", _BOUND_ONE, "product")


def _operator(step: Step) -> Bound:
    if step.operator is None:
        raise Unbounded(
            f"the weight of {step.node.op_type} was not measured",
            "store the weight as a floating-point constant of the model",
            "unmeasured-weight",
        )
    if not step.operator.bounded:
        reason = f"no finite bound of the weight's norm is known ({step.operator.method})"
        raise Unbounded(
            reason, "repair the weight if it holds NaN or Inf, else use --method auto", "bad-constant"
        )
    return step.operator


def _check_bias(step: Step) -> None:
    bias = None if 2 in step.varying else step.constant(2)
    if bias is not None and bias.dtype.kind == "f" and not np.isfinite(bias).all():
        raise Unbounded("the bias is not finite", "repair the weight (NaN or Inf)", "bad-constant")


def gemm(step: Step) -> tuple[Value, ...]:
    """|alpha|·‖W‖ times the varying factor's, plus |beta| times C's where C varies.

    Y = alpha·A·B + beta·C with A or B constant: each row (column) meets the same matrix, so the map
    is block diagonal with norm ‖W‖. A varying C is copied by broadcasting to Y's shape.
    Two varying factors have no constant.
    """
    _check_bias(step)
    parts = []
    if 0 in step.varying and 1 in step.varying:
        raise product(step)
    for index in (0, 1):
        if index in step.varying:
            factor = scaled(_operator(step), float(step.attribute("alpha", 1.0)))
            parts.append(through(step.inputs[index], factor))
    if 2 in step.varying:
        parts.append(_added(step))
    return (joint.add(parts, step.norm),)


def _added(step: Step) -> Value:
    found = spread(dims(step.node.inputs[2]), [dims(step.node.outputs[0])])
    if step.norm != "linf" and (found.count is None or found.meets):
        raise Unbounded("the shape of C is not known", "give C a fixed shape", "unknown-shape")
    gain = copies(found.count or 1, step.norm)
    return through(step.inputs[2], scaled(gain, float(step.attribute("beta", 1.0))))


def matmul(step: Step) -> tuple[Value, ...]:
    """‖W‖ times the varying factor's, times the copies that batch broadcasting makes.

    With a constant matrix the map is block diagonal with equal blocks. With a stack of matrices
    (E, k, n) each slice of the data meets one, so the norm is the largest slice's; where the data
    has fewer batch entries than the stack, it is first copied: √count (l2), count (l1), 1 (linf).
    Two varying factors (attention) have no constant without a range.
    """
    if len(step.varying) != 1:
        raise product(step)
    (index,) = step.varying
    constant = step.constant(1 - index)
    own = dims(step.node.inputs[index])
    stack = dims(step.node.inputs[1 - index]) if constant is None else constant.shape
    if stack is None:
        raise Unbounded("the weight's shape is not known", "store it as a constant", "unknown-shape")
    batch = tuple(stack[:-2])
    if math.prod(d for d in batch if isinstance(d, int)) == 1 and all(isinstance(d, int) for d in batch):
        return (through(step.inputs[index], _operator(step)),)
    found = spread(None if own is None else own[:-2], [batch])
    if step.norm != "linf" and (found.count is None or found.meets):
        raise Unbounded(
            "how the stack of matrices is applied is not known: the data's shape is missing",
            "give the data's batch axes fixed sizes",
            "unknown-shape",
        )
    copied = through(step.inputs[index], copies(found.count or 1, step.norm))
    return (through(copied, _operator(step)),)


def convolution(step: Step) -> tuple[Value, ...]:
    """‖T‖ times the input's, T the convolution on an unlimited grid, measured for every input size.

    Zero padding (also auto_pad's), cropping and output_padding embed and select: they never raise
    the norm. A constant bias drops out. The weight itself must not vary.
    """
    if 1 in step.varying or 2 in step.varying:
        raise (
            product(step)
            if 1 in step.varying
            else Unbounded(
                "the bias depends on the network's input", "add it in an Add node", "varying-parameter"
            )
        )
    _check_bias(step)
    return (through(step.data(), _operator(step)),)


def einsum(step: Step) -> tuple[Value, ...]:
    """None yet: the contraction's norm is not measured."""
    raise Unbounded("Einsum is not bounded yet", "export it as MatMul, Transpose and Reshape", "no-rule")


ROWS: tuple[Row, ...] = (
    Row("Gemm", gemm, "|alpha|·‖W‖", "block diagonal", "one constant factor"),
    Row("MatMul", matmul, "‖W‖, the largest of a stack", "block diagonal", "one constant factor"),
    Row(
        "Conv",
        convolution,
        "‖W‖ over all input sizes",
        "restriction of an infinite convolution",
        "constant weight",
    ),
    Row(
        "ConvTranspose",
        convolution,
        "‖W‖ over all input sizes",
        "adjoint of a convolution",
        "constant weight",
    ),
    Row("Einsum", einsum, "∞", "none yet"),
)
