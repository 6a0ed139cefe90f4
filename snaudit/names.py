"""Names are data: one function makes any text safe to show, on a terminal, in a log, in a cell."""

from __future__ import annotations

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# Printable to Python, yet drawn as nothing: two names that differ only in these would look alike.
_INVISIBLE = (
    (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF),
)  # fmt: skip


def printable(text: str, limit: int | None = None) -> str:
    r"""The text with every character that is not drawn as itself written as an escape, on one line.

    Control and format characters (ANSI escapes, bidi overrides, zero-width joiners), lone
    surrogates, unassigned and private characters, and every space but U+0020 become \xhh, \uhhhh
    or \Uhhhhhhhh. Backslashes stay, so that applying it twice changes nothing. Markup is not
    altered: whoever renders the result must not interpret it. With `limit`, a longer text loses
    its middle.

    >>> printable("a\x1b[31mb\u202ec\n")
    'a\\x1b[31mb\\u202ec\\n'
    """
    shown = text if text.isascii() and text.isprintable() else "".join(map(_visible, text))
    if limit is not None and len(shown) > limit:
        head = max(0, limit - 1) // 2
        shown = shown[:head] + "…" + shown[len(shown) - max(0, limit - 1 - head) :]
    return shown


def _visible(char: str) -> str:
    code = ord(char)
    if char.isprintable() and not any(first <= code <= last for first, last in _INVISIBLE):
        return char
    if char in _SHORT:
        return _SHORT[char]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
