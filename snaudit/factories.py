"""What `--architecture` and `--architecture-args` say: PACKAGE.MODULE:NAME, and JSON for its call."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from snaudit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Factory:
    """Code that the user names: `name` in `module`, called with `args` and `kwargs`."""

    module: str
    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def factory_of(text: str, args: str | None) -> Factory:
    """The factory that the options name. Raises UsageError for what is none."""
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise UsageError(f"--architecture {text!r}: write PACKAGE.MODULE:NAME, as in torchvision.models:resnet18")
    try:
        given = json.loads(args) if args is not None else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--architecture-args is not JSON: {error}") from error
    if not isinstance(given, (dict, list)):
        raise UsageError('--architecture-args: write a JSON object, {"num_classes": 10}, or a JSON list')
    keywords = isinstance(given, dict)
    return Factory(module, name, () if keywords else tuple(given), given if keywords else {})
