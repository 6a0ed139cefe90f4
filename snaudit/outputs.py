"""How far a rewrite moves what a graph computes: both models on the same random input."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_FREE = (8, 32, 64, 224, 576)
"""What a dimension that the graph leaves open is set to, but for the first (the batch): 1. The first
of these with which onnxruntime runs the graph."""


_SECONDS = 60


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
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # below "extended" no weight is rewritten at load time, so that both runs do the same arithmetic
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        sessions = [
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in (before, after)
        ]
    except Exception as error:  # onnxruntime's errors share no base class
        return (), (_why_not(error),)
    error: Exception | None = None
    for free in _FREE:
        feed = {node.name: _sample(node, seed, free) for node in sessions[0].get_inputs()}
        try:
            first, second = (_run(session, feed) for session in sessions)
        except Exception as caught:
            error = error or caught
            if "terminate" in str(caught):
                return (), (f"the outputs were not compared: the graph ran for more than {_SECONDS} seconds",)
            continue
        names = [node.name for node in sessions[0].get_outputs()]
        changes = (_change(n, a, b) for n, a, b in zip(names, first, second, strict=True))
        return tuple(change for change in changes if change is not None), ()
    return (), (_why_not(error),)


def _run(session: Any, feed: dict[str, np.ndarray]) -> list[Any]:
    """The session's outputs; stopped after `_SECONDS`, for a loop in a file may have any length."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = threading.Timer(_SECONDS, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        return session.run(None, feed, options)
    finally:
        timer.cancel()


def _why_not(error: Exception | None) -> str:
    text = " ".join(str(error).split())
    return f"the outputs were not compared: onnxruntime does not run the graph on random input: {text[:160]}"


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


def _sample(node: Any, seed: int, free: int) -> np.ndarray:
    """A seeded input: dimensions that are free get 1 in front (the batch) and `free` elsewhere."""
    dims = [
        d if isinstance(d, int) and d > 0 else (1 if axis == 0 else free) for axis, d in enumerate(node.shape)
    ]
    dtype = _DTYPES.get(node.type, np.float32)
    if np.issubdtype(dtype, np.floating):
        return np.random.default_rng(seed).standard_normal(dims).astype(dtype)
    return np.zeros(dims, dtype)


def _change(name: str, before: Any, after: Any) -> OutputChange | None:
    if not isinstance(before, np.ndarray) or not np.issubdtype(before.dtype, np.floating) or not before.size:
        return None
    a, b = before.astype(np.float64), after.astype(np.float64)
    size = float(np.max(np.abs(a)))
    if not np.isfinite(size) or not np.isfinite(b).all():
        return OutputChange(name, float("nan"), float("nan"))
    difference = np.abs(b - a) / (size or 1.0)
    return OutputChange(name, float(difference.max()), float(difference.mean()))
