"""How far a rewrite moves what a graph computes: both models on the same random input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snaudit.running import SECONDS, open_session, run, samples


@dataclass(frozen=True, slots=True)
class OutputChange:
    """The relative difference of one output over its entries, |b − a|/max|a|: largest and mean."""

    name: str
    max_relative: float
    mean_relative: float


def compare_outputs(
    before: Path, after: Path, seed: int
) -> tuple[tuple[OutputChange, ...], tuple[str, ...]]:
    """(the change of each real output, notes): both models run by onnxruntime on seeded input.

    Standard normal numbers for real inputs, zeros for integers. Where onnxruntime cannot run the
    graph on such an input there is no number, and a note says why.
    """
    try:
        sessions = [open_session(path) for path in (before, after)]
    except Exception as error:  # onnxruntime's errors share no base class
        return (), (_why_not(error),)
    error: Exception | None = None
    for feed in samples(sessions[0], seed):
        try:
            first, second = (run(session, feed) for session in sessions)
        except Exception as caught:
            error = error or caught
            if "terminate" in str(caught):
                return (), (f"the outputs were not compared: the graph ran for more than {SECONDS} seconds",)
            continue
        names = [node.name for node in sessions[0].get_outputs()]
        changes = (_change(n, a, b) for n, a, b in zip(names, first, second, strict=True))
        return tuple(change for change in changes if change is not None), ()
    return (), (_why_not(error),)


def _why_not(error: Exception | None) -> str:
    text = " ".join(str(error).split())
    return f"the outputs were not compared: onnxruntime does not run the graph on random input: {text[:160]}"


def _change(name: str, before: Any, after: Any) -> OutputChange | None:
    if not isinstance(before, np.ndarray) or not np.issubdtype(before.dtype, np.floating) or not before.size:
        return None
    a, b = before.astype(np.float64), after.astype(np.float64)
    size = float(np.max(np.abs(a)))
    if not np.isfinite(size) or not np.isfinite(b).all():
        return OutputChange(name, float("nan"), float("nan"))
    difference = np.abs(b - a) / (size or 1.0)
    return OutputChange(name, float(difference.max()), float(difference.mean()))
