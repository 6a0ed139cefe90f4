"""Limits and verdicts: what a gate lets through, and why it does not let through the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from snaudit.bound import Bound, Grade
from snaudit.errors import UsageError
from snaudit.findings import Finding, LayerResult, NetworkResult, Verdict
from snaudit.layers import matches, select
from snaudit.model import LeftOut
from snaudit.numerals import GRADE_MEANS, apart, at_least, at_most, exact, upper_of
from snaudit.sigma.interface import NOT_FINITE

Measure = Literal["operator", "matrix"]

@dataclass(frozen=True, slots=True)
class Limits:
    """What a model must not exceed.

    max_sigma      for each layer: its operator norm, or σ of its (reshaped) matrix, by `measure`
    max_lipschitz  for the whole network
    required       the least grade of an upper bound that may pass. COMPUTED, the default, asks for
                   a theorem; ESTIMATED lets an estimate pass, ASSUMED (the lowest) also what rests
                   on an unchecked assumption. A violation needs no grade: a lower end was seen.
    layers, skip   patterns that choose the layers under `max_sigma`, as `layers.select` reads them

    Raises UsageError for a limit that is negative or not finite.
    """

    max_sigma: float | None = None
    max_lipschitz: float | None = None
    measure: Measure = "operator"
    required: Grade = Grade.COMPUTED
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.measure not in ("operator", "matrix"):
            raise UsageError(f"measure must be operator or matrix, not {self.measure!r}")
        for option, limit in (("--max-sigma", self.max_sigma), ("--max-lipschitz", self.max_lipschitz)):
            if limit is not None and not 0.0 <= limit < math.inf:
                raise UsageError(f"{option} must be a finite number that is not negative, not {limit}")


def judge(bound: Bound, limit: float, required: Grade = Grade.COMPUTED) -> Verdict:
    """PASS if upper ≤ limit at the required grade, FAIL if lower > limit, else UNDECIDED."""
    if bound.lower > limit:
        return Verdict.FAIL
    if bound.bounded and bound.upper <= limit and bound.grade >= required:
        return Verdict.PASS
    return Verdict.UNDECIDED


def decide(
    layers: Sequence[LayerResult],
    network: NetworkResult,
    limits: Limits | None,
    left_out: Sequence[LeftOut] = (),
) -> tuple[tuple[Finding, ...], Verdict | None]:
    """A finding for each limit that is violated ("error") or undecided ("warning"), and the verdict.

    FAIL if any is violated, else UNDECIDED if any is undecided, else PASS; None without a limit.
    A matrix that could not be measured (`LeftOut.missed`) leaves `max_sigma` undecided, and so does
    a model in which no layer is under it: nothing measured is no pass. Raises UsageError for a
    pattern that matches no layer.
    """
    if limits is None or (limits.max_sigma is None and limits.max_lipschitz is None):
        return (), None
    findings: list[Finding] = []
    if limits.max_sigma is not None:
        findings += _layer_findings(layers, limits, limits.max_sigma, left_out)
    if limits.max_lipschitz is not None:
        what = f"Lipschitz bound ({network.scope})" if network.scope else "Lipschitz bound"
        found = _against("max-lipschitz", "network", what, network.bound,
                         limits.max_lipschitz, limits.required)  # fmt: skip
        findings += [found] if found else []
    if any(finding.severity == "error" for finding in findings):
        return tuple(findings), Verdict.FAIL
    return tuple(findings), Verdict.UNDECIDED if findings else Verdict.PASS


def _layer_findings(
    layers: Sequence[LayerResult], limits: Limits, limit: float, left_out: Sequence[LeftOut]
) -> list[Finding]:
    operator = limits.measure == "operator"
    what = "operator norm" if operator else "sigma of its matrix"
    chosen = select(layers, limits.layers, limits.skip)
    findings: list[Finding] = []
    for layer in chosen:
        bound = layer.norm if operator else layer.sigma
        found = _against("max-sigma", layer.name, what, bound, limit, limits.required)
        findings += [found] if found else []
    for missed in left_out:
        if missed.missed and _under(missed.name, limits):
            message = f"{what} undecided: not measured ({missed.reason}), limit {exact(limit)}"
            findings.append(Finding("max-sigma", "warning", missed.name, message, None, limit))
    if not chosen and not findings:
        findings.append(Finding("max-sigma", "warning", "layers", "no layer is under the limit", None, limit))
    return findings


def _under(name: str, limits: Limits) -> bool:
    wanted = not limits.layers or any(matches(name, pattern) for pattern in limits.layers)
    return wanted and not any(matches(name, pattern) for pattern in limits.skip)


def _against(
    rule: str, where: str, what: str, bound: Bound, limit: float, required: Grade
) -> Finding | None:
    verdict = judge(bound, limit, required)
    if verdict is Verdict.PASS:
        return None
    if bound.method.startswith(NOT_FINITE):
        message = f"{what} does not exist: the weight holds NaN or infinities (limit {exact(limit)})"
        return Finding(rule, "error", where, message, None, limit)
    if verdict is Verdict.FAIL:
        message = f"{what} is at least {apart(bound.lower, limit)}, above the limit {exact(limit)}"
        return Finding(rule, "error", where, message, bound.lower, limit)
    value = bound.upper if bound.bounded else None
    return Finding(rule, "warning", where, f"{what} {_why_undecided(bound, limit)}", value, limit)


def _said(bound: Bound) -> str:
    return "estimated at" if bound.grade is Grade.ESTIMATED else "at most"


def _why_undecided(bound: Bound, limit: float) -> str:
    seen = f", at least {at_least(bound.lower)} was seen" if bound.lower else ""
    if not bound.known:
        return f"undecided: no finite bound is known (limit {exact(limit)}{seen})"
    if bound.upper <= limit:
        grade = bound.grade.name
        return (
            f"undecided: {_said(bound)} {at_most(bound.upper)}, within the limit {exact(limit)}, but only {grade} "
            f"({GRADE_MEANS[bound.grade]}); --accept {grade.lower()} lets it pass"
        )
    return f"undecided: at most {upper_of(bound)}, nothing above the limit {exact(limit)} was seen{seen}"
