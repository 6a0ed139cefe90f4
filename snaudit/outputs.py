"""How far a rewrite moves what a graph computes: both models on the same input, random and the user's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snaudit.feeds import Given, batches
from snaudit.running import SECONDS, open_session, run, samples, short

RANDOM = "random input"


@dataclass(frozen=True, slots=True)
class OutputChange:
    """The relative difference of one output over its entries, |b − a|/max|a|: largest and mean.

    on: the file of the input, or "random input"
    top1: the share of rows whose largest entry stayed where it was, for an output that looks like
          logits: real, of two axes, with two columns and two rows at least; else None
    rows: how many rows those are
    """

    name: str
    max_relative: float
    mean_relative: float
    on: str = RANDOM
    top1: float | None = None
    rows: int = 0


def compare_outputs(
    before: Path, after: Path, seed: int, given: Given | None = None
) -> tuple[tuple[OutputChange, ...], tuple[str, ...]]:
    """(the change of each real output, notes): both models run by onnxruntime on seeded input, and on
    the user's.

    Seeded: standard normal numbers for real inputs, zeros for integers. Where onnxruntime cannot run
    the graph on an input there is no number, and a note says why.
    """
    try:
        sessions = tuple(open_session(path) for path in (before, after))
    except Exception as error:  # onnxruntime's errors share no base class
        return (), (_why_not(error, RANDOM),)
    changes, notes = _on_samples(sessions, seed)
    if given is None:
        return changes, notes
    more, why = _on_data(sessions, given)
    return changes + more, notes + why


def _on_samples(sessions: tuple[Any, ...], seed: int) -> tuple[tuple[OutputChange, ...], tuple[str, ...]]:
    error: Exception | None = None
    for feed in samples(sessions[0], seed):
        try:
            first, second = (run(session, feed) for session in sessions)
        except Exception as caught:
            error = error or caught
            if "terminate" in str(caught):
                return (), (f"the outputs were not compared: the graph ran for more than {SECONDS} seconds",)
            continue
        return tuple(_changes(sessions[0], first, second, RANDOM)), ()
    return (), (_why_not(error, RANDOM),)


def _on_data(sessions: tuple[Any, ...], given: Given) -> tuple[tuple[OutputChange, ...], tuple[str, ...]]:
    sizes = {node.name: node.shape[0] if node.shape else None for node in sessions[0].get_inputs()}
    try:
        found = [[run(session, part) for part in batches(given.feed, sizes)] for session in sessions]
        first, second = ([_joined(parts) for parts in zip(*runs, strict=True)] for runs in found)
    except Exception as error:  # onnxruntime's errors share no base class
        return (), (_why_not(error, given.file),)
    return tuple(_changes(sessions[0], first, second, given.file)), ()


def _joined(parts: tuple[Any, ...]) -> Any:
    """One output over all batches; of an output that is no array, or a scalar, the first alone."""
    joins = len(parts) > 1 and all(isinstance(part, np.ndarray) and part.ndim for part in parts)
    return np.concatenate(parts) if joins else parts[0]


def _why_not(error: Exception | None, on: str) -> str:
    return f"the outputs were not compared: onnxruntime does not run the graph on {on}: {short(error)}"


def _changes(session: Any, first: list[Any], second: list[Any], on: str) -> Iterator[OutputChange]:
    for node, before, after in zip(session.get_outputs(), first, second, strict=True):
        real = isinstance(before, np.ndarray) and np.issubdtype(before.dtype, np.floating) and before.size
        if real and before.shape == after.shape:
            yield _change(node.name, before.astype(np.float64), after.astype(np.float64), on)


def _change(name: str, a: np.ndarray, b: np.ndarray, on: str) -> OutputChange:
    size = float(np.max(np.abs(a)))
    if np.array_equal(a, b, equal_nan=True):
        difference = np.zeros(1)
    elif np.isfinite(size) and np.isfinite(b).all():
        difference = np.abs(b - a) / (size or 1.0)
    else:
        return OutputChange(name, float("nan"), float("nan"), on)
    top1, rows = None, 0
    if a.ndim == 2 and min(a.shape) >= 2:
        top1, rows = float(np.mean(a.argmax(axis=1) == b.argmax(axis=1))), len(a)
    return OutputChange(name, float(difference.max()), float(difference.mean()), on, top1, rows)
