"""constrain: find the model where none is named, rewrite it, show what changed."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from snaudit import balancing, constraints, formats
from snaudit.commands import outcome as outcomes
from snaudit.commands import sink
from snaudit.errors import UsageError
from snaudit.findings import Settings
from snaudit.report import View


def constrain(
    model: Path | None, target: Path | None, max_sigma: float | None, settings: dict[str, Any],
    options: dict[str, Any], as_json: bool, report: Path | None = None,
) -> int:  # fmt: skip
    """Rewrite under the cap, render the outcome, keep it as a report where one is asked for; 0."""
    path = model if model is not None else find_model(Path())
    _check_report(report, path, target or constraints.default_target(path), options["data"])
    with sink.Meter() as meter:
        outcome = constraints.constrain(
            path, target, max_sigma, settings=Settings(**settings), progress=meter, **options
        )
    if report is not None:
        sink.write_file(report, outcomes.render_json(outcome))
    view = View(**sink.view_facts(to_file=False))
    sink.emit(outcomes.render_json(outcome) if as_json else outcomes.render_table(outcome, view))
    return 0


def _check_report(report: Path | None, model: Path, *others: Path | None) -> None:
    """Refuse, before any work, a report that would replace the model, the copy or the data."""
    sink.check_output(report, model, "--report")
    for other in others:
        if report is not None and other is not None and os.path.realpath(report) == os.path.realpath(other):
            raise UsageError(f"--report {report} is a file that this run reads or writes")


def find_model(folder: Path) -> Path:
    """The model that a command without one means: `model` in [tool.snaudit], else the folder's only one.

    Copies that constrain and balance made of a model beside them do not count. Raises UsageError with the
    candidates where there is not exactly one.
    """
    configured = _configured(folder / "pyproject.toml")
    if configured is not None:
        return folder / configured
    found = formats.candidates(folder)
    made = {name(path) for path in found for name in (constraints.default_target, balancing.default_target)}
    found = [path for path in found if path not in made]
    if len(found) == 1:
        return found[0]
    if not found:
        named = "none named by `model` in [tool.snaudit] of pyproject.toml"
        raise UsageError(f"no model given, {named}, and none in this folder")
    names = ", ".join(path.name for path in found)
    raise UsageError(f"no model given, and this folder holds {len(found)}: {names}")


def _configured(pyproject: Path) -> str | None:
    try:
        tool = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {})
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{pyproject}: {error}") from error
    section = tool.get("snaudit", {}) if isinstance(tool, dict) else {}
    model = section.get("model") if isinstance(section, dict) else None
    if model is not None and not (isinstance(model, str) and model and "\0" not in model):
        raise UsageError(f"{pyproject}: model in [tool.snaudit] must be a path")
    return model
