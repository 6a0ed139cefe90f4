"""Shapes on a walk: which values' shapes may depend on the numbers in the network's input."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from snaudit.findings import Gap
from snaudit.walk import Walk, value_of

_SHAPED_BY_SHAPES = frozenset(
    {"product", "needs-range", "recurrent", "unknown-shape", "bad-constant", "no-constant", "unmeasured-weight",
     "unknown-constant"}
)
"""Gaps of ops whose result's shape follows from shapes alone, whatever keeps them from a constant."""
_SIZED_BY = {
    "Resize": 1, "Upsample": 1, "Reshape": 1, "Expand": 1, "Tile": 1, "Pad": 1, "Slice": 1, "Split": 1, "TopK": 1,
    "Compress": 1, "OneHot": 1, "CenterCropPad": 1, "Squeeze": 1, "Unsqueeze": 1, "ConstantOfShape": 0, "Range": 0,
}  # fmt: skip
"""From which input on the numbers of these ops' inputs decide the shape of their result."""


def note_shapes(walk: Walk, node: ir.Node, reads: Iterable[ir.Value], gap: Gap | None) -> None:
    """Note which outputs' shapes may depend on the numbers in the network's input."""
    known = all(o.shape is not None and all(isinstance(d, int) for d in o.shape) for o in node.outputs)
    steps = any(value_of(walk, o).jumps for o in node.outputs)
    slots = node.inputs[_SIZED_BY[node.op_type]:] if node.op_type in _SIZED_BY else ()
    sized = any(v is not None and not value_of(walk, v).is_constant for v in slots)
    opaque = sized or (gap is not None and gap.code not in _SHAPED_BY_SHAPES)
    if not known and (steps or opaque or any(value in walk.shaped_by_data for value in reads)):
        walk.shaped_by_data.update(node.outputs)
