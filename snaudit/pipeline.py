"""audit(path, settings, limits) → Report: the straight line through the house."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from snaudit import policy
from snaudit.architecture import opened
from snaudit.bound import UNBOUNDED, Bound, Grade, at_most, chain, exactly, up
from snaudit.errors import EmptyModel, UsageError
from snaudit.extraction import extract
from snaudit.findings import (
    Finding,
    Gap,
    LayerResult,
    MethodResult,
    ModelCard,
    NetworkResult,
    OutputResult,
    PartialResult,
    Report,
    Settings,
    Verdict,
)
from snaudit.layers import Extraction, Layer, select
from snaudit.measuring import Meter, not_finite, result_of
from snaudit.model import FileRead, LeftOut, Model
from snaudit.witness import Seeker, joined

_SMALL = 1 << 24
"""Tensors that are no matrices are looked through for NaN up to so many entries."""

Progress = Callable[[int, int, str], None]


def audit(
    path: Path,
    settings: Settings = Settings(),
    limits: policy.Limits | None = None,
    progress: Progress | None = None,
    only: tuple[str, ...] = (),
) -> Report:
    """The report on a model file, judged by `limits` where there are some.

    only: patterns of the layers to show and judge; the network's bound always rests on all of them.
    Raises a ModelError when the file cannot be read or holds nothing to audit.
    """
    with opened(path, settings) as model:
        if settings.input_range is not None and model.graph is None:
            remedy = "name its code with --architecture, or export it to ONNX"
            raise UsageError(f"--input-range needs a model with a graph: {remedy}")
        extraction = extract(model)
        if not extraction.layers:
            raise EmptyModel(path, "no weight matrix to audit in it" + _what_there_is(extraction.left_out))
        with Seeker(model, settings) as seeker:  # runs while the layers are measured
            return _audited(path, model, extraction, settings, limits, progress, only, seeker)


def _audited(
    path: Path,
    model: Model,
    extraction: Extraction,
    settings: Settings,
    limits: policy.Limits | None,
    progress: Progress | None,
    only: tuple[str, ...],
    seeker: Seeker,
) -> Report:
    meter = Meter(settings)
    results: list[LayerResult] = []
    findings: list[Finding] = []
    if progress is not None:
        progress(0, len(extraction.layers), extraction.layers[0].name)
    for layer, measured in zip(extraction.layers, meter.measure_all(extraction.layers), strict=True):
        if progress is not None:
            progress(len(results), len(extraction.layers), layer.name)
        if not measured.sigma.bounded or not measured.norm.bounded:
            bad = not_finite(layer)
            findings += [] if bad is None else [bad]
        results.append(result_of(layer, measured))
    findings += _not_numbers(model, extraction.layers)
    if progress is not None:
        progress(len(extraction.layers), len(extraction.layers), "the network")
    if model.graph is None:
        missed = sum(item.missed for item in (*model.left_out, *extraction.left_out))
        network, gaps = _chain_of(extraction, tuple(results), missed)
    else:
        network, gaps = _composition_of(model, extraction.layers, tuple(results), meter)
    network, gaps = joined(network, gaps, seeker.witness())
    for file in model.files:
        file.check()
    shown = {layer.name for layer in select(extraction.layers, only)}
    kept = tuple(result for result in results if result.name in shown)
    left_out = model.left_out + extraction.left_out
    verdict = None
    if limits is not None:
        judged, verdict = policy.decide(kept, network, limits, left_out)
        if limits.max_lipschitz is not None and any(finding.rule == "not-finite" for finding in findings):
            verdict = Verdict.FAIL  # a network that computes with NaN keeps no limit
        findings += judged
    return Report(
        model=_card(model, path),
        settings=settings,
        layers=kept,
        network=network,
        left_out=left_out,
        gaps=gaps,
        findings=tuple(findings),
        verdict=verdict,
    )


def _not_numbers(model: Model, layers: tuple[Layer, ...]) -> Iterator[Finding]:
    """A finding for each NaN in what is no matrix: biases, scales, statistics. (Infinities there can
    be masks.)"""
    held = {tensor.name for layer in layers for tensor in layer.form.tensors}
    for name, tensor in model.tensors.items():
        if name in held or not tensor.is_real or tensor.size > _SMALL:
            continue
        count = int(np.count_nonzero(np.isnan(tensor.float64())))
        if count:
            text = f"{count} of {tensor.size} entries are NaN: what the network computes is undefined"
            yield Finding("not-finite", "error", name, text)


def _what_there_is(left_out: tuple[LeftOut, ...]) -> str:
    if not left_out:
        return ": it holds no tensor"
    reasons = Counter((not item.missed, item.reason) for item in left_out)
    worst = sorted(reasons.items(), key=lambda pair: (pair[0][0], -pair[1]))[:3]
    return ": " + "; ".join(f"{count} left out: {reason}" for (_, reason), count in worst)


def _card(model: Model, path: Path) -> ModelCard:
    places = {tensor.place: tensor.size for tensor in model.tensors.values()}
    dtypes = Counter(tensor.dtype for tensor in model.tensors.values())
    return ModelCard(
        path=str(path),
        format=model.format,
        files=tuple(FileRead(file.path, file.size, file.sha256) for file in model.files),
        tensors=len(model.tensors),
        parameters=sum(places.values()),
        dtypes=tuple(dtypes.most_common()),
        graph=model.graph is not None,
        notes=model.notes,
    )


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
            bound = chain(bound, result.norm)
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
    assumptions = (CHAIN, *extraction.broken_chain)
    if missed:
        assumptions += (f"matrices that could not be read are not in the product ({missed})",)
    return NetworkResult(bound, (), (method,), assumptions, tuple(factors)), gaps


def _given(settings: Settings) -> Iterator[str]:
    if settings.input_size:
        yield f"the input has the size given, {'; '.join(settings.input_size)}: it holds for no other"
    if settings.architecture:
        yield f"the network is {settings.architecture} in eval mode, as torch's exporter traced it"


def _composition_of(
    model: Model, layers: tuple[Layer, ...], results: tuple[LayerResult, ...], meter: Meter
) -> tuple[NetworkResult, tuple[Gap, ...]]:
    """The bound by composition over the graph, each layer's measured norm at its nodes."""
    from snaudit import between_cuts, folding, lipschitz, stated, stretches

    ranges = stated.ranges_of(model.graph, meter.settings.input_range)
    started = time.perf_counter()
    operators = {
        output: result.norm if layer.gain == 1.0 and len(set(layer.places)) < 2 else meter.norm_at(layer, index)
        for layer, result in zip(layers, results, strict=True)
        for index, output in enumerate(layer.outputs)
    }
    names = {output: layer.name for layer in layers for output in layer.outputs}
    shortcuts = [
        lipschitz.Shortcut(s.output, s.source, s.enclosed(meter.norm_of(s.map())), s.layer.name)
        for s in stretches.find_stretches(layers)
    ]

    def fold(value: object) -> object:
        return folding.evaluate(value) if folding.is_constant(value) else None

    def compose(more: Sequence[lipschitz.Shortcut]) -> lipschitz.Composition:
        every = (*shortcuts, *more)
        return lipschitz.compose(model.graph, meter.settings.norm, operators, names, every, fold, ranges)

    found = compose(())
    name = "composition over the graph"
    methods = [MethodResult(name, replace(found.bound, method=name), time.perf_counter() - started)]
    if meter.settings.norm == "l2":
        ways = between_cuts.measure(model.graph, meter.norm_of)
        for way in ways:
            started = time.perf_counter()
            bound = replace(way.alone or compose(way.shortcuts).bound, method=way.name)
            if bound.bounded:  # behind a gap no method has anything to say of the whole
                methods.append(MethodResult(way.name, bound, way.seconds + time.perf_counter() - started))
        found = compose([shortcut for way in ways for shortcut in way.shortcuts])
        name = _winner(methods, found.bound)
    bound = replace(found.bound, method=name)
    network = NetworkResult(
        bound,
        tuple(OutputResult(name, bound) for name, bound in found.outputs),
        tuple(methods),
        (*_given(meter.settings), *found.assumptions),
        found.contributions,
        tuple(PartialResult(part.start, part.end, part.bound) for part in found.partials),
    )
    return network, found.gaps


def _winner(methods: list[MethodResult], least: Bound) -> str:
    """The method whose bound is the network's; where sections have different winners, that is said."""
    best = min(methods, key=lambda method: method.bound.size)
    return best.name if best.bound.size <= least.size else "the least bound of each section"
