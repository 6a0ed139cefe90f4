"""What constrain did, as a table or as JSON (schema `snaudit.constrain/1`): pure functions of an Outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from snaudit.numerals import at_most, exact, near
from snaudit.report.interface import View
from snaudit.report.jsonreport import bound, dumps, envelope, number
from snaudit.report.page import Column, Page, Row
from snaudit.report.runs import wrapper_of

if TYPE_CHECKING:
    from snaudit.capping import Change
    from snaudit.constraints import Outcome

SCHEMA = "snaudit.constrain/1"
_CALLED = {"operator": "operator norm", "matrix": "σ of the matrix", "folded": "operator norm with its scales"}


def render_table(outcome: Outcome, view: View) -> str:
    """Before, after and the relative change of every layer that changed, and how many did not."""
    page = Page(view)
    changed = [change for change in outcome.changes if change.changed]
    measures = {change.measure for change in outcome.changes} or {outcome.measure}
    called = " or ".join(_CALLED[measure] for measure in sorted(measures))
    page.paragraph(f"{outcome.source}: {' and '.join(_limits(outcome, called))}", "bold", 2)
    if changed:
        page.blank()
        _changes(page, changed, mixed=len(measures) > 1)
        page.blank()
    if outcome.network is not None:
        before, after = outcome.network
        reached = "" if after is None else f", now {at_most(after.upper)} ({after.grade.name})"
        page.paragraph(f"network bound: {at_most(before.upper)}{reached}", "", 2)
    for output in outcome.outputs:
        most, mean = near(output.max_relative, 4), near(output.mean_relative, 4)
        moved = f"moved by at most {most}, on average {mean}, relative to its largest entry"
        kept = "" if output.top1 is None else f"; same top-1 in {round(output.top1 * output.rows)} of {output.rows} rows"
        page.paragraph(f"output {output.name}: {moved}, on {output.on}{kept}", "", 2)
    for note in outcome.notes:
        page.paragraph(f"note: {note}", "dim", 2)
    page.wrapped((summary(outcome), "bold"))
    return page.text()


def summary(outcome: Outcome) -> str:
    """The run in one line: how many changed, how many did not, and where the result stands."""
    changed = sum(change.changed for change in outcome.changes)
    kept = len(outcome.changes) - changed
    where = f"written to {outcome.target}"
    if not outcome.written:
        where = f"dry run: {outcome.target} was not written"
    done = {"clip": "clipped", "soft": "softly clipped"}.get(outcome.how, "scaled")
    goal = "" if outcome.max_sigma is None or outcome.max_lipschitz else f" to {exact(outcome.max_sigma)}"
    scaled = f"{changed} of {len(outcome.changes)} {done}{goal}"
    return f"{scaled}, {kept} left bit for bit; {where}"


def _limits(outcome: Outcome, called: str) -> Iterator[str]:
    if outcome.max_sigma is not None:
        yield f"{called} ≤ {exact(outcome.max_sigma)}"
    if outcome.max_lipschitz is not None:
        yield f"network bound ≤ {exact(outcome.max_lipschitz)}"


def _changes(page: Page, changed: list[Change], mixed: bool) -> None:
    wrapper = wrapper_of(change.name for change in changed)
    columns = [
        Column("layer", flexible=True), Column("op"), Column("dtype"),
        Column("before", right=True), Column("after", right=True), Column("change", right=True),
    ]  # fmt: skip
    rows = [
        [
            change.name.removeprefix(wrapper), change.op, change.dtype, at_most(change.before.upper),
            at_most(change.after.upper), f"{change.relative_change:.2%}",
        ]
        for change in changed
    ]  # fmt: skip
    if mixed:
        columns.insert(3, Column("of"))
        for row, change in zip(rows, changed, strict=True):
            row.insert(3, change.measure)
    page.table(columns, [Row(row) for row in rows])
    if wrapper:
        page.paragraph(f"names are shown without their common prefix {wrapper}", "dim", 2)
    grades = Counter(change.after.grade.name for change in changed)
    page.paragraph("after: " + ", ".join(f"{number} {grade}" for grade, number in grades.items()), "dim", 2)


def render_json(outcome: Outcome) -> str:
    """The outcome as a JSON document, every layer in the file's order."""
    return dumps(envelope(SCHEMA, {
        "model": {"path": outcome.source},
        "target": outcome.target,
        "written": outcome.written,
        "measure": outcome.measure,
        "max_sigma": outcome.max_sigma,
        "how": outcome.how,
        "max_lipschitz": outcome.max_lipschitz,
        "network": _network(outcome),
        "changes": [_change(change) for change in outcome.changes],
        "outputs": [
            {
                "name": output.name, "max_relative": number(output.max_relative),
                "mean_relative": number(output.mean_relative),
                "on": output.on, "top1_agreement": output.top1, "rows": output.rows,
            }
            for output in outcome.outputs
        ],
        "notes": list(outcome.notes),
    }))  # fmt: skip


def _network(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.network is None:
        return None
    before, after = outcome.network
    return {"before": bound(before), "after": None if after is None else bound(after)}


def _change(change: Change) -> dict[str, Any]:
    return {
        "name": change.name,
        "op": change.op,
        "dtype": change.dtype,
        "measure": change.measure,
        "before": bound(change.before),
        "after": bound(change.after),
        "relative_change": number(change.relative_change),
        "changed": change.changed,
    }
