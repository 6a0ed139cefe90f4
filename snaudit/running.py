"""Running an ONNX graph in onnxruntime: one thread, sample inputs, an end to what does not end."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FREE = (8, 32, 64, 224, 576)
"""What a dimension that the graph leaves open is set to, but for the first (the batch): 1. The first
of these with which onnxruntime runs the graph."""
SECONDS = 60


def open_session(model: Path | bytes) -> Any:
    """A session of the graph on one thread. Raises onnxruntime's errors, which share no base class."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # below "extended" no weight is rewritten at load time, so that two runs do the same arithmetic
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(session: Any, feed: dict[str, np.ndarray]) -> list[Any]:
    """The session's outputs; stopped after `SECONDS`, for a loop in a file may have any length."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = threading.Timer(SECONDS, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        return session.run(None, feed, options)
    finally:
        timer.cancel()


_BOILERPLATE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |Non-zero status code returned while running |Status Message: |"
    r"(?:/[\w.+-]+)*/?[\w.-]+\.(?:h|cc|cpp):\d+ (?:(?:[\w:<>&*]+ )?[\w:]+::[\w~]+\([^()]*\)(?: const)? )?"
)
_LINE = 200


def short(error: Exception | None) -> str:
    """The error in one line, without what onnxruntime puts before it; of a long one the end, which says what is wrong."""
    text = " ".join(_BOILERPLATE.sub("", " ".join(str(error).split())).split())
    return text if len(text) <= _LINE else "… " + text[-_LINE:].partition(" ")[2]


def samples(session: Any, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Inputs to try, one for each size in `FREE`: standard normal numbers for real inputs, zeros for
    integers."""
    for free in FREE:
        yield {node.name: _sample(node, seed, free) for node in session.get_inputs()}


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
