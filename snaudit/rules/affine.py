"""Nodes with a weight matrix: Gemm, MatMul, Conv, ConvTranspose. The weight's norm arrives measured."""

from __future__ import annotations

import math

import numpy as np

from snaudit import joint
from snaudit.bound import Bound, at_most, root_up, scaled, times_up
from snaudit.broadcasting import dims, spread
from snaudit.contractions import contraction_of
from snaudit.gains import copies, sums
from snaudit.ranges import along, summed
from snaudit.rules.interface import Row, Step, Unbounded, Value, through, within

_PRODUCT = "multiplies two values that both depend on the network's input: its slope grows with either"
_BOUND_ONE = (
    "bound both factors (state an input range, put Sigmoid, Tanh or Clip before), or make one a constant"
)


def product(step: Step) -> Unbounded:
    """The refusal of a product of two varying values."""
    return Unbounded(f"{step.node.op_type} {_PRODUCT}", _BOUND_ONE, "product")


def _unmeasured(step: Step) -> Unbounded:
    return Unbounded(
        f"the weight of {step.node.op_type} was not measured",
        "store the weight as a floating-point constant of the model",
        "unmeasured-weight",
    )


def _operator(step: Step) -> Bound:
    if step.operator is None:
        raise _unmeasured(step)
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
    Two varying factors (attention), and a constant of which only a range is known: see `bilinear`.
    """
    if len(step.varying) != 1:
        return bilinear(step)
    (index,) = step.varying
    constant = step.constant(1 - index)
    if constant is None and step.operator is None and step.range(1 - index).known:
        return bilinear(step)
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


def bilinear(step: Step) -> tuple[Value, ...]:
    """sup‖B‖·L_A + sup‖A‖·L_B, A·B − A'·B' = (A − A')B + A'(B − B'), for factors of known range.

    l2 (Frobenius of what varies): ‖B_b‖₂ ≤ ‖B_b‖_F for the worst matrix of the batch, from its rows' or
    columns' norms. l1: the largest row sum of B's absolute values and column sum of A's; linf: the largest
    column sum of B's and row sum of A's. Batch axes that are broadcast are copied first. A factor that does not
    vary has no part of its own.
    """
    first, second = step.range(0), step.range(1)
    sizes = _matrix_sizes(step)
    refusal = product(step) if len(step.varying) > 1 else _unmeasured(step)
    if sizes is None:
        raise refusal
    rows, inner, columns = sizes
    if step.norm == "l2":
        left = min(_times_root(along(first, -1, inner), rows), _times_root(along(first, -2, rows), inner))
        right = min(_times_root(along(second, -1, columns), inner), _times_root(along(second, -2, inner), columns))
    elif step.norm == "l1":
        left, right = summed(first, -2, rows), summed(second, -1, columns)
    else:
        left, right = summed(first, -1, inner), summed(second, -2, inner)
    gains = (right, left)
    if not all(math.isfinite(gains[index]) for index in step.varying):
        raise refusal
    batches = [dims(value) for value in step.node.inputs[:2]]
    parts = []
    for index in step.varying:
        own, other = batches[index], batches[1 - index]
        found = spread(own[:-2], [other[:-2]])
        if step.norm != "linf" and (found.count is None or found.meets):
            raise Unbounded("how its batches are broadcast is not known", "give them fixed sizes", "unknown-shape")
        copied = through(step.inputs[index], copies(found.count or 1, step.norm))
        parts.append(through(copied, at_most(gains[index], "norm of the other factor")))
    used = (step.range(1 - index) for index in step.varying)
    return (within(joint.add(parts, step.norm), *used),)


def _matrix_sizes(step: Step) -> tuple[int | None, int | None, int | None] | None:
    """(n, k, m) of an n×k by k×m product, None for what is not known; None for vectors."""
    left, right = step.shape(0), step.shape(1)
    if left is None or right is None or min(len(left), len(right)) < 2:
        return None
    return left[-2], left[-1] if left[-1] is not None else right[-2], right[-1]


def _times_root(size: float, count: int | None) -> float:
    return math.inf if count is None else times_up(size, root_up(float(count)))


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
    """The largest norm of the stack of matrices that the constant is, times √Π of the sizes that are summed up.

    Along indices that only the data and the result have the map is block diagonal with equal blocks; along
    those that all three have, with one matrix each. An index of the data that appears twice selects a diagonal.
    l1: sums cost nothing, linf: their sizes. Attained. Two varying factors, or several constants, have no rule.
    """
    if len(step.varying) != 1:
        raise product(step)
    (index,) = step.varying
    equation = step.attribute("equation", "")
    found = contraction_of(equation, len(step.inputs), index)
    if found is None:
        raise Unbounded(f"Einsum {equation!r} has no rule", "export it as MatMul, Transpose and Reshape", "no-rule")
    sizes = dict(zip(reversed(found.data), reversed(step.shape(index) or ()), strict=False))
    own = step.shape(1 - index) if found.constant else ()
    shared = [(sizes.get(letter), size) for letter, size in zip(found.constant, own or (), strict=True) if letter in found.data]
    if any(a is None or a != b for a, b in shared) or any(sizes.get(letter) is None for letter in found.summed):
        raise Unbounded(f"the sizes of Einsum {equation!r} are not known", "give its input fixed sizes", "unknown-shape")
    value = through(step.inputs[index], sums(math.prod(sizes[letter] for letter in found.summed), step.norm))
    return (through(value, _operator(step)) if found.constant else value,)


ROWS: tuple[Row, ...] = (
    Row("Gemm", gemm, "|alpha|·‖W‖", "block diagonal", "one constant factor"),
    Row(
        "MatMul",
        matmul,
        "‖W‖, the largest of a stack; sup‖B‖·L_A + sup‖A‖·L_B",
        "block diagonal; product rule",
        "one constant factor, or ranges of both",
    ),
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
    Row("Einsum", einsum, "‖W‖, the largest of a stack; √k of k summed", "block diagonal", "one varying factor, at most one constant"),
)
