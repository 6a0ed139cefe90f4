"""The graph's affine ops as matrices: what each does to the coefficients of its input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from snaudit.linearized import moves, products, sums
from snaudit.linearized.interface import LARGEST, Coefficients, Node, Op, Refused

__all__ = ["LARGEST", "OPS", "Coefficients", "apply"]


OPS: dict[str, Op] = {
    "Add": sums.sum,
    "AveragePool": products.average_pool,
    "BatchNormalization": sums.normalized,
    "Cast": sums.cast,
    "Concat": moves.joined,
    "Conv": products.convolution,
    "Div": sums.factor,
    "Dropout": sums.dropped,
    "Flatten": moves.reshaped,
    "Gather": moves.gathered,
    "Gemm": products.gemm,
    "GlobalAveragePool": products.global_average,
    "Identity": sums.same,
    "MatMul": products.matmul,
    "Mul": sums.factor,
    "Neg": sums.negated,
    "Pad": moves.padded,
    "ReduceMean": products.reduction,
    "ReduceSum": products.reduction,
    "Reshape": moves.reshaped,
    "Slice": moves.sliced,
    "Split": moves.split,
    "Squeeze": moves.reshaped,
    "Sub": sums.sum,
    "Sum": sums.sum,
    "Transpose": moves.transposed,
    "Unsqueeze": moves.reshaped,
}
"""Affine ops of ONNX's own domain."""


def apply(node: ir.Node, data: dict[int, Coefficients], opset: int) -> tuple[Coefficients | None, ...]:
    """The coefficients of a node's outputs; None for each that is not understood."""
    op = OPS.get(node.op_type)
    nothing = (None,) * len(node.outputs)
    if op is None or opset < 7 or any(a.is_ref() for a in node.attributes.values()):
        return nothing
    try:
        with np.errstate(all="ignore"):
            found = op(Node(node, data, opset))
    except (Refused, ValueError, LookupError, TypeError, ArithmeticError, AttributeError):
        return nothing
    results = tuple(found) if isinstance(found, (list, tuple)) else (found,)
    results += nothing[len(results) :]
    return tuple(_checked(r, output) for r, output in zip(results, node.outputs, strict=False))


def _checked(found: Coefficients | None, output: ir.Value) -> Coefficients | None:
    """None where the graph says another shape, or numbers left the floats."""
    if found is None or not 0 < found.size <= LARGEST:
        return None
    if output.shape is not None:
        told = [d if isinstance(d, int) else None for d in output.shape]
        skipped = 1 if found.batched else 0
        if len(told) != len(found.shape):
            return None
        pairs = list(zip(told, found.shape, strict=True))[skipped:]
        if any(d is not None and d != n for d, n in pairs):
            return None
    for matrix in found.blocks.values():
        if not np.isfinite(matrix.centre).all() or not (matrix.radius is None or np.isfinite(matrix.radius).all()):
            return None
    return found
