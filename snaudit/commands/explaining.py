"""explain: the tables behind a report, as the code holds them."""

from __future__ import annotations

import json

from snaudit.commands import sink
from snaudit.rules import ROWS


def ops(as_json: bool) -> int:
    """Print the op table: which ops have a rule, on which condition, with which constant and why; 0."""
    rows = [
        {"op": row.op, "domain": row.domain or "ai.onnx", "constant": row.constant, "condition": row.condition,
         "theorem": row.theorem, "norms": list(row.norms)}
        for row in ROWS
    ]  # fmt: skip
    if as_json:
        sink.emit(json.dumps({"ops": rows}, ensure_ascii=False, indent=2) + "\n")
        return 0
    head = {"op": "op", "constant": "constant", "condition": "condition", "theorem": "theorem"}
    table = [head, *({**row, "op": _named(row)} for row in rows)]
    widths = {column: max(len(str(row[column])) for row in table) for column in head}
    lines = ("  ".join(f"{row[c]!s:<{widths[c]}}" for c in head).rstrip() for row in table)
    sink.emit("\n".join(lines) + "\n\n∞: no constant exists or none is known; an op that is not listed has none.\n")
    return 0


def _named(row: dict[str, object]) -> str:
    return str(row["op"]) if row["domain"] == "ai.onnx" else f"{row['domain']}.{row['op']}"
