"""Report formats: the table of what exists."""

from __future__ import annotations

from snaudit.report.csvreport import CSV
from snaudit.report.interface import Renderer, View
from snaudit.report.jsonreport import JSON
from snaudit.report.table import TABLE

__all__ = ["REPORTS", "Renderer", "View"]

REPORTS: dict[str, Renderer] = {renderer.name: renderer for renderer in (TABLE, JSON, CSV)}
