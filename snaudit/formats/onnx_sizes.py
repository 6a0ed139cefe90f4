"""What `--input-size` gives: sizes, put into the graph's inputs before shapes are inferred from them, and the
numbers of integer scalars, which become constants."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx

from snaudit.errors import UsageError
from snaudit.sizes import sizes_of


_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


def bind_sizes(graph: onnx.GraphProto, texts: Iterable[str]) -> None:
    """Fix the dimensions of the inputs that the texts name (`sizes` says how).

    A symbolic dimension is fixed wherever an input has it; an input that is one integer, at that value (a rate, a
    number of steps, which an If may ask for). Raises UsageError for a name that is none of
    the graph's, and for a size that contradicts it or another one.
    """
    held = {tensor.name for tensor in graph.initializer}
    inputs = {v.name: v for v in graph.input if v.name not in held and v.type.HasField("tensor_type")}
    symbols: dict[str, int] = {}
    for name, sizes in sizes_of(texts):
        known = {d.dim_param for value in inputs.values() for d in _dims(value) if d.dim_param}
        if name is None and len(inputs) != 1:
            raise UsageError(f"--input-size needs a name, since the graph has {len(inputs)} inputs: {_listed(inputs)}")
        target = next(iter(inputs)) if name is None else name
        if target in (known | set(symbols)) - set(inputs) and len(sizes) == 1:
            _bind(symbols, target, sizes[0])
        elif target in inputs and _is_number(inputs[target]):
            _fix(graph, inputs.pop(target), sizes)
        elif target in inputs:
            _shape(inputs[target], sizes, symbols)
        else:
            raise UsageError(_unknown(target, sorted(known), list(inputs)))
        for value in inputs.values():
            for dim in _dims(value):
                if dim.dim_param in symbols:
                    dim.dim_value = symbols[dim.dim_param]


def _is_number(value: onnx.ValueInfoProto) -> bool:
    """Whether an input is one integer."""
    held = value.type.tensor_type
    return held.elem_type in _INTEGERS and held.HasField("shape") and not held.shape.dim


def _fix(graph: onnx.GraphProto, value: onnx.ValueInfoProto, sizes: tuple[int, ...]) -> None:
    """Make an input a constant of the graph."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if len(sizes) != 1 or sizes[0] > np.iinfo(kind).max:
        raise UsageError(f"--input-size: input {value.name} is one number of type {kind}")
    tensor = onnx.numpy_helper.from_array(np.array(sizes[0], kind))
    graph.node.insert(0, onnx.helper.make_node("Constant", [], [value.name], value=tensor))
    graph.input.remove(value)


def _shape(value: onnx.ValueInfoProto, sizes: tuple[int, ...], symbols: dict[str, int]) -> None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        for _ in sizes:
            tensor.shape.dim.add()
    dims = _dims(value)
    if len(dims) != len(sizes):
        raise UsageError(f"--input-size: input {value.name} has {len(dims)} axes, not {len(sizes)}")
    for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            if dim.dim_value != size:
                raise UsageError(f"--input-size: axis {axis} of {value.name} is {dim.dim_value} in the graph, not {size}")
        elif dim.dim_param.replace("_", "").isalnum():
            _bind(symbols, dim.dim_param, size)
        else:  # unnamed, or "?" and the like, which exporters give to unlike dimensions
            dim.dim_value = size


def _bind(symbols: dict[str, int], name: str, size: int) -> None:
    if symbols.setdefault(name, size) != size:
        raise UsageError(f"--input-size: dimension {name} cannot be both {symbols[name]} and {size}")


def _unknown(name: str, symbols: list[str], inputs: list[str]) -> str:
    near = difflib.get_close_matches(name, [*symbols, *inputs], 3, 0.3)
    there = f"the graph has dimensions {_listed(symbols)}, inputs {_listed(inputs)}"
    hint = f"near it: {', '.join(near)}" if near else there
    return f"--input-size: no symbolic dimension and no input is named {name}; {hint}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim
