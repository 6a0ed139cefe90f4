"""inspect and check: one audit, its report where it was asked for, and for check the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snaudit import formats, pipeline, witness
from snaudit.bound import Grade
from snaudit.commands import sink
from snaudit.errors import SoundnessError
from snaudit.formats.pytorch import TORCHSCRIPT
from snaudit.findings import Report, Settings, Verdict
from snaudit.policy import Limits
from snaudit.report import REPORTS, View
from snaudit.report.table import finding_line, verdict_of

_EXIT = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.UNDECIDED: 3}


@dataclass(frozen=True, slots=True)
class Wish:
    """What to render, and where to."""

    model: Path
    format: str
    output: Path | None
    order: str = "sigma"
    rows: str = "folded"
    witness: Path | None = None


def inspect(wish: Wish, settings: dict[str, Any], only: tuple[str, ...]) -> int:
    """Audit and render; 0."""
    _warn(wish, settings)
    with sink.Meter() as meter:
        report = pipeline.audit(wish.model, Settings(**settings), None, meter, only)
    _deliver(wish, report)
    return 0


def check(wish: Wish, settings: dict[str, Any], limits: dict[str, Any], accept: str, warn: bool) -> int:
    """Audit against limits and render; 0 for a pass, 1 for a violation, 3 for undecided."""
    judged = Limits(**limits, required=Grade[accept.upper()])
    _warn(wish, settings)
    with sink.Meter() as meter:
        report = pipeline.audit(wish.model, Settings(**settings), judged, meter)
    if report.verdict is None:
        raise SoundnessError("an audit under limits came back without a verdict")
    _deliver(wish, report)
    if wish.format != "table" or wish.output is not None:
        for finding in report.findings:
            if finding.limit is not None:
                sink.tell(finding_line(finding))
        sink.tell(": ".join(verdict_of(report)))
    if report.verdict is Verdict.UNDECIDED and warn:
        sink.tell("warning: UNDECIDED, let through by --undecided warn")
        return 0
    return _EXIT[report.verdict]


def _warn(wish: Wish, settings: dict[str, Any]) -> None:
    if settings.get("allow_code") and formats.kind_of(wish.model) == TORCHSCRIPT.name:
        sink.tell(
            f"warning: --allow-code: code in {wish.model} may be run; it can do what you can, in a process with limits "
            "but without a sandbox"
        )


def _deliver(wish: Wish, report: Report) -> None:
    if wish.witness is not None:
        _save(wish.witness, report)
    facts = sink.view_facts(to_file=wish.output is not None)
    view = View(**facts, order=wish.order, rows=wish.rows)  # type: ignore[arg-type]
    text = REPORTS[wish.format].render(report, view)
    if wish.output is None:
        sink.emit(text)
    else:
        for file in report.model.files:
            sink.check_output(wish.output, file.path)
        sink.write_file(wish.output, text)
        sink.tell(f"report written to {wish.output}")


def _save(path: Path, report: Report) -> None:
    """Write the pair behind the lower end, or say why there is none."""
    found = report.network.witness
    if found is None or not found.points:
        why = found.note if found is not None else "none was sought (it needs a graph, and its time)"
        sink.tell(f"no pair written to {path}: {why}")
        return
    sink.write_bytes(path, witness.stored(found))
    sink.tell(f"pair written to {path}")
