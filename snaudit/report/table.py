"""The report as a table for people: card, layers, coverage, network bound, gaps, findings, verdict."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from snaudit.numerals import DIGITS, at_least, at_most, near, short_of, size, upper_of
from snaudit.report.bounds import about_network, shares_of
from snaudit.report.interface import Renderer, View, by_order
from snaudit.report.page import Column, Page, Row
from snaudit.report.runs import Run, fold, wrapper_of

if TYPE_CHECKING:
    from snaudit.bound import Bound
    from snaudit.findings import Finding, Gap, LayerResult, LeftOut, Report

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_FEW = 3


def render(report: Report, view: View) -> str:
    """The whole report as lines of text that fit the view's width."""
    page = Page(view)
    wrapper = wrapper_of(layer.name for layer in report.layers)
    _card(page, report, wrapper)
    if view.rows != "none":
        page.blank()
        runs = fold(by_order(report, view.order), unfold=view.rows == "all")
        _layers(page, runs, wrapper, shares_of(report.network))
    page.blank()
    _coverage(page, report)
    _layer_notes(page, report.layers)
    brief = view.rows == "none"
    about_network(page, report, view.rows == "all", brief, not brief or verdict_of(report)[0] != "PASS")
    _gaps(page, report.gaps, every=view.rows == "all")
    _findings(page, report)
    page.blank()
    word, rest = verdict_of(report)
    look = {"PASS": "bold green", "FAIL": "bold red", "UNDECIDED": "bold yellow"}.get(word, "bold")
    page.wrapped((word, look), (": " + rest if word else rest, ""))
    return page.text()


def verdict_of(report: Report) -> tuple[str, str]:
    """(PASS, FAIL, UNDECIDED or "", the sentence that follows it): the report in one line."""
    summary = _summary(report)
    if report.verdict is None:
        return "", summary
    word = report.verdict.name
    if word == "PASS":
        return word, f"every limit holds; {summary}"
    judged = [f for f in report.findings if f.limit is not None and not f.ignored]
    violated = sum(f.severity == "error" for f in judged)
    counts = [f"{_count(violated, 'limit')} violated"] if violated else []
    if len(judged) > violated:
        counts.append(f"{len(judged) - violated} undecided")
    return word, "; ".join([*counts, summary])


def _summary(report: Report) -> str:
    if not report.layers:
        return "no matrix shown"
    # of two that are unbounded, or equal, the first in the file
    worst = max(report.layers, key=lambda layer: layer.sigma.upper)
    matrices = _count(len(report.layers), "matrix", "matrices")
    if worst.sigma.bounded:
        largest = f"largest σ {_one_number(worst.sigma, DIGITS)} ({worst.name})"
    else:
        unbounded = sum(not layer.sigma.bounded for layer in report.layers)
        largest = f"no finite σ for {unbounded} ({worst.name}{', …' if unbounded > 1 else ''})"
    bound = report.network.bound
    if bound.known:
        about = f", {report.network.scope}" if report.network.scope else ""
        return f"{matrices}, {largest}; network bound {upper_of(bound)} ({bound.grade.name}){about}"
    why = f" ({_count(len(report.gaps), 'gap')})" if report.gaps else ""
    return f"{matrices}, {largest}; no finite network bound{why}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _card(page: Page, report: Report, wrapper: str) -> None:
    card, settings = report.model, report.settings
    page.line((card.path, "bold"))
    if card.files and PurePath(card.files[0].path).parent == PurePath(card.path):
        page.paragraph(f"  the model in this folder: {PurePath(card.files[0].path).name}", indent=2)
    parts = [card.format]
    if card.files:
        parts.append(size(sum(file.size for file in card.files)))
        parts.append(_count(len(card.files), "file") if len(card.files) > 1 else "")
        parts.append(f"sha256 {card.files[0].sha256[:12]}…")
    page.paragraph("  " + " · ".join(part for part in parts if part), indent=2)
    dtypes = ", ".join(f"{dtype} ×{number}" for dtype, number in card.dtypes)
    facts = [_count(card.tensors, "tensor"), f"{card.parameters:,} parameters", dtypes,
             "with graph" if card.graph else "no graph"]  # fmt: skip
    page.paragraph("  " + " · ".join(fact for fact in facts if fact), indent=2)
    if settings.norm != "l2" or settings.method != "auto":
        asked = f"layer norms and the network bound in {settings.norm}, method {settings.method}"
        page.paragraph(f"  {asked}", indent=2)
    if wrapper:
        page.paragraph(f"  names are shown without their common prefix {wrapper}", "dim", 2)
    for note in card.notes:
        page.paragraph(f"  note: {note}", "dim", 8)


@dataclass(frozen=True, slots=True)
class _Cell:
    """A column and what it shows of a run."""

    column: Column
    show: Callable[[Run], str]
    style: str = ""


def _layers(page: Page, runs: Sequence[Run], wrapper: str, shares: dict[str, float]) -> None:
    if not runs:
        return
    cells, digits = _chosen(page, runs, shares, wrapper)
    columns = [cell.column for cell in cells]
    rows = [_row(run, cells, wrapper) for run in runs]
    for index, run in enumerate(runs):
        if len(run.members) > 1:
            worst = f"  worst: {_name(run.worst.name, wrapper)}"
            if not page.fits(worst, columns, rows):
                worst = f"  worst at {run.where}"
            rows[index] = Row([worst, *rows[index].cells[1:]], rows[index].styles, rows[index].cells[0])
    page.table(columns, rows)
    shown = {column.title for column in columns}
    said = ["power: a power-iteration estimate, and how far it stays below σ"] if "power" in shown else []
    said += ["share: of the factors above 1, on a log scale"] if "share" in shown else []
    if any(cell.startswith("≤") for row in rows for cell in row.cells):
        said.append(f"≤: the upper end, where the interval is wider than {digits} digits show")
    if said:
        page.paragraph("; ".join(said), "dim", 2)


def _row(run: Run, cells: Sequence[_Cell], wrapper: str) -> Row:
    bad = "" if run.worst.norm.bounded and run.worst.sigma.bounded else "red"
    return Row([cell.show(run) for cell in cells], [bad or cell.style for cell in cells])


_RICHEST_FIRST: tuple[tuple[int, bool, tuple[str, ...], int], ...] = (
    (5, True, (), 40),
    (5, True, ("method",), 40),
    (5, True, ("method", "stable rank"), 40),
    (5, False, (), 32),
    (4, False, (), 26),
    (4, False, (), 18),
    (4, False, ("op",), 18),
    (4, False, ("op", "share"), 18),
    (4, False, ("op", "share", "power"), 18),
    (3, False, ("op", "share", "power", "shape"), 12),
    (3, False, ("op", "share", "power", "shape", "uses"), 0),
)
"""(digits, whether intervals are written out, columns left out, cells left for the name)"""


def _chosen(
    page: Page, runs: Sequence[Run], shares: dict[str, float], wrapper: str
) -> tuple[list[_Cell], int]:
    """The richest set of columns that leaves names their room, and the digits of its numbers."""
    cells: list[_Cell] = []
    for digits, wide, without, room in _RICHEST_FIRST:
        if wide and page.width < 140:
            continue
        cells = [c for c in _columns(runs, shares, wrapper, digits, wide) if c.column.title not in without]
        rows = [_row(run, cells, wrapper) for run in runs]
        longest = max(len(row.cells[0]) for row in rows)
        if page.width - page.natural([cell.column for cell in cells], rows) >= min(longest, room):
            return cells, digits
    return cells, 3


def _columns(
    runs: Sequence[Run], shares: dict[str, float], wrapper: str, digits: int, wide: bool
) -> list[_Cell]:
    def interval(bound: Bound) -> str:
        if not wide or not bound.bounded:
            return _one_number(bound, digits)
        return f"[{at_least(bound.lower, digits)}, {at_most(bound.upper, digits)}]"

    def power(run: Run) -> str:
        estimate = run.worst.power
        if estimate is None:
            return ""
        below = short_of(estimate.estimate, run.worst.sigma.upper)
        return f"{near(estimate.estimate, digits)} {below}".rstrip() if digits > 4 else below

    def share(run: Run) -> str:
        part = sum(shares.get(layer.name, 0.0) for layer in run.members)
        if not part:
            return ""
        return f"{bar(part, 10)} {part:4.0%}" if wide else bar(part, 6)

    cells = [
        _Cell(Column("layer", flexible=True), lambda run: _label(run, wrapper)),
        _Cell(Column("op"), lambda run: run.worst.op, "dim"),
        _Cell(Column("shape"), lambda run: "×".join(map(str, run.worst.shape)), "dim"),
    ]
    cells += [_Cell(Column("dtype"), lambda run: run.worst.dtype, "dim")] if wide else []
    cells += [
        _Cell(Column("σ", right=True), lambda run: interval(run.worst.sigma), "bold"),
        _Cell(Column("power", right=True), power),
        _Cell(Column("norm", right=True), lambda run: interval(run.worst.norm), "bold"),
    ]
    if wide:
        cells += [
            _Cell(Column("grade"), lambda run: _grade(run.worst.norm)),
            _Cell(Column("method"), lambda run: run.worst.norm.method.removesuffix(", every geometry"), "dim"),
            _Cell(Column("stable rank", right=True), lambda run: _optional(run.worst.stable_rank)),
        ]
    if any(run.worst.uses != 1 for run in runs):
        cells.append(_Cell(Column("uses", right=True), lambda run: f"×{run.worst.uses}"))
    if any(shares.values()):
        cells.append(_Cell(Column("share"), share, "cyan"))
    return cells


def _label(run: Run, wrapper: str) -> str:
    count = f" ×{len(run.members)}" if len(run.members) > 1 else ""
    return _name(run.label, wrapper) + count


def _name(name: str, wrapper: str) -> str:
    return name.removeprefix(wrapper) or "''"


def _one_number(bound: Bound, digits: int) -> str:
    """The number itself where both ends agree to the digits shown; else ≤ and the upper end, rounded up."""
    if not bound.bounded:
        return "unbounded"
    if bound.upper - bound.lower <= bound.upper * 10.0**-digits:
        return near(bound.upper, digits)
    return "≤" + at_most(bound.upper, digits)


def _grade(bound: Bound) -> str:
    return bound.grade.name.lower() if bound.bounded else ""


def _optional(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else near(value, 4)


def bar(part: float, width: int) -> str:
    """A bar for a part of one, in half cells; what is not zero shows at least half a cell."""
    halves = min(2 * width, max(round(part * 2 * width), 1 if part > 0.0 else 0))
    return ("█" * (halves // 2) + "▌" * (halves % 2)).ljust(width)


def _coverage(page: Page, report: Report) -> None:
    missed = [item for item in report.left_out if item.missed]
    audited = len(report.layers)
    head = f"coverage: {audited} of {_count(audited + len(missed), 'matrix', 'matrices')} audited"
    for are, one in ((True, "tensor"), (False, "entry")):
        items = [item for item in report.left_out if bool(item.tensors) is are]
        if items:
            number = sum(item.tensors for item in items) if are else len(items)
            counted = _count(number, one, "tensors" if are else "entries")
            head += f"; {counted} left out ({_reasons(items)})" if are else f"; {counted} without tensors ({_reasons(items)})"
    page.paragraph(head, "yellow" if missed else "", 2)


def _reasons(items: Sequence[LeftOut]) -> str:
    """Each reason with how many tensors it has; one that says so itself, of a whole entry, is named."""
    alone = Counter(item.reason for item in items if item.tensors == 1)
    found = [f"{number}× {reason}" for reason, number in alone.most_common()]
    return "; ".join([*found, *(f"{item.name}: {item.reason}" for item in items if item.tensors != 1)])


def _layer_notes(page: Page, layers: Iterable[LayerResult]) -> None:
    names: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        for note in layer.notes:
            names[note].append(layer.name)
    for note, where in names.items():
        page.paragraph(f"note: {note} ({_some(where, 'layer')})", "dim", 2)


def _some(names: Sequence[str], one: str) -> str:
    if len(names) == 1:
        return names[0]
    return f"{_count(len(names), one)}: {', '.join(names[:_FEW])}{', …' if len(names) > _FEW else ''}"


def _gaps(page: Page, gaps: Sequence[Gap], every: bool) -> None:
    if not gaps:
        return
    page.blank()
    page.paragraph(f"{_count(len(gaps), 'gap')}: no constant is known at", "yellow")
    groups: dict[object, list[Gap]] = defaultdict(list)
    for index, gap in enumerate(gaps):
        groups[index if every else (gap.code, gap.op, gap.reason, gap.remedy)].append(gap)
    for alike in groups.values():
        first = alike[0]
        count = f"{len(alike)}× " if len(alike) > 1 else ""
        where = ", ".join(gap.where for gap in alike[:_FEW]) + (", …" if len(alike) > _FEW else "")
        remedy = f"; {first.remedy}" if first.remedy else ""
        page.paragraph(f"  {count}{first.op} [{where}]: {first.reason}{remedy} ({first.code})", "", 4)


def _findings(page: Page, report: Report) -> None:
    if not report.findings:
        return
    page.blank()
    for finding in report.findings:
        page.wrapped((f"{finding.severity:<8}", _STYLES.get(finding.severity, "")), (finding_line(finding), ""))


def finding_line(finding: Finding) -> str:
    """The finding as one line: where, and what."""
    ignored = f" (ignored: {finding.reason or 'no reason given'})" if finding.ignored else ""
    return f"{finding.where}: {finding.message}{ignored}"


TABLE = Renderer("table", render)
