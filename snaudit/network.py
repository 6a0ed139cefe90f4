"""The bound of a whole network: by composition over its graph, or of a bare checkpoint as a chain."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from snaudit import levers
from snaudit.bound import UNBOUNDED, Bound, Grade, at_most, chain, exactly, scaled, up
from snaudit.findings import (
    Gap,
    LayerResult,
    Lever,
    MethodResult,
    NetworkResult,
    OutputResult,
    PartialResult,
    SectionResult,
    Settings,
)
from snaudit.layers import Extraction, Layer
from snaudit.measuring import Meter
from snaudit.model import RUN, Model
from snaudit.pairs import scope_of
from snaudit.ranges import UNKNOWN, Range, middle_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from snaudit import between_cuts, confined, lipschitz
    from snaudit.pairs import Pair
    from snaudit.matching import Shortcut


def network_of(
    model: Model, extraction: Extraction, results: tuple[LayerResult, ...], meter: Meter, explain: bool = False
) -> tuple[NetworkResult, tuple[Gap, ...]]:
    """(the network's bound, the gaps at which it ends) from its layers' measured norms; `explain`: with the layers
    that would lower it most, and what kept it from being tighter."""
    if model.graph is None:
        missed = sum(item.missed for item in (*model.left_out, *extraction.left_out))
        return _chain_of(extraction, results, missed)
    return _composition_of(model, extraction.layers, results, meter, explain)


CHAIN = (
    "the layers run one after another, each stored matrix once, in between only functions that are "
    "1-Lipschitz (a bare checkpoint does not say how its layers are connected: --architecture does)"
)


def _chain_of(
    extraction: Extraction, results: tuple[LayerResult, ...], missed: int
) -> tuple[NetworkResult, tuple[Gap, ...]]:
    """The bound of a bare checkpoint *if* its layers are a chain: the product, graded ASSUMED."""
    started = time.perf_counter()
    bound, factors = exactly(1.0), []
    for layer, result in zip(extraction.layers, results, strict=True):
        if layer.in_chain:
            bound = chain(bound, replace(result.norm, rests=((result.name, 1.0),)))
            factors.append((result.name, result.norm.upper))
    for name, gain in extraction.scales:
        if gain is not None:
            bound = chain(bound, at_most(up(gain), "scale"))
            factors.append((name, gain))
    gaps: tuple[Gap, ...] = ()
    if not factors:
        bound = UNBOUNDED
        reason = "no layer of it acts on a real-valued input"
        remedy = "name its code with --architecture, or export it to ONNX"
        gaps = (Gap("no-chain", "the network", "chain", reason, remedy),)
    bound = replace(bound, lower=0.0, grade=Grade.ASSUMED, method="product of the layers' norms")
    method = MethodResult(bound.method, bound, time.perf_counter() - started)
    norms = {name: factor for name, factor in factors if name in {result.name for result in results}}
    best = levers.levers(bound, norms, lambda by: scaled(bound, math.prod(by.values()))) if bound.known else ()
    assumptions = (CHAIN, *extraction.broken_chain)
    if missed:
        assumptions += (f"matrices that could not be read are not in the product ({missed})",)
    network = NetworkResult(bound, (), (method,), assumptions, tuple(factors), factors=tuple(factors), levers=best)
    return network, gaps


def _given(settings: Settings, model: Model) -> Iterator[str]:
    if settings.input_size:
        yield f"the input has the size given, {'; '.join(settings.input_size)}: it holds for no other"
    if settings.architecture:
        yield f"the network is {settings.architecture} in eval mode, as torch's exporter traced it"
    if settings.allow_code and model.format.endswith(RUN):
        yield "the network is what the file's code gave when it was run (--allow-code)"


@dataclass(slots=True)
class Composer:
    """Composes the bound of one graph, again and again: with more shortcuts, or with layers scaled.

    norms: of each layer by name, as measured (at its largest place, with its gain).
    """

    model: Model
    layers: tuple[Layer, ...]
    norms: Mapping[str, Bound]
    meter: Meter
    _operators: dict[ir.Value, tuple[str, Bound]] = field(init=False)
    _stretches: list[Shortcut] = field(init=False)
    _ranges: Any = field(init=False)
    pair: Pair = field(init=False)

    def __post_init__(self) -> None:
        from snaudit import stated, stretches
        from snaudit.pairs import pair_of
        from snaudit.matching import Shortcut

        self._ranges = stated.ranges_of(self.model.graph, self.meter.settings.input_range)
        self.pair = pair_of(self.model.graph.graph, self.meter.settings)
        self._operators = {
            output: (layer.name, self._norm_at(layer, index))
            for layer in self.layers
            for index, output in enumerate(layer.outputs)
        }
        self._stretches = [
            Shortcut(s.output, s.source, s.enclosed(self.meter.norm_of(whole)), s.layer.name)
            for s in stretches.find_stretches(self.layers)
            if (whole := s.map()) is not None
        ]

    @property
    def stated(self) -> frozenset[str]:
        """What a bound that rests on the stated ranges of the inputs assumes."""
        return frozenset().union(*(one.rests for one in self._ranges.values()))

    @property
    def names(self) -> dict[ir.Value, str]:
        """The layer of each node's first output."""
        return {output: name for output, (name, _) in self._operators.items()}

    def _norm_at(self, layer: Layer, index: int) -> Bound:
        if layer.gain == 1.0 and len(set(layer.places)) < 2:
            return self.norms[layer.name]
        return self.meter.norm_at(layer, index)

    def box(self, found: lipschitz.Composition) -> confined.Box:
        """Where values lie: as a composition found it, and at the middle of the stated ranges (zero where none is).
        Inputs that are held fixed may be at no such point: then there is none."""
        from snaudit import confined, lipschitz

        @cache
        def at_centre() -> Mapping[ir.Value, Range]:
            stated = {v.name: middle_of(self._ranges.get(v.name)) for v in self.model.graph.graph.inputs if v.name}
            return lipschitz.compose(self.model.graph, "linf", {}, {}, (), _folded, stated).ranges

        if self.pair.only is not None:
            return confined.Box(lambda v: found.ranges.get(v, UNKNOWN))
        return confined.Box(lambda v: found.ranges.get(v, UNKNOWN), lambda v: at_centre().get(v, UNKNOWN))

    def __call__(
        self,
        more: Sequence[Shortcut] = (),
        factors: Mapping[str, float] | None = None,
        narrower: Mapping[ir.Value, Range] = {},
    ) -> lipschitz.Composition:
        """The composition; with `factors`, as if the layers of these names were scaled by them."""
        from snaudit import lipschitz

        def told(name: str, bound: Bound) -> Bound:
            changed = scaled(bound, (factors or {}).get(name, 1.0))
            return replace(changed, rests=((name, 1.0),)) if factors is None else changed

        operators = {o: told(name, bound) for o, (name, bound) in self._operators.items()}
        every = [replace(s, bound=told(s.name, s.bound)) for s in self._stretches]
        norm = self.meter.settings.norm
        return lipschitz.compose(
            self.model.graph, norm, operators, self.names, (*every, *more), _folded, self._ranges,
            self.meter.norm_of_array, self.pair, narrower,
        )  # fmt: skip


def _folded(value: ir.Value) -> np.ndarray | None:
    from snaudit import folding

    return folding.evaluate(value) if folding.is_constant(value) else None


def _composition_of(
    model: Model, layers: tuple[Layer, ...], results: tuple[LayerResult, ...], meter: Meter, explain: bool
) -> tuple[NetworkResult, tuple[Gap, ...]]:
    """The bound by composition over the graph, each layer's measured norm at its nodes."""
    from snaudit import between_cuts, confined, origins

    started = time.perf_counter()
    compose = Composer(model, layers, {r.name: r.norm for r in results}, meter)
    plain = found = compose(())
    name, seconds = "composition over the graph", time.perf_counter() - started
    ways, box = (), confined.Box()
    if meter.settings.norm == "l2" and found.bound.known:  # behind a gap no section makes the whole finite
        box = compose.box(found)
        ways = between_cuts.measure(model.graph, meter.norm_of, compose.pair, found.nodes, found.held, box)
        plain = found = compose((), None, box.narrower) if box.narrower else found
    methods = [MethodResult(name, replace(plain.bound, method=name), seconds)]
    if ways:
        for way in ways:
            started = time.perf_counter()
            bound = replace(way.alone or compose(way.shortcuts, None, box.narrower).bound, method=way.name)
            methods.append(MethodResult(way.name, bound, way.seconds + time.perf_counter() - started))
        found = compose([shortcut for way in ways for shortcut in way.shortcuts], None, box.narrower)
        name = _winner(methods, found.bound)
    taken = origins.sections_of(ways, {name for name, _ in found.contributions})
    network = NetworkResult(
        replace(found.bound, method=name),
        tuple(OutputResult(*one, rests) for one, rests in zip(found.outputs, found.rests, strict=True)),
        tuple(methods),
        (*_given(meter.settings, model), *found.assumptions),
        found.contributions,
        partials=tuple(PartialResult(part.start, part.end, part.bound) for part in found.partials),
        composition=plain.bound,
        factors=plain.contributions,
        sections=taken,
        besides=tuple(part for part in plain.contributions if part[0] not in compose.norms),
        scope=scope_of(meter.settings),
    )
    return (_explained(network, compose, plain, box, ways) if explain else network), found.gaps


def _explained(
    network: NetworkResult, compose: Composer, plain: lipschitz.Composition, box: confined.Box,
    ways: Sequence[between_cuts.Way],
) -> NetworkResult:  # fmt: skip
    """The network's result with the layers that would lower it most, and what kept it from being tighter."""
    from snaudit import origins

    settings, notes = compose.meter.settings, ()
    if settings.norm == "l2" and plain.bound.known:
        notes = origins.notes_of(ways, compose.names, plain.nodes, bool(settings.input_size))
    if network.bound.known and settings.input_range is not None and not compose.stated & set(network.assumptions):
        notes += ("--input-range did not lower the bound: it holds everywhere",)
    found = _levers(compose, plain, network.bound, box, network.sections)
    supposed = (replace(one, bound=replace(one.bound, grade=Grade.ESTIMATED)) for one in found)  # ranges are kept
    return replace(network, levers=tuple(supposed), notes=notes)


def _levers(
    compose: Composer, found: lipschitz.Composition, least: Bound, box: confined.Box, parts: tuple[SectionResult, ...]
) -> tuple[Lever, ...]:
    """The levers of a composition; where sections gave a lesser bound, with what they say then.

    A layer that every way passes once scales what sections say: their bounds are homogeneous in it. For others
    they are bounded again, if they are matrices, which as a rule says less than the search in full would.
    """
    from snaudit import between_cuts

    if not found.bound.known:
        return ()
    norms = {name: norm.upper for name, norm in compose.norms.items()}
    best = levers.levers(found.bound, norms, lambda factors: compose((), factors, box.narrower).bound)
    if found.bound.size == least.size:
        return best
    is_dense = all(part.bound.method in between_cuts.DENSE for part in parts if part.taken)
    told = [
        replace(lever, bound=scaled(least, up(1.0 / lever.norm))) if lever.is_passed_once
        else _again(compose, found, least, box, lever) if is_dense
        else replace(lever, whole=False)
        for lever in best
    ]  # fmt: skip
    return tuple(sorted(told, key=lambda lever: (not lever.whole, -lever.log10_fall)))


def _again(
    compose: Composer, found: lipschitz.Composition, least: Bound, box: confined.Box, lever: Lever
) -> Lever:
    """The lever with the bound of sections in which its layer has the norm 1; the composition's, where that
    gains nothing."""
    from snaudit import between_cuts

    factor = 1.0 / lever.norm
    by = {output: factor for output, name in compose.names.items() if name == lever.name}
    if any(len([v for v in o.producer().inputs if v is not None and _folded(v) is None]) != 1 for o in by):
        return replace(lever, whole=False)  # a bias that varies would be multiplied, too
    shortcuts = between_cuts.again(
        compose.model.graph, compose.meter.norm_of, compose.pair, found.nodes, found.held, box, by
    )
    after = compose(shortcuts, {lever.name: factor}, box.narrower).bound
    fall = least.log10_upper - after.log10_upper
    return replace(lever, bound=after, log10_fall=fall) if fall > 1e-6 else replace(lever, whole=False)


def _winner(methods: list[MethodResult], least: Bound) -> str:
    """The method whose bound is the network's; where sections have different winners, that is said."""
    best = min(methods, key=lambda method: method.bound.size)
    return best.name if best.bound.size <= least.size else "the least bound of each section"
