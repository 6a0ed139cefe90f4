"""The op table: which ops have a rule, under which condition, with what constant."""

from __future__ import annotations

from typing import Any

from snaudit.domains import KEPT, REMEDY, plain
from snaudit.rules import (
    affine,
    attention,
    merge,
    normalization,
    pointwise,
    pooling,
    quantized,
    recurrent,
    reduction,
    resampling,
    shape,
)
from snaudit.rules.interface import Row, Unbounded

ROWS: tuple[Row, ...] = (
    *affine.ROWS,
    *pointwise.ROWS,
    *normalization.ROWS,
    *pooling.ROWS,
    *shape.ROWS,
    *resampling.ROWS,
    *merge.ROWS,
    *reduction.ROWS,
    *recurrent.ROWS,
    *attention.ROWS,
    *quantized.ROWS,
)

_TABLE = {(row.domain, row.op): row for row in ROWS}


def lookup(domain: str, op: str) -> Row | None:
    """The row of an op, or None: an op without a row has no bound. "ai.onnx" is the default domain."""
    return _TABLE.get((plain(domain), op))


_EXPORT = "export the model in eval mode with torch.onnx.export, which writes it with other ops, and audit that file"


def without_row(node: Any, op: str, domain: str) -> Unbounded:
    """Why an op without a row has no bound, and what helps."""
    if not domain and op in ("Loop", "Scan"):
        return Unbounded(
            f"{op} repeats its body", "export with a fixed number of steps, unrolled", "control-flow"
        )
    name = f"{domain}.{op}" if domain else op
    if domain == "aten":
        reason = f"PyTorch's {op} is not translated: {node.doc_string or 'there is no translation of it'}"
        return Unbounded(reason, _EXPORT, "no-rule")
    remedy = node.metadata_props.get(REMEDY, "use standard ONNX ops, or write a rule (docs)")
    why = node.metadata_props.get(KEPT)
    return Unbounded(f"{name} {why}" if why else f"no rule for {name}", remedy, "no-rule")
