"""The ops that the witness can differentiate, as torch computes them.

No bound rests on them: what is found with their gradients is a pair of inputs, and that is run by other
code. A row that is wrong costs tightness. Only the witness's child imports this, and only where torch is.
"""

from __future__ import annotations

from snaudit.differentiable import moves, pointwise, recurrent, sums, windows
from snaudit.differentiable.interface import Row

ROWS: dict[str, Row] = {**moves.ROWS, **pointwise.ROWS, **recurrent.ROWS, **sums.ROWS, **windows.ROWS}
"""Ops of ONNX's own domain, and those of onnxruntime's in `MICROSOFT`."""

MICROSOFT = frozenset(
    {"BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "QuickGelu", "SimplifiedLayerNormalization",
     "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)  # fmt: skip
"""Ops of onnxruntime's domain whose row means the same."""
