"""CSV: one row for each layer, for spreadsheets. A name never becomes a formula."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from snaudit.names import printable
from snaudit.report.interface import Renderer, View, by_order

if TYPE_CHECKING:
    from snaudit.findings import LayerResult, Report

COLUMNS = (
    "name", "op", "shape", "dtype", "rows", "columns", "uses",
    "sigma_lower", "sigma_upper", "sigma_grade", "sigma_method",
    "power_estimate", "power_iterations", "power_converged",
    "norm_lower", "norm_upper", "norm_bounded", "norm_grade", "norm_method",
    "frobenius", "stable_rank", "condition",
)  # fmt: skip


def render(report: Report, view: View) -> str:
    """A header and a row for each layer; a number that is not finite is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(layer) for layer in by_order(report, view.order))
    return out.getvalue()


def _row(layer: LayerResult) -> list[str]:
    sigma, norm, power = layer.sigma, layer.norm, layer.power
    return [
        text(layer.name), text(layer.op), "x".join(map(str, layer.shape)), text(layer.dtype),
        str(layer.matrix[0]), str(layer.matrix[1]), str(layer.uses),
        _number(sigma.lower), _number(sigma.upper), sigma.grade.name.lower(), text(sigma.method),
        _number(power.estimate if power else None), str(power.iterations) if power else "",
        _flag(power.converged) if power else "",
        _number(norm.lower), _number(norm.upper), _flag(norm.bounded), norm.grade.name.lower(),
        text(norm.method),
        _number(layer.frobenius), _number(layer.stable_rank), _number(layer.condition),
    ]  # fmt: skip


def text(raw: str) -> str:
    """A cell that a spreadsheet takes for text: = + - @ tab CR at its start get an apostrophe."""
    return ("'" if raw.lstrip(" ")[:1] in tuple("=+-@\t\r\n＝＋－＠") else "") + printable(raw)


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def _flag(value: bool) -> str:
    return "true" if value else "false"


CSV = Renderer("csv", render)
