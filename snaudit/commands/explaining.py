"""explain: the tables behind a report, as the code holds them."""

from __future__ import annotations

import csv
import io
import json

from snaudit.commands import sink
from snaudit.errors import UsageError
from snaudit.lowered import ROWS as REWRITTEN
from snaudit.report import View
from snaudit.report.page import Page
from snaudit.rules import ROWS

_COLUMNS = ("op", "domain", "since", "constant", "condition", "theorem", "norms")


def ops(format: str, only: str | None = None) -> int:
    """Print the op table: which ops have a rule, since which opset, on which condition, with which constant and
    why; 0. format: "table", "json" or "csv"; only: the op, in any case, to keep to. Raises UsageError for one that
    is not in it."""
    rows = [
        {"op": row.op, "domain": row.domain or "ai.onnx", "since": row.since, "constant": row.constant, "condition": row.condition,
         "theorem": row.theorem, "norms": list(row.norms)}
        for row in ROWS
    ]  # fmt: skip
    others = [
        {"op": row.op, "domain": row.domain, "written_as": row.becomes, "condition": row.condition} for row in REWRITTEN
    ]
    if only is not None:
        rows, others = ([row for row in some if only.lower() in (str(row["op"]).lower(), _named(row).lower())] for some in (rows, others))
        if not rows and not others:
            raise UsageError(f"{only}: no rule for an op of that name, and no other topic: `snaudit explain ops` lists all")
    if format == "json":
        sink.emit(json.dumps({"ops": rows, "rewritten": others}, ensure_ascii=False, indent=2) + "\n")
        return 0
    if format == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "norms": " ".join(row["norms"])} for row in rows)  # type: ignore[arg-type]
        sink.emit(out.getvalue())
        return 0
    if rows:
        sink.emit(_table({c: c for c in ("op", "since", "constant", "condition", "theorem")}, rows))
        sink.emit("\n∞: no constant exists or none is known; an op that is not listed has none. since: the opset.\n")
    if others:
        sink.emit("\nWritten as other ops before anything else looks at the graph:\n\n")
        sink.emit(_table({"op": "op", "written_as": "written as", "condition": "condition"}, others))
    return 0


def _table(head: dict[str, str], rows: list[dict[str, object]]) -> str:
    """The rows under their heads, one to a line; on a terminal that is too narrow, each as a paragraph."""
    table = [head, *({**row, "op": _named(row)} for row in rows)]
    widths = {column: max(len(str(row[column])) for row in table) for column in head}
    view = View(**sink.view_facts(to_file=False))
    if view.terminal and sum(widths.values()) + 2 * (len(widths) - 1) > view.width:
        page = Page(view)
        for row in table[1:]:
            facts = (f"{called} {row[column]}" for column, called in head.items() if column != "op" and row[column] != "")
            page.paragraph(f"{row['op']}: {'; '.join(facts)}", "", 4)
        return page.text()
    return "".join("  ".join(f"{row[c]!s:<{widths[c]}}" for c in head).rstrip() + "\n" for row in table)


def _named(row: dict[str, object]) -> str:
    return str(row["op"]) if row["domain"] == "ai.onnx" else f"{row['domain']}.{row['op']}"
