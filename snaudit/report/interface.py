"""What a report format must provide, and what it is told about the place where its text goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from snaudit.findings import Report

Order = Literal["sigma", "order"]
Rows = Literal["none", "folded", "all"]


@dataclass(frozen=True, slots=True)
class View:
    """How the sink wants a text: its width and colour are the sink's business, not the report's.

    unicode: whether the sink can write more than ASCII. terminal: whether a person reads it there: then
    findings and summaries are wrapped, too, which elsewhere keep to one line. order: layers by largest σ, or as they
    stand in the file. rows: which layers a table lists; "folded" draws runs of alike layers together.
    """

    width: int = 100
    colour: bool = False
    unicode: bool = True
    terminal: bool = False
    order: Order = "sigma"
    rows: Rows = "folded"


@dataclass(frozen=True, slots=True)
class Renderer:
    """A report format: render(report, view) → the whole text, a pure function of the two."""

    name: str
    render: Callable[[Report, View], str]


def by_order(report: Report, order: Order) -> tuple:
    """The report's layers in the order asked for; those without a finite σ come first by size."""
    if order == "order":
        return report.layers
    return tuple(sorted(report.layers, key=lambda layer: -layer.sigma.upper))
