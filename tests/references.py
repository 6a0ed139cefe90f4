"""Other libraries' readings of a file's bytes: {tensor: array}, or None where they do not accept it.

For tests only, and only on bytes that snaudit has accepted.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import onnx
import safetensors
import torch
from onnx import numpy_helper


def _safetensors(data: bytes) -> dict[str, np.ndarray] | None:
    try:
        held = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        if "unknown variant" in str(error):  # a dtype it does not know: we list that tensor as left out
            return None
        raise AssertionError(f"safetensors refuses it ({error}), snaudit does not: {data!r}") from error
    kinds = {
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F32": np.float32,
        "F16": np.float16,
        "F64": np.float64,
        "I32": np.int32,
        "I8": np.int8,
        "U8": np.uint8,
        "I64": np.int64,
        "I16": np.int16,
    }
    return {
        name: np.frombuffer(t["data"], kinds[t["dtype"]]).reshape(t["shape"])
        for name, t in held.items()
        if t["dtype"] in kinds
    }


def _numpy(data: bytes) -> dict[str, np.ndarray] | None:
    found = {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            for name in held.files:
                found[name] = held[name]
    except Exception:  # whatever numpy raises, it did not read the file: nothing to compare
        return None
    return found


def _onnx(data: bytes) -> dict[str, np.ndarray] | None:
    def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from graphs(attribute.g)

    try:
        model = onnx.load_model_from_string(data)
        held = [t for graph in graphs(model.graph) for t in graph.initializer]
        return {t.name: numpy_helper.to_array(t) for t in held if [u.name for u in held].count(t.name) == 1}
    except Exception:  # as above
        return None


def _torch(data: bytes) -> dict[str, np.ndarray] | None:
    try:
        held = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception:  # as above
        return None
    held = held.get("state_dict", held) if isinstance(held, dict) else {}
    floats = (torch.float32, torch.float64, torch.float16)
    plain = (
        {
            k: t
            for k, t in held.items()
            if isinstance(t, torch.Tensor) and t.layout == torch.strided and t.dtype in floats
        }
        if isinstance(held, dict)
        else {}
    )
    return {str(name): t.detach().numpy() for name, t in plain.items()}


REFERENCES: dict[str, Callable[[bytes], dict[str, np.ndarray] | None]] = {
    "safetensors": _safetensors,
    "npz": _numpy,
    "onnx": _onnx,
    "torch": _torch,
    "legacy": _torch,
}
