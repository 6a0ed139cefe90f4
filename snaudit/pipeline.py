"""audit(path, settings, limits) → Report: the straight line through the house."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from snaudit import pairs, policy
from snaudit.architecture import opened
from snaudit.errors import EmptyModel, UsageError
from snaudit.extraction import extract
from snaudit.findings import (
    Finding,
    LayerResult,
    ModelCard,
    Report,
    Settings,
    Verdict,
)
from snaudit.layers import Extraction, Layer, select
from snaudit.measuring import Meter, not_finite, result_of
from snaudit.model import FileRead, LeftOut, Model
from snaudit.network import network_of
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
        _check(model, settings)
        extraction = extract(model)
        if not extraction.layers:
            raise EmptyModel(path, "no weight matrix to audit in it" + _what_there_is(extraction.left_out))
        with Seeker(model, settings) as seeker:  # runs while the layers are measured
            return _audited(path, model, extraction, settings, limits, progress, only, seeker)


def _check(model: Model, settings: Settings) -> None:
    """Refuse what asks for a graph that is not there, and an output or input that the graph does not have."""
    given = {"--input-range": settings.input_range, "--of-output": settings.of_output, "--from-input": settings.from_input}
    asked = [option for option, value in given.items() if value is not None]
    if model.graph is not None:
        pairs.pair_of(model.graph.graph, settings)
    elif asked:
        remedy = "name its code with --architecture, or export it to ONNX"
        raise UsageError(f"{asked[0]} needs a model with a graph: {remedy}")


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
    network, gaps = network_of(model, extraction, tuple(results), meter, explain=True)
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
