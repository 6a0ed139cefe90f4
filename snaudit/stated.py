"""The Range of each graph input that the user states, from a box as `box` reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from snaudit import box, formats
from snaudit.errors import UsageError
from snaudit.numerals import exact
from snaudit.ranges import Range, enclosing


def ranges_of(graph: ir.Model, asked: box.Asked | None) -> dict[str, Range]:
    """For each real input that the box covers, its range. Raises UsageError for an input that is not
    there, a box that does not fit its shape, and a model whose inputs are all integers."""
    if asked is None:
        return {}
    real = {v.name: v for v in graph.graph.inputs if v.name and _is_real(v)}
    if not real:
        raise UsageError("--input-range: the model has no real-valued input")
    found: dict[str, Range] = {}
    for name, ends in box.parsed(asked):
        if isinstance(ends, str):
            found |= _from_file(Path(ends), real)
            continue
        if name is not None and name not in real:
            raise UsageError(f"--input-range: no real input {name!r}; there are {', '.join(real)}")
        for each in real if name is None else (name,):
            text = f"the input {each} lies in [{exact(ends[0])}, {exact(ends[1])}]: the bound holds on that box only"
            found[each] = enclosing(ends[0], ends[1], frozenset({text}))
    return found


def ends_of(
    asked: box.Asked | None, names: list[str], shapes: list[tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The box's ends for the named inputs' entries, one vector for all; infinite where none is stated."""
    if asked is None:
        return None
    ends = {name: (np.full(shape, -np.inf), np.full(shape, np.inf)) for name, shape in zip(names, shapes, strict=True)}
    for name, given in box.parsed(asked):
        tensors = formats.read(Path(given), None).tensors if isinstance(given, str) else {}
        for each in names if name is None else (name,):
            if each not in ends:
                continue
            pair = given
            if isinstance(given, str):
                if f"{each}.lo" not in tensors:
                    continue
                pair = tensors[f"{each}.lo"].float64(), tensors[f"{each}.hi"].float64()
            for end, values in zip(ends[each], pair, strict=True):
                end[...] = values
    low, high = (np.concatenate([ends[name][i].ravel() for name in names]) for i in (0, 1))
    return low, high


def _is_real(value: ir.Value) -> bool:
    held = value.is_initializer() or value.const_value is not None
    return not held and (value.dtype is None or value.dtype.is_floating_point())


def _from_file(path: Path, real: dict[str, ir.Value]) -> dict[str, Range]:
    """The boxes in an npz file: NAME.lo and NAME.hi for each input NAME, of shapes that fit the input's."""
    tensors = formats.read(path, None).tensors
    found: dict[str, Range] = {}
    for name in dict.fromkeys(key.rpartition(".")[0] for key in tensors):
        if name not in real or not {f"{name}.lo", f"{name}.hi"} <= tensors.keys():
            raise UsageError(f"{path}: NAME.lo and NAME.hi for real inputs ({', '.join(real)}), not {name!r}")
        low, high = (tensors[f"{name}.{end}"].float64() for end in ("lo", "hi"))
        if not (np.isfinite(low).all() and np.isfinite(high).all() and low.shape == high.shape):
            raise UsageError(f"{path}: the ends of {name} must be finite, and of one shape")
        if low.size == 0 or not (low <= high).all():
            raise UsageError(f"{path}: the lower end of {name} exceeds the upper one, or there is none")
        shape = real[name].shape
        fits = shape is None or len(low.shape) <= len(shape)
        for size, wanted in zip(low.shape[::-1], () if shape is None else tuple(shape)[::-1], strict=False):
            fits = fits and (size == 1 or not isinstance(wanted, int) or size == wanted)
        if not fits or (shape is None and low.ndim):
            raise UsageError(f"{path}: the box of {name} does not fit its shape")
        text = f"the input {name} lies in the box of {path.name}: the bound holds on that box only"
        found[name] = enclosing(low, high, frozenset({text}))
    return found
