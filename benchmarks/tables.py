"""Markdown tables, and the sections of docs/benchmarks.md that they fill."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(section: str, text: str, write: bool) -> None:
    """Print a section; with `write`, also put it between its marks in docs/benchmarks.md."""
    print(text, flush=True)
    if write:
        store(section, text)


def store(section: str, text: str) -> None:
    """Put a section between its marks in docs/benchmarks.md."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    page = PAGE.read_text()
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"{PAGE.name} has no marks for the section {section}")
    pattern = re.escape(begin) + ".*" + re.escape(end)
    PAGE.write_text(re.sub(pattern, lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL))
