"""Runs of alike layers: names that differ in their numbers alone, drawn as one row."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snaudit.findings import LayerResult

_NUMBER = re.compile(r"([0-9]{1,9})")
_WRAPPERS = ("module.", "_orig_mod.")
_WORTH_FOLDING = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One row: `worst` is the member with the largest norm, whose numbers the row shows."""

    label: str
    worst: LayerResult
    members: tuple[LayerResult, ...]
    where: str = ""
    """The worst member's own numbers, where the label has ranges: "7"."""


def wrapper_of(names: Iterable[str]) -> str:
    """The DataParallel and torch.compile prefixes that all the names share, to be hidden on display."""
    names = list(names)
    shared = ""
    while names:
        prefix = next((p for p in _WRAPPERS if all(n.startswith(shared + p) for n in names)), None)
        if prefix is None:
            break
        shared += prefix
    return shared


def fold(layers: Iterable[LayerResult], unfold: bool = False) -> tuple[Run, ...]:
    """The layers as rows, each where its first member stands.

    Alike are layers of one op, shape, dtype and number of uses whose names differ only in integers;
    three or more make a run.
    """
    layers = tuple(layers)
    groups: dict[object, list[LayerResult]] = {}
    for layer in layers:
        groups.setdefault(layer.name if unfold else _kind(layer), []).append(layer)
    runs: list[Run] = []
    for layer in layers:
        members = groups.get(layer.name if unfold else _kind(layer), [])
        if len(members) < _WORTH_FOLDING:
            runs.append(Run(layer.name, layer, (layer,)))
        elif members[0] is layer:
            worst = max(members, key=lambda layer: (layer.norm.upper, layer.sigma.upper))
            label, where = _label([layer.name for layer in members], worst.name)
            runs.append(Run(label, worst, tuple(members), where))
    return tuple(runs)


def _kind(layer: LayerResult) -> object:
    """What is equal for alike layers."""
    return (tuple(_NUMBER.split(layer.name)[::2]), layer.op, layer.shape, layer.dtype, layer.uses)


def _label(names: list[str], worst: str) -> tuple[str, str]:
    """The common name, with [0–11] for numbers that run on and [0…11] for those with holes, and the
    numbers of the worst that stand in those places."""
    parts = [_NUMBER.split(name) for name in names]
    own = _NUMBER.split(worst)
    label, where = "", []
    for position, column in enumerate(zip(*parts, strict=True)):
        if position % 2 == 0 or len(set(column)) == 1:
            label += column[0]
            continue
        numbers = sorted({int(text) for text in column})
        dense = numbers[-1] - numbers[0] + 1 == len(numbers)
        label += f"[{numbers[0]}{'–' if dense else '…'}{numbers[-1]}]"
        where.append(own[position])
    return label, ", ".join(where)
