"""JSON, schema `snaudit.report/1`: its own structures, all digits, ASCII, never NaN or Infinity.

A number that is not finite is null beside a flag: `bounded` of a bound, a finding, a factor;
`finite` of a layer (its Frobenius norm, stable rank, spectrum or condition).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from snaudit.report.interface import Renderer, View
from snaudit.version import VERSION

if TYPE_CHECKING:
    from snaudit.bound import Bound
    from snaudit.findings import Finding, LayerResult, Lever, ModelCard, NetworkResult, Report, Settings, Witness

SCHEMA = "snaudit.report/1"


def render(report: Report, view: View = View()) -> str:
    """The report as a JSON document; layers stand in the file's order whatever the view."""
    document = envelope(SCHEMA, {
        "model": _model(report.model),
        "settings": _settings(report.settings),
        "layers": [_layer(layer) for layer in report.layers],
        "network": _network(report.network, report.settings.norm),
        "left_out": [
            {"name": item.name, "reason": item.reason, "missed": item.missed, "tensors": item.tensors}
            for item in report.left_out
        ],
        "gaps": [
            {"code": gap.code, "where": gap.where, "op": gap.op, "reason": gap.reason, "remedy": gap.remedy}
            for gap in report.gaps
        ],
        "findings": [_finding(finding) for finding in report.findings],
        "verdict": None if report.verdict is None else report.verdict.value,
    })  # fmt: skip
    return dumps(document)


def failure(path: str | None, kind: str, message: str, code: int) -> str:
    """The document of a run that ended in an error: the standing keys, null or empty, and why."""
    document = envelope(SCHEMA, {
        "model": {"path": path, "format": None, "sha256": None, "parameters": None, "graph": None},
        "settings": None,
        "layers": [],
        "network": None,
        "left_out": [],
        "gaps": [],
        "findings": [],
        "verdict": None,
    })  # fmt: skip
    return dumps({**document, "error": {"kind": kind, "message": message, "exit": code}})


def envelope(schema: str, body: dict[str, Any]) -> dict[str, Any]:
    """A document of a run without error, under the name of its schema."""
    return {"schema": schema, "snaudit": {"version": VERSION}, **body, "error": None}


def dumps(document: dict[str, Any]) -> str:
    """The text of a document, ASCII, a newline at its end."""
    return json.dumps(document, allow_nan=False, ensure_ascii=True, indent=2) + "\n"


def number(value: float | None) -> float | None:
    """The number, or None for what is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def bound(value: Bound) -> dict[str, Any]:
    """A bound's five facts; where its upper end exceeds the largest float, the logarithm of that."""
    facts = {
        "lower": value.lower,
        "upper": number(value.upper),
        "grade": value.grade.name.lower(),
        "method": value.method,
        "bounded": value.bounded,
    }
    beyond = not value.bounded and value.known
    return facts | {"log10_upper": value.huge} if beyond else facts


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "path": card.path,
        "format": card.format,
        "sha256": card.files[0].sha256 if card.files else None,
        "parameters": card.parameters,
        "graph": card.graph,
        "tensors": card.tensors,
        "dtypes": dict(card.dtypes),
        "files": [
            {"path": str(file.path), "size": file.size, "sha256": file.sha256} for file in card.files
        ],
        "notes": list(card.notes),
    }


def _settings(settings: Settings) -> dict[str, Any]:
    return {
        "norm": settings.norm,
        "device": settings.device,
        "dtype": settings.dtype,
        "method": settings.method,
        "iterations": settings.iterations,
        "seed": settings.seed,
        "input_range": None if settings.input_range is None else list(settings.input_range),
        "input_size": None if settings.input_size is None else list(settings.input_size),
        "of_output": settings.of_output,
        "from_input": settings.from_input,
        "key": settings.key,
        "architecture": settings.architecture,
        "architecture_args": settings.architecture_args,
        "allow_code": settings.allow_code,
        "rtol": settings.rtol,
        "spectrum": settings.spectrum,
        "witness_seconds": settings.witness_seconds,
    }


def _layer(layer: LayerResult) -> dict[str, Any]:
    power = layer.power
    spectrum = None if layer.spectrum is None else [number(value) for value in layer.spectrum]
    others = (layer.frobenius, layer.stable_rank, layer.condition, *(layer.spectrum or ()))
    return {
        "name": layer.name,
        "op": layer.op,
        "shape": list(layer.shape),
        "dtype": layer.dtype,
        "matrix": list(layer.matrix),
        "uses": layer.uses,
        "sigma": bound(layer.sigma),
        "power": None if power is None else {
            "estimate": number(power.estimate), "iterations": power.iterations, "converged": power.converged,
            "probability_below_0.9_sigma": number(power.low_by_tenth),
        },
        "norm": bound(layer.norm),
        "frobenius": number(layer.frobenius),
        "stable_rank": number(layer.stable_rank),
        "spectrum": spectrum,
        "condition": number(layer.condition),
        "finite": all(math.isfinite(value) for value in others if value is not None),
        "used_by": list(layer.used_by),
        "notes": list(layer.notes),
        "why": {"sigma": layer.why[0], "norm": layer.why[1]},
    }  # fmt: skip


def _network(network: NetworkResult, norm: str) -> dict[str, Any]:
    return {
        "norm": norm,
        **bound(network.bound),
        "methods": [
            {**bound(method.bound), "name": method.name, "seconds": number(method.seconds)}
            for method in network.methods
        ],
        "assumptions": list(network.assumptions),
        "outputs": [
            {"name": output.name, **bound(output.bound), "assumes": list(output.assumes)} for output in network.outputs
        ],
        "contributions": _factors(network.contributions),
        "composition": _composition(network),
        "sections": [
            {"from": part.start, "to": part.end, "taken": part.taken, **bound(part.bound), "assumes": list(part.assumes)}
            for part in network.sections
        ],
        "levers": [_lever(lever) for lever in network.levers],
        "notes": list(network.notes),
        "partials": [
            {"from": list(part.start), "to": part.end, **bound(part.bound)} for part in network.partials
        ],
        "witness": _witness(network.witness),
    }


def _factors(factors: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"name": name, "factor": number(factor), "bounded": math.isfinite(factor)} for name, factor in factors]


def _composition(network: NetworkResult) -> dict[str, Any] | None:
    """The bound without sections, and its factors: each layer's and each op's."""
    if network.composition is None:
        return None
    besides = {name for name, _ in network.besides}
    factors = [one | {"layer": one["name"] not in besides} for one in _factors(network.factors)]
    return bound(network.composition) | {"factors": factors}


def _lever(lever: Lever) -> dict[str, Any]:
    """What the bound would be with one layer at norm 1, and how many times less (also as a logarithm)."""
    return {
        "name": lever.name,
        "norm": number(lever.norm),
        "elasticity": lever.elasticity,
        "of": "network" if lever.whole else "composition",
        "log10_fall": lever.log10_fall,
        **bound(lever.bound),
    }


def _witness(witness: Witness | None) -> dict[str, Any] | None:
    """The pair behind the lower end; null where none was sought, `found` false where there is none."""
    if witness is None:
        return None
    return {
        "found": witness.lower > 0.0,
        "ratio": witness.lower,
        "evaluations": witness.evaluations,
        "seconds": number(witness.seconds),
        "method": witness.method,
        "inputs": [{"name": point.name, "shape": list(point.shape)} for point in witness.points],
        "note": witness.note,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "where": finding.where,
        "message": finding.message,
        "value": number(finding.value),
        "limit": number(finding.limit),
        "bounded": None if finding.value is None else math.isfinite(finding.value),
        "ignored": finding.ignored,
        "reason": finding.reason,
    }


JSON = Renderer("json", render)
