"""Numbers written in a program, out of their dtype's range or beyond measure: no translation, no warning, no crash."""

from __future__ import annotations

from typing import Any

import pytest

from snaudit.formats.aten_calls import Code, Untranslated, Writer
from snaudit.formats.aten_made import MADE

KINDS = {name: Code("as_scalar_type", name) for name in ("float16", "float32", "float64", "int64")}


@pytest.mark.parametrize(
    ("op", "given"),
    [
        ("tensor.default", ([1e300],)), ("tensor.default", ([2**63],)), ("tensor.default", ([1e10], KINDS["float16"])),
        ("tensor.default", ([float("inf")], KINDS["int64"])), ("tensor.default", ([10**400], KINDS["float32"])),
        ("tensor.default", ([1, 2.0],)), ("tensor.default", ("x",)),
        ("full.default", ([2], 1e300)), ("full.default", ([2], 10**19)), ("full.default", ([2], 10**400, KINDS["float32"])),
        ("linspace.default", (-1.7e308, 1.7e308, 3, KINDS["float64"])), ("linspace.default", (0.0, 1e5, 3, KINDS["float16"])),
        ("linspace.default", (float("nan"), 1.0, 3)), ("linspace.default", (0.0, 1.0, 1 << 40)),
        ("eye.default", (1 << 62,)), ("eye.default", (-1,)), ("eye.m", (1 << 20, 2)), ("logspace.default", (0.0, 1.0, 1 << 40)),
    ],
)  # fmt: skip
def test_what_no_dtype_holds_is_not_translated(op: str, given: tuple[Any, ...]) -> None:
    writer = Writer({}, {})
    writer.label, writer.outputs = "made", ("made",)
    with pytest.raises(Untranslated):
        MADE[op](writer, *given)
