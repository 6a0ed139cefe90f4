"""Where a network's bound comes from: the sections between its cuts, and what stayed outside of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from snaudit import linearized, slopes
from snaudit.attributes import attribute
from snaudit.between_cuts import Way
from snaudit.domains import is_default
from snaudit.findings import SectionResult

_FAR = 64
"""Nodes between two layers beyond which they are not taken for neighbours."""


def sections_of(ways: Sequence[Way], taken: Collection[str]) -> tuple[SectionResult, ...]:
    """The least bound of each section and the method that gave it; `taken`: names of the shortcuts that the
    network's bound rests on."""
    best: dict[tuple[ir.Value, ir.Value], tuple[str, SectionResult]] = {}
    for way in ways:
        for short in way.shortcuts:
            key = short.source, short.output
            bound = replace(short.bound, method=way.name)
            if key not in best or bound.size < best[key][1].bound.size:
                ends = (value.name or "?" for value in key)
                best[key] = short.name, SectionResult(*ends, bound, short.name in taken, short.assumes)
    return tuple(result for _, result in best.values())


def notes_of(
    ways: Sequence[Way], layers: Mapping[ir.Value, str], nodes: Collection[ir.Node], is_sized: bool = False
) -> tuple[str, ...]:
    """Why layers that follow one another, with nothing between them that sections do not understand, are in
    no section: how many, and what is too large or of unknown size; `is_sized`: though the user gave the inputs'."""
    inside = {value for way in ways for short in way.shortcuts for value in _between(short.source, short.output)}
    outside = {v: name for v, name in layers.items() if v not in inside and v.producer() in nodes}
    large, open_, most = set(), set(), 0
    for value in outside:
        for other in _next_layers(value, outside):
            sizes = [_entries(v) for v in (value.producer().inputs[0], value, other)]
            names = {outside[value], outside[other]}
            if None in sizes:
                open_ |= names
            elif max(sizes) > linearized.LARGEST:
                large |= names
                most = max(most, *sizes)
    found = []
    if large:
        why = f"values of up to {most:,} entries are too many for the methods that fit there"
        found.append(f"{_count(large)} a stretch that is not bounded as one: {why}, and norms are multiplied")
    if open_:
        remedy = "" if is_sized else ": --input-size may tighten the bound"
        found.append(f"{_count(open_)} a stretch of open size, which is not bounded as one{remedy}")
    return tuple(found)


def _count(names: set[str]) -> str:
    return f"{len(names)} {'layer lies' if len(names) == 1 else 'layers lie'} in"


def _between(source: ir.Value, output: ir.Value) -> Iterator[ir.Value]:
    """The values on the way from a section's source to its output."""
    seen, stack = {source}, [output]
    while stack:
        value = stack.pop()
        if value in seen or value.producer() is None:
            continue
        seen.add(value)
        yield value
        stack.extend(v for v in value.producer().inputs if v is not None)


def _next_layers(value: ir.Value, layers: Mapping[ir.Value, str]) -> Iterator[ir.Value]:
    """The layers that a layer's output reaches through affine ops and entrywise functions alone."""
    seen: set[ir.Value] = set()
    stack = [value]
    while stack and len(seen) < _FAR:
        here = stack.pop()
        for use in here.uses():
            for output in use.node.outputs:
                if output in layers and output is not value:
                    yield output
                elif output not in seen and _is_understood(use.node):
                    seen.add(output)
                    stack.append(output)


def _is_understood(node: ir.Node) -> bool:
    if is_default(node) and (node.op_type in linearized.OPS or node.op_type in ("PRelu", "Max", "Min")):
        return True
    try:
        return slopes.interval(node.domain, node.op_type, partial(attribute, node)) is not None
    except (ValueError, TypeError, AttributeError):  # attributes that make no sense
        return False


def _entries(value: ir.Value | None) -> int | None:
    """The number of a value's entries, of a batch of open size those of one; None where it is not known."""
    if value is None or value.shape is None:
        return None
    sizes = [d if isinstance(d, int) else None for d in value.shape]
    rest = sizes[1:] if len(sizes) > 1 and sizes[0] is None else sizes
    return None if None in rest else math.prod(rest)
