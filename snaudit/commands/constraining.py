"""constrain: find the model where none is named, rewrite it, show what changed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from snaudit import constraints, formats
from snaudit.commands import outcome as outcomes
from snaudit.commands import sink
from snaudit.errors import UsageError
from snaudit.findings import Settings
from snaudit.report import View


def constrain(
    model: Path | None, target: Path | None, max_sigma: float | None, settings: dict[str, Any],
    options: dict[str, Any], as_json: bool,
) -> int:  # fmt: skip
    """Rewrite under the cap and render the outcome; 0."""
    path = model if model is not None else find_model(Path())
    with sink.Meter() as meter:
        outcome = constraints.constrain(
            path, target, max_sigma, settings=Settings(**settings), progress=meter, **options
        )
    view = View(**sink.view_facts(to_file=False))
    sink.emit(outcomes.render_json(outcome) if as_json else outcomes.render_table(outcome, view))
    return 0


def find_model(folder: Path) -> Path:
    """The model that a command without one means: `model` in [tool.snaudit], else the folder's only one.

    Copies that constrain made of a model beside them do not count. Raises UsageError with the
    candidates where there is not exactly one.
    """
    configured = _configured(folder / "pyproject.toml")
    if configured is not None:
        return folder / configured
    found = formats.candidates(folder)
    made = {constraints.default_target(path) for path in found}
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
