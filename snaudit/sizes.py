"""What `--input-size` says: NAME=N for a symbolic dimension, NAME=N,N,… or N,N,… for an input's shape."""

from __future__ import annotations

from collections.abc import Iterable

from snaudit.errors import UsageError

_MOST = 1 << 31


def sizes_of(texts: Iterable[str]) -> tuple[tuple[str | None, tuple[int, ...]], ...]:
    """(name or None, sizes) of each text. Raises UsageError for one that says neither."""
    return tuple(_parsed(text) for text in texts)


def _parsed(text: str) -> tuple[str | None, tuple[int, ...]]:
    name, equals, numbers = text.rpartition("=")
    parts = [part.strip() for part in numbers.split(",")]
    whole = all(part.isascii() and part.isdigit() and 0 < int(part[:20]) < _MOST for part in parts)
    if not whole or (equals and not name.strip()):
        raise UsageError(f"--input-size {text!r}: write NAME=N, NAME=N,N,… or N,N,… with positive whole numbers")
    return (name.strip() if equals else None), tuple(int(part) for part in parts)
