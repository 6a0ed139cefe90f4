"""The part of the table that is about the network: its bound, its ends, its sections, its levers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from snaudit.bound import Grade
from snaudit.numerals import DIGITS, GRADE_MEANS, at_least, at_most, near, upper_of
from snaudit.report.page import Page

if TYPE_CHECKING:
    from snaudit.findings import NetworkResult, PartialResult, Report

_FEW = 3


def about_network(page: Page, report: Report, every: bool, brief: bool, levers: bool) -> None:
    """The network's bound, what it rests on, and where it comes from; `every` section and factor, or, `brief`, less."""
    network, bound = report.network, report.network.bound
    about = ", ".join(part for part in (report.settings.norm, network.scope) if part)
    page.blank()
    if bound.known:
        grade = f"{bound.grade.name}: {GRADE_MEANS[bound.grade]}"
        said = "estimated at" if bound.grade is Grade.ESTIMATED else "at most"
        text = f"{said} {upper_of(bound)}, {grade} ({bound.method})"
        page.paragraph(f"network bound ({about}): {text}", "bold", 2)
        if bound.upper == 0.0 and bound.grade >= Grade.COMPUTED:
            page.paragraph("  what comes out does not depend on what goes in", "", 4)
        for assumption in network.assumptions:
            page.paragraph(f"  assuming: {assumption}", "", 4)
    else:
        page.paragraph(f"network bound ({about}): no finite bound is known", "bold", 2)
    _lower_end(page, network)
    for method in network.methods if len(network.methods) > 1 else ():
        text = f"{upper_of(method.bound)} ({method.bound.grade.name})"
        page.paragraph(f"  by {method.name}: {text}{f', {method.seconds:.2f} s' if every else ''}", "dim", 4)
    _sections(page, network, every)
    if len(network.outputs) > 1 or (network.outputs and not bound.known):
        for output in network.outputs:
            page.paragraph(f"  output {output.name}: {upper_of(output.bound)}", "", 4)
    if not brief:
        _besides(page, network, every)
    if levers:
        _levers(page, network)
    for note in () if brief else network.notes:
        page.paragraph(f"  note: {note}", "dim", 4)
    _partials(page, network.partials, every)


def _sections(page: Page, network: NetworkResult, every: bool) -> None:
    """The chain of cuts: what was bounded as one, where that is not all of the network."""
    found = [section for section in network.sections if section.taken or every]
    if len(found) == 1 and len(network.sections) == 1 and found[0].bound.upper == network.bound.upper:
        return
    shown = found if every else found[: 2 * _FEW]
    for section in shown:
        rest = "" if section.taken else ", more than its parts"
        text = f"{upper_of(section.bound)} by {section.bound.method}{rest}"
        page.paragraph(f"  as one, from {section.start} to {section.end}: {text}", "dim", 4)
    if len(shown) < len(found):
        page.paragraph(f"  and {len(found) - len(shown)} more bounded as one (--all)", "dim", 4)


def _levers(page: Page, network: NetworkResult) -> None:
    """What would lower the bound most; where sections have a lesser bound than the composition, by how much that falls."""
    for lever in network.levers:
        times = _times(lever.log10_fall)
        text = f"about {upper_of(lever.bound)}, {times} times less" if lever.whole else f"the composition falls {times} times"
        page.paragraph(f"  with {lever.name} at norm 1, not {near(lever.norm, DIGITS)}: {text}", "dim", 4)


def _besides(page: Page, network: NetworkResult, every: bool) -> None:
    """The factors above 1 that are no layer's, with their share."""
    shares = shares_of(network)
    found = [(name, factor) for name, factor in network.besides if factor > 1.0]
    part = math.fsum({name: shares.get(name, 0.0) for name, _ in found}.values())
    if part < 0.05 or not network.bound.known:
        return
    found.sort(key=lambda pair: -pair[1])
    names = ", ".join(f"{name} {at_most(factor)}" for name, factor in (found if every else found[:_FEW]))
    more = ", …" if not every and len(found) > _FEW else ""
    page.paragraph(f"  besides the layers: {part:.0%} of the factors above 1, {names}{more}", "dim", 4)


def _times(log10: float) -> str:
    return f"{10.0**log10:.3g}" if log10 < 300.0 else f"10^{log10:.1f}"


def _partials(page: Page, partials: Sequence[PartialResult], every: bool) -> None:
    """The bounds between gaps, so that a gap does not hide what is known before and behind it."""
    shown = partials if every else partials[: 2 * _FEW]
    for part in shown:
        start = ", ".join(part.start[:_FEW]) + (", …" if len(part.start) > _FEW else "")
        text = f"at most {upper_of(part.bound)}, {part.bound.grade.name}"
        page.paragraph(f"  between gaps, from {start} to {part.end}: {text}", "", 4)
    if len(shown) < len(partials):
        page.paragraph(f"  and {len(partials) - len(shown)} more between gaps (--all)", "dim", 4)


def _lower_end(page: Page, network: NetworkResult) -> None:
    bound, witness = network.bound, network.witness
    if bound.lower:
        ends = f"between {at_least(bound.lower)} and {upper_of(bound)}"
        if not bound.known:
            ends = f"above {at_least(bound.lower)}"
        page.paragraph(f"  the constant lies {ends}: a pair of inputs was run", "", 4)
    elif witness is not None:
        page.paragraph(f"  no lower end: {witness.note}", "dim", 4)


def shares_of(network: NetworkResult) -> dict[str, float]:
    """Each layer's part of the log of the bound; layers that shrink, and those of no factor, have none."""
    logs: dict[str, float] = defaultdict(float)
    for name, factor in network.factors or network.contributions:
        if factor > 1.0 and math.isfinite(factor):
            logs[name] += math.log(factor)
    whole = math.fsum(logs.values())
    return {name: part / whole for name, part in logs.items()} if whole > 0.0 else {}
