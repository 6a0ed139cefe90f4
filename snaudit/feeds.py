"""The user's own inputs for a graph: an npz file of arrays by input name, or the one input's .npy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from snaudit import formats
from snaudit.errors import ModelError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

Feed = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Given:
    """What each input of a graph is fed, and the file that it came from."""

    feed: Feed
    file: str


def read_feed(path: Path, graph: ir.Model | None) -> Given:
    """What each input of the graph is given. Raises UsageError, with what the graph takes, for an
    input that is missing or unknown, of another dtype, or of a shape that does not fit.

    Sizes that the graph leaves open may be any. Where it fixes the first one (the batch), the data may
    hold any whole number of batches, of all inputs the same (`batches`).
    """
    if graph is None:
        raise UsageError("--data needs a graph that a runtime runs: an ONNX file")
    inputs = [value for value in graph.graph.inputs if not value.is_initializer()]
    arrays = _arrays(path, inputs)
    unknown = [name for name in arrays if name not in {value.name for value in inputs}]
    missing = [value for value in inputs if value.name not in arrays]
    if unknown or missing:
        what = f"no input {unknown[0]!r}" if unknown else f"nothing for the input {missing[0].name!r}"
        raise UsageError(f"--data {path}: {what}; the graph takes {_wanted(inputs)}")
    for value in inputs:
        array = arrays[value.name]
        if not _fits(value, array):
            raise UsageError(
                f"--data {path}: {value.name} is {array.dtype.name} {array.shape}; the graph takes {_wanted(inputs)}"
            )
    counts = {_count(value, arrays[value.name]) for value in inputs} - {None}
    if len(counts) > 1:
        raise UsageError(f"--data {path}: its inputs hold different numbers of batches: {sorted(counts)}")
    return Given(arrays, str(path))


def batches(feed: Feed, sizes: Mapping[str, object]) -> Iterator[Feed]:
    """The feed in parts of the first size that the graph fixes for each input; whole, where it fixes none."""
    fixed = {name: size for name, size in sizes.items() if isinstance(size, int) and size > 0}
    count = max((len(feed[name]) // size for name, size in fixed.items()), default=1)
    for index in range(count):
        yield {
            name: array[index * fixed[name] : (index + 1) * fixed[name]] if name in fixed else array
            for name, array in feed.items()
        }


def _arrays(path: Path, inputs: list[ir.Value]) -> Feed:
    try:
        with open(path, "rb") as file:
            single = file.read(6) == b"\x93NUMPY"
        if single:
            if len(inputs) != 1:
                raise UsageError(f"--data {path}: one array for {len(inputs)} inputs; save an npz of {_wanted(inputs)}")
            return {str(inputs[0].name): _single(path)}
        model = formats.read(path)
        if model.format != "npz":
            raise UsageError(f"--data {path}: neither npz nor npy")
        return {name: tensor.load() for name, tensor in model.tensors.items()}
    except OSError as error:
        raise UsageError(f"--data {path}: {error.strerror}") from error
    except (ModelError, ValueError, EOFError) as error:
        raise UsageError(f"--data {error}" if isinstance(error, ModelError) else f"--data {path}: {error}") from error


def _single(path: Path) -> np.ndarray:
    """The array of a .npy file. Raises ValueError for one of objects (a pickle), or cut short."""
    form = np.lib.format
    with open(path, "rb") as file:
        read = form.read_array_header_1_0 if form.read_magic(file) == (1, 0) else form.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("an array of objects (a pickle)")
        raw = file.read()
    array = np.frombuffer(raw, dtype)
    return array.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def _count(value: ir.Value, array: np.ndarray) -> int | None:
    """How many batches an input holds; None where the graph leaves its size open."""
    first = value.shape[0] if value.shape else None
    return len(array) // first if isinstance(first, int) and first else None


def _fits(value: ir.Value, array: np.ndarray) -> bool:
    if value.dtype is not None and value.dtype.numpy() != array.dtype:
        return False
    if value.shape is None:
        return True
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    if len(sizes) != array.ndim or not array.size:
        return False
    rest = all(size in (None, length) for size, length in zip(sizes[1:], array.shape[1:], strict=True))
    return rest and (not sizes or not sizes[0] or array.shape[0] % sizes[0] == 0)


def _wanted(inputs: list[ir.Value]) -> str:
    def one(value: ir.Value) -> str:
        dtype = "numbers" if value.dtype is None else str(value.dtype.numpy())
        sizes = "of any shape" if value.shape is None else f"({', '.join(map(_size, value.shape))})"
        return f"{value.name}: {dtype} {sizes}"

    return "; ".join(one(value) for value in inputs)


def _size(size: object) -> str:
    if isinstance(size, int):
        return str(size)
    return str(getattr(size, "value", None) or "any")
