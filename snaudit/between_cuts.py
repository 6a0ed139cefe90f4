"""The bounds of a graph's sections, by every method, as shortcuts for `lipschitz.compose`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from snaudit import cuts, sections, wave_cuts, waves
from snaudit.bound import Bound
from snaudit.confined import Box
from snaudit.linear import AnyMap, Dense
from snaudit.pairs import Pair
from snaudit.matching import Shortcut
from snaudit.sections import Effort

_WORK = 1e11
"""Operations of the searches of a whole network, about: some three seconds of one core."""
_HARDLY = 0.7
_WAVES_WORK = 6e10
"""The same for each method by frequencies, whose matrices are smaller and many."""


@dataclass(frozen=True, slots=True)
class Way:
    """What one method gave for the sections of a network.

    alone: its own bound of the whole network, where one section is all of it; else None
    """

    name: str
    shortcuts: tuple[Shortcut, ...]
    seconds: float
    alone: Bound | None = None


def measure(
    model: ir.Model, norm_of: Callable[[AnyMap], Bound], pair: Pair, nodes: frozenset[ir.Node], fixed: frozenset[ir.Value],
    box: Box | None = None,
) -> tuple[Way, ...]:  # fmt: skip
    """The l2 bounds of all sections of the graph, by method; no method that found none.

    nodes: those that the pair's outputs depend on; fixed: values that are constants for the pair. On a box, each
    bound rests on what it uses of it, and `box.narrower` has what was found on the way.
    """
    dense = tuple(cuts.find_sections(model, pair.outputs, nodes, fixed, box))
    effort = Effort(lambda matrix: norm_of(Dense(np.ascontiguousarray(matrix))), _WORK / max(1, len(dense)))
    if any(cut.rests for cut in dense):
        dense += _hardly_narrowed(dense, tuple(cuts.find_sections(model, pair.outputs, nodes, fixed)))
    ways = [
        _way(model, pair, method.name, dense, [partial(method.measure, cut.section, effort) for cut in dense])
        for method in sections.METHODS
    ]
    stretches = tuple(wave_cuts.find_stretches(model, pair.outputs, nodes, fixed))
    for method in waves.METHODS:
        shares = wave_cuts.affordable(stretches, method.cost, _WAVES_WORK)
        measures = [partial(method.measure, cut.torus, work) for cut, work in shares]
        ways.append(_way(model, pair, method.name, [cut for cut, _ in shares], measures))
    return tuple(way for way in ways if way.shortcuts)


def _hardly_narrowed(dense: tuple[cuts.Cut, ...], plain: tuple[cuts.Cut, ...]) -> tuple[cuts.Cut, ...]:
    """The sections whose slopes the box narrows a little only, with those on the whole line: what a search finds, and
    LipLT's bound, is not always less where there is a little less to choose from."""
    left = {(cut.source, cut.output): _width(cut) for cut in dense if cut.rests}
    return tuple(cut for cut in plain if left.get((cut.source, cut.output), 0.0) > _HARDLY * _width(cut))


def _width(cut: cuts.Cut) -> float:
    return sum(float((unit.high - unit.low).sum()) for unit in cut.section.units)


DENSE = frozenset(method.name for method in sections.METHODS)
"""The methods whose sections are matrices."""


def again(
    model: ir.Model, norm_of: Callable[[AnyMap], Bound], pair: Pair, nodes: frozenset[ir.Node], fixed: frozenset[ir.Value],
    box: Box, factors: Mapping[ir.Value, float],
) -> tuple[Shortcut, ...]:  # fmt: skip
    """The least bound of each section of matrices with values multiplied by factors, in a tenth of the work; ranges
    are taken as they are."""
    still = Box(box.ranges)
    found = tuple(cuts.find_sections(model, pair.outputs, nodes, fixed, still, factors))
    effort = Effort(lambda matrix: norm_of(Dense(np.ascontiguousarray(matrix))), 0.1 * _WORK / max(1, len(found)))
    ways = [
        _way(model, pair, method.name, found, [partial(method.measure, cut.section, effort) for cut in found])
        for method in sections.METHODS
    ]
    return tuple(short for way in ways for short in way.shortcuts)


def _way(
    model: ir.Model,
    pair: Pair,
    name: str,
    found: Sequence[cuts.Cut] | Sequence[wave_cuts.Cut],
    measures: list[Callable[[], Bound]],
) -> Way:
    """What a method gives for these sections."""
    started, given = time.perf_counter(), []
    for cut, measured in zip(found, measures, strict=True):
        with np.errstate(all="ignore"):  # what leaves the floats ends unbounded
            bound = measured()
        if bound.bounded:
            place = f"{cut.source.name or '?'} to {cut.output.name or '?'}"
            given.append(Shortcut(cut.output, cut.source, bound, place, tuple(sorted(cut.rests))))
    whole = [cut for cut in found if [cut.source] == _varying(model, pair) and (cut.output,) == pair.outputs]
    alone = min((short.bound for short in given), key=lambda bound: bound.size, default=None)
    alone = alone if len(whole) == len(found) else None
    return Way(name, tuple(given), time.perf_counter() - started, alone)


def _varying(model: ir.Model, pair: Pair) -> list[ir.Value]:
    if pair.only is not None:
        return [pair.only]
    return [v for v in model.graph.inputs if v.dtype is None or v.dtype.is_floating_point()]
