"""Page: text in columns for a terminal, through rich, with every string made safe on the way in.

Nothing here interprets markup: whatever comes from a model file becomes a rich Text, and no
character in it acts on the terminal.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from snaudit.names import printable
from snaudit.report.interface import View

_NARROWEST = 40
_LONGEST = 2000  # characters of one text: a name of a megabyte is no reading matter
_NEVER_WRAPS = 100_000  # this page breaks its lines itself
_ASCII = {
    "×": "x", "–": "-", "—": "-", "…": "..", "≤": "<=", "≥": ">=", "σ": "sigma", "·": "|", "→": "->",
    "█": "#", "▌": "=", "∞": "inf", "‖": "||", "−": "-", "√": "sqrt", "Σ": "sum", "ε": "eps",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; what does not fit the one that is `flexible` goes to a line of its own."""

    title: str
    right: bool = False
    flexible: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; `head`, if any, is a line across all columns above it."""

    cells: Sequence[str]
    styles: Sequence[str] = ()
    head: str = ""


class Page:
    """Lines of text, `width` cells wide (never fewer than 40), gathered into one string."""

    def __init__(self, view: View) -> None:
        self.width = max(_NARROWEST, view.width)
        self._unicode = view.unicode
        self._terminal = view.terminal
        self._out = io.StringIO()
        self._console = Console(
            file=self._out, width=_NEVER_WRAPS, force_terminal=view.colour, no_color=not view.colour,
            color_system="standard" if view.colour else None, highlight=False, markup=False, emoji=False,
            legacy_windows=False,
        )  # fmt: skip

    def plain(self, text: str) -> str:
        """The text as this page can show it: visible, on one line, ASCII where it must be."""
        shown = printable(text, _LONGEST)
        if self._unicode or shown.isascii():
            return shown
        return "".join(_ASCII.get(c, c) for c in shown).encode("ascii", "backslashreplace").decode()

    def paragraph(self, text: str, style: str = "", indent: int = 0) -> None:
        """The text, wrapped to the page; lines after the first are indented."""
        words = Text(self.plain(text), style=style)
        for index, line in enumerate(words.wrap(self._console, self.width - (indent if indent else 0))):
            self._console.print(Text(" " * (indent if index else 0)) + line, soft_wrap=True)

    def wrapped(self, *parts: tuple[str, str]) -> None:
        """A text of (text, style) parts, on a terminal wrapped to the page; elsewhere on one line, for grep."""
        if not self._terminal:
            self.line(*parts)
            return
        whole = Text.assemble(*((self.plain(text), style) for text, style in parts))
        for index, line in enumerate(whole.wrap(self._console, self.width - 2)):
            self._console.print(Text("  " if index else "") + line, soft_wrap=True)

    def line(self, *parts: tuple[str, str]) -> None:
        """One line of (text, style) parts, never wrapped."""
        whole = Text.assemble(*((self.plain(text), style) for text, style in parts))
        self._console.print(whole, soft_wrap=True)

    def blank(self) -> None:
        """An empty line."""
        self._console.print()

    def natural(self, columns: Sequence[Column], rows: Sequence[Row]) -> int:
        """The width that a table takes apart from its flexible column."""
        widths = self._widths(columns, rows)
        return sum(w for c, w in zip(columns, widths, strict=True) if not c.flexible) + 2 * (len(columns) - 1)

    def table(self, columns: Sequence[Column], rows: Sequence[Row]) -> None:
        """A table no wider than the page. What is too long for the flexible column gets a line of
        its own, and loses its middle only where not even the page holds it."""
        widths = self._widths(columns, rows)
        room = max(8, self.width - self.natural(columns, rows))
        widths = [min(room, w) if c.flexible else w for c, w in zip(columns, widths, strict=True)]
        self._cells(columns, widths, [column.title for column in columns], ["bold"] * len(columns))
        for row in rows:
            cells = list(row.cells)
            if row.head:
                self._console.print(Text(self._fitted(row.head, self.width)), soft_wrap=True)
            for at, column in enumerate(columns):
                if column.flexible and cell_len(self.plain(cells[at])) > room:
                    self._console.print(Text(self._fitted(cells[at], self.width)), soft_wrap=True)
                    cells[at] = ""
            self._cells(columns, widths, cells, row.styles)

    def fits(self, text: str, columns: Sequence[Column], rows: Sequence[Row]) -> bool:
        """Whether the text fits the flexible column of that table."""
        return cell_len(self.plain(text)) <= max(8, self.width - self.natural(columns, rows))

    def _cells(
        self, columns: Sequence[Column], widths: Sequence[int], cells: Sequence[str], styles: Sequence[str]
    ) -> None:
        line = Text()
        for at, (column, width, cell) in enumerate(zip(columns, widths, cells, strict=True)):
            shown = self.plain(cell)
            blank = " " * (width - cell_len(shown))
            line.append("  " if at else "")
            line.append(blank if column.right else "")
            line.append(shown, styles[at] if at < len(styles) else "")
            line.append("" if column.right else blank)
        self._console.print(line, soft_wrap=True)

    def text(self) -> str:
        """All that was put on the page, without blanks at the ends of lines."""
        return "".join(line.rstrip() + "\n" for line in self._out.getvalue().splitlines())

    def _widths(self, columns: Sequence[Column], rows: Sequence[Row]) -> list[int]:
        cells = [[column.title for column in columns], *(row.cells for row in rows)]
        return [max(cell_len(self.plain(row[at])) for row in cells) for at in range(len(columns))]

    def _fitted(self, cell: str, room: int) -> str:
        return elide(self.plain(cell), room, "…" if self._unicode else "..")


def elide(text: str, room: int, mark: str = "…") -> str:
    """The text in at most `room` cells: its middle gives way, for names differ at their ends."""
    if cell_len(text) <= room:
        return text
    spare = max(0, room - cell_len(mark))
    head, tail = spare - spare * 3 // 5, spare * 3 // 5
    return _take(text, head) + mark + _take(text[::-1], tail)[::-1]


def _take(text: str, room: int) -> str:
    used = 0
    for index, char in enumerate(text):
        used += cell_len(char)
        if used > room:
            return text[:index]
    return text
