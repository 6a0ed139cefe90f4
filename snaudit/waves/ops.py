"""The graph's affine ops as maps on tori: what each makes of the value that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from snaudit.linearized.interface import Node, Refused
from snaudit.waves import affine, building, moves
from snaudit.waves.seen import Seen

Op = Callable[[Node], Seen | Sequence[Seen | None]]

OPS: dict[str, Op] = {
    "Add": affine.sum,
    "AveragePool": affine.average_pool,
    "BatchNormalization": affine.normalized,
    "Cast": affine.cast,
    "Concat": moves.joined,
    "Conv": affine.convolution,
    "Div": affine.factor,
    "Dropout": affine.dropped,
    "Flatten": moves.reshaped,
    "Gather": moves.gathered,
    "Gemm": affine.dense,
    "GlobalAveragePool": affine.global_average,
    "Identity": affine.same,
    "MatMul": affine.dense,
    "Mul": affine.factor,
    "Neg": affine.negated,
    "Pad": moves.padded,
    "ReduceMean": affine.reduction,
    "ReduceSum": affine.reduction,
    "Reshape": moves.reshaped,
    "Slice": moves.sliced,
    "Split": moves.split,
    "Squeeze": moves.reshaped,
    "Sub": affine.sum,
    "Sum": affine.sum,
    "Transpose": moves.transposed,
    "Unsqueeze": moves.reshaped,
}
"""Affine ops of ONNX's own domain."""


def apply(node: ir.Node, data: dict[int, Seen], opset: int) -> tuple[Seen | None, ...]:
    """What a node's outputs are; None for each that is not understood."""
    op, nothing = OPS.get(node.op_type), (None,) * len(node.outputs)
    if op is None or opset < 7 or any(a.is_ref() for a in node.attributes.values()):
        return nothing
    try:
        with np.errstate(all="ignore"):
            found = op(Node(node, data, opset))
    except (Refused, building.Refused, ValueError, LookupError, TypeError, ArithmeticError, AttributeError):
        return nothing
    results = tuple(found) if isinstance(found, list) else (found,)
    results += nothing[len(results) :]
    return tuple(_checked(r, output) for r, output in zip(results, node.outputs, strict=False))


def _checked(found: Seen | None, output: ir.Value) -> Seen | None:
    """None where the graph says another shape."""
    if found is None or output.shape is None:
        return found
    told = [d if isinstance(d, int) else None for d in output.shape]
    if len(told) != len(found.shape):
        return None
    return None if any(d is not None and d != n for d, n in zip(told[1:], found.shape[1:], strict=True)) else found
