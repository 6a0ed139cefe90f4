"""The library's five verbs: load, audit, constrain, balance, check. Paths in, plain values out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from snaudit import balancing, constraints, formats, pipeline, policy
from snaudit.errors import UsageError
from snaudit.findings import Report, Settings
from snaudit.model import Model

StrPath = str | os.PathLike[str]


def load(path: StrPath, key: str | None = None) -> Model:
    """The model in a file or folder: its tensors, lazily, and its graph where it has one.

    Raises a ModelError for what cannot be read, UsageError for a `key` that is not there.
    """
    return formats.read(Path(path), key)


def audit(path: StrPath, **settings: Any) -> Report:
    """The report on a model file: an interval [lower, upper] for the σ of each weight matrix, for
    the norm of each layer as an operator, and for the network's Lipschitz constant (all
    dimensionless: output norm over input norm).

    settings: fields of `Settings` (norm="l2" | "linf" | "l1", method, iterations, seed, …).
    witness_seconds=2 also runs an ONNX graph, in a process of its own, for the network's lower end.
    Raises a ModelError when the file cannot be read or holds nothing to audit.
    """
    return pipeline.audit(Path(path), Settings(**settings))


def check(
    path: StrPath,
    *,
    max_sigma: float | None = None,
    max_lipschitz: float | None = None,
    limits: policy.Limits | None = None,
    **settings: Any,
) -> Report:
    """The report with a verdict: PASS, FAIL or UNDECIDED against the limits.

    Raises UsageError without any limit, and where both ways of giving one are used. It never passes on
    an estimate from below nor on an assumption, unless `limits` accepts it.
    """
    if (limits is None) == (max_sigma is None and max_lipschitz is None):
        raise UsageError("check needs max_sigma or max_lipschitz, or else limits")
    limits = limits or policy.Limits(max_sigma=max_sigma, max_lipschitz=max_lipschitz)
    return pipeline.audit(Path(path), Settings(**settings), limits)


def constrain(
    path: StrPath, target: StrPath | None = None, max_sigma: float | None = None, **options: Any
) -> constraints.Outcome:
    """Write a copy of the model in which every layer's σ is at most `max_sigma` (default 1), or the
    network's bound at most `max_lipschitz`, on disk, proved.

    options: those of `constraints.constrain`. Default target: MODEL.constrained.EXT.
    """
    place = None if target is None else Path(target)
    return constraints.constrain(Path(path), place, max_sigma, **options)


def balance(path: StrPath, target: StrPath | None = None, **options: Any) -> balancing.Balance:
    """Write a copy of an ONNX model that computes the same, its layers' norms evened out along each chain.

    options: those of `balancing.balance`. Default target: MODEL.balanced.EXT.
    """
    return balancing.balance(Path(path), None if target is None else Path(target), **options)
