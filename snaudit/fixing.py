"""An ONNX graph with one output, and with all real inputs but one fixed: what a pair's witness is run on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from snaudit.box import Asked
from snaudit.stated import ends_of


class Unfixed(Exception):
    """An input cannot be held; the message says why."""


def keep_output(graph: onnx.GraphProto, name: str) -> None:
    """Take all other outputs away."""
    kept = [value for value in graph.output if value.name == name]
    del graph.output[:]
    graph.output.extend(kept)


def held_at(
    graph: onnx.GraphProto, feed: Mapping[str, np.ndarray], only: str, asked: Asked | None
) -> dict[str, np.ndarray]:
    """A value for each real input of `feed` but `only`: its sample, moved into the box. Raises Unfixed
    where no number of float32 (of float16, where the input is stored so) lies in it."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    names = [name for name, array in feed.items() if array.dtype.kind == "f" and name != only]
    held = {}
    for name in names:
        array = feed[name].astype(np.float64)
        ends = ends_of(asked, [name], [array.shape])
        low, high = (end.reshape(array.shape) for end in ends) if ends is not None else (-np.inf, np.inf)
        kind = np.float16 if kinds[name] == onnx.TensorProto.FLOAT16 else np.float32
        near = np.clip(array, low, high).astype(kind)
        near = np.where(near > high, np.nextafter(near, kind(-np.inf)), near)
        near = np.where(near < low, np.nextafter(near, kind(np.inf)), near)
        if (near > high).any() or (near < low).any():
            raise Unfixed(f"no {kind.__name__} number lies in the box of the input {name}")
        held[name] = near.astype(np.float64)
    return held


def fix(graph: onnx.GraphProto, held: Mapping[str, np.ndarray]) -> None:
    """Make constants of these inputs."""
    left = []
    for value in graph.input:
        if value.name not in held:
            left.append(value)
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        tensor = numpy_helper.from_array(held[value.name].astype(kind), value.name)
        if not np.array_equal(numpy_helper.to_array(tensor).astype(np.float64), held[value.name]):
            raise Unfixed(f"the value of the input {value.name} is not one of its stored type")
        graph.initializer.append(tensor)
    del graph.input[:]
    graph.input.extend(left)
