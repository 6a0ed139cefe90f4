"""How often broadcasting copies the entries of one input of a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Dim = int | str | None
"""A known size, a name for an unknown one (equal names, equal sizes), or nothing known."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Along which axes of the result (counted from the last, −1) an input is copied, how often.

    count is None where that is not known; `meets` are the pairs of unknown sizes that had to be
    taken as equal (if one of them were 1, its input would be copied).
    """

    count: int | None
    axes: tuple[int, ...] = ()
    meets: tuple[str, ...] = ()


def dims(value: Any) -> tuple[Dim, ...] | None:
    """The sizes of an ir.Value's axes as ints, names or None; None if its rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(_dim(d) for d in value.shape)


def _dim(dim: Any) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    name = getattr(dim, "value", None)
    return name if name and any(letter.isalnum() for letter in name) else None  # "?" stands for unlike sizes


def spread(own: Sequence[Dim] | None, others: Sequence[Sequence[Dim] | None]) -> Spread:
    """How an input of shape `own` is copied when it is broadcast against `others` (numpy's rules).

    An axis of known size above 1 is never copied. An axis of unknown size against a known size t
    may turn out to be 1: it counts as t copies.
    """
    if all(other is not None and all(d == 1 for d in other) for other in others):
        return Spread(1)
    if own is None or any(other is None for other in others):
        return Spread(None)
    count, axes, meets = 1, [], []
    for axis in range(1, 1 + max(len(own), *(len(other) for other in others))):
        mine = own[-axis] if axis <= len(own) else 1
        against = {other[-axis] for other in others if axis <= len(other)} - {1}
        if mine is not None:
            against -= {mine}
        if not against or (isinstance(mine, int) and mine != 1):
            continue
        known = [d for d in against if isinstance(d, int)]
        if known:
            count *= max(known)
            axes.append(-axis)
        elif mine == 1:
            return Spread(None)
        else:
            meets.append(" and ".join(str(d or "?") for d in (mine, *against)))
    return Spread(count, tuple(axes), tuple(meets))
