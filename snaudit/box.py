"""The box of inputs that a bound is asked for: "LO,HI", "name=LO,HI", or an npz file of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from snaudit.errors import UsageError

Asked = tuple[float, float] | tuple[str, ...]
Ends = tuple[float, float]


def check(asked: Asked) -> None:
    """Raise UsageError for what is no box: no numbers, NaN or infinite ends, low above high."""
    for _ in parsed(asked):
        pass


def parsed(asked: Asked) -> Iterator[tuple[str | None, Ends | str]]:
    """(input, or None for all; its ends, or the file that holds them) for each specification."""
    pair = isinstance(asked, Sequence) and len(asked) == 2 and all(isinstance(x, (int, float)) for x in asked)
    if pair:
        yield None, _ends(asked[0], asked[1], str(tuple(asked)))
        return
    if not isinstance(asked, (tuple, list)) or not all(isinstance(text, str) for text in asked):
        raise UsageError(f"an input range is (low, high) or texts like 0,1 and x=0,1, not {asked!r}")
    seen: set[str | None] = set()
    for text in asked:
        name, ends = _one(text)
        if name in seen and not isinstance(ends, str):
            raise UsageError(f"--input-range {text}: {name or 'all inputs'} is given twice")
        seen.add(name)
        yield name, ends


def _one(text: str) -> tuple[str | None, Ends | str]:
    if text.endswith(".npz"):
        return None, text
    name, equals, ends = text.rpartition("=")
    parts = ends.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise UsageError(f"--input-range takes LO,HI or name=LO,HI or FILE.npz, not {text!r}") from None
    if equals and not name:
        raise UsageError(f"--input-range {text!r} names no input")
    return name if equals else None, _ends(low, high, text)


def _ends(low: float, high: float, text: str) -> Ends:
    if not -math.inf < low <= high < math.inf:
        raise UsageError(f"--input-range {text}: two finite numbers, the lower one first")
    return float(low), float(high)
