"""Write docs/ops.md from the op table: `python docs/make_ops.py`."""

from __future__ import annotations

from pathlib import Path

from snaudit import lowered
from snaudit.rules import ROWS

HEAD = """# Ops with a rule

Made from `snaudit.rules.ROWS` by `python docs/make_ops.py`; a test holds it to the code. The constant is for the norm of
the whole value (l2; l1 and linf where they differ). ∞: no constant exists or none is known; such a node is a gap in the
report, with reason and remedy. An op that is not listed is a gap, too. `since` is the version of its domain from
which the op is read; the tests run it there, at the versions that changed it, and at the newest.

| op | domain | since | constant | condition | theorem |
|---|---|---|---|---|---|
"""
REWRITTEN = """
## Ops of onnxruntime that are written as others

What onnxruntime's optimizers, its transformer optimizer and its quantizer fuse is written as the ops on the right before
anything else looks at the graph: exactly, in real arithmetic, the weights under their names. So layers, ranges, sections,
patterns and patches are those of the model before it was optimized. Where the condition does not hold, or an attribute is
not known, the node stays and is a gap. A test runs each against the op that it stands for.

| op | domain | written as | condition |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    rows = (
        f"| {row.op} | {row.domain or 'ai.onnx'} | {row.since} | {cell(row.constant)} | {cell(row.condition)} "
        f"| {cell(row.theorem)} |"
        for row in ROWS
    )
    others = (f"| {row.op} | {row.domain} | {row.becomes} | {cell(row.condition)} |" for row in lowered.ROWS)
    return HEAD + "\n".join(rows) + "\n" + REWRITTEN + "\n".join(others) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "ops.md").write_text(page(), encoding="utf-8")
