"""The op table: which ops have a rule, under which condition, with what constant."""

from __future__ import annotations

from snaudit.domains import plain
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
from snaudit.rules.interface import Row

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
