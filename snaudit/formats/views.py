"""Tensors as views of flat storages: bounds, reading, writing, overlap.

A view is (dtype, offset, shape, strides) over a flat storage, all counted in elements, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from snaudit.formats.storage import dtype_of

_MAX_RANK = 32  # numpy 1's limit
_MAX_INTEGER = 1 << 62
EXPANDED_LIMIT = 1 << 20
"""Elements that a view may have although its storage has fewer (an expanded one)."""


@dataclass(frozen=True, slots=True)
class View:
    """Where a tensor lies: equal views are one tensor. `big` is whether its bytes are big-endian."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    big: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """One past the last element that it reaches, or its offset when it is empty."""
        if not self.size:
            return self.offset
        return self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


def is_index(value: object) -> bool:
    """Whether it is an integer that can count elements; a bool is none."""
    return type(value) is int and 0 <= value < _MAX_INTEGER


def is_layout(shape: object, strides: object) -> bool:
    """Whether they are a tensor's shape and strides: as many integers ≥ 0, not too many."""
    return (type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= _MAX_RANK
            and all(is_index(n) for n in (*shape, *strides)))


def gather(view: View, read: Callable[[int, int], bytes]) -> np.ndarray:
    """The view's values; `read(offset, length)` gives bytes of the storage, and only its span is read."""
    dtype = dtype_of(view.dtype)
    if not view.size:
        return np.zeros(view.shape, dtype)
    raw = read(view.offset * dtype.itemsize, (view.stop - view.offset) * dtype.itemsize)
    flat = np.frombuffer(raw, _unit(dtype))  # as_strided does not know ml_dtypes' types
    values = np.ascontiguousarray(_window(flat, view, view.offset)).reshape(-1).view(dtype)
    if dtype == bool and values.view(np.uint8).max() > 1:
        raise ValueError("a boolean is neither 0 nor 1")
    return (_swapped(values) if view.big else values).reshape(view.shape)


def scatter(view: View, values: np.ndarray, content: bytearray) -> None:
    """Put the values where the view has them in the storage's content; all other bytes stay."""
    dtype = dtype_of(view.dtype)
    if values.shape != view.shape or values.dtype != dtype:
        raise ValueError(f"{values.dtype}{values.shape} for a tensor of {view.dtype}{view.shape}")
    if not view.size:
        return
    flat = np.frombuffer(content, _unit(dtype), len(content) // dtype.itemsize)
    raw = np.ascontiguousarray(values).reshape(-1)
    raw = (_swapped(raw) if view.big else raw).view(_unit(dtype))
    _window(flat, view)[...] = raw.reshape(view.shape)


def clash(views: Iterable[View]) -> tuple[View, View] | None:
    """Two of the (different) views of one storage that share an element, if any.

    A view that reaches one element twice (an expanded one) clashes with itself. Exact, by marking
    each element once; the marks take a byte for each element.
    """
    views = [view for view in views if view.size]
    if len({dtype_of(view.dtype).itemsize for view in views}) > 1:
        return views[0], next(v for v in views if v.dtype != views[0].dtype)
    owner_of: list[View] = []
    marks = np.zeros(max((view.stop for view in views), default=0), bool)
    for view in views:
        region = _window(marks, view)
        if region.any():
            other = next(o for o in owner_of if _meet(o, view, len(marks)))
            return other, view
        before = np.count_nonzero(marks)
        region[...] = True
        if np.count_nonzero(marks) - before != view.size:
            return view, view
        owner_of.append(view)
    return None


def _meet(first: View, second: View, length: int) -> bool:
    marks = np.zeros(length, bool)
    _window(marks, first)[...] = True
    return bool(_window(marks, second).any())


def _window(flat: np.ndarray, view: View, start: int = 0) -> np.ndarray:
    """The view as an array over `flat`, the storage's elements from `start`; its bounds are checked."""
    if view.offset < start or view.stop - start > flat.size:
        raise ValueError("a view reaches past its storage")
    strides = tuple(s * flat.itemsize if n > 1 else 0 for n, s in zip(view.shape, view.strides, strict=True))
    return np.lib.stride_tricks.as_strided(flat[view.offset - start :], view.shape, strides)


def _unit(dtype: np.dtype) -> np.dtype:
    """Bytes of that width and no meaning: what is copied as such stays as it is, NaNs too."""
    return np.dtype(f"V{dtype.itemsize}")


def _swapped(array: np.ndarray) -> np.ndarray:
    """The array with the bytes of each number reversed (for a complex one, of each of its parts)."""
    width = array.itemsize // (2 if array.dtype.kind == "c" else 1)
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, width)[:, ::-1]
    return np.ascontiguousarray(raw).reshape(-1).view(array.dtype).reshape(array.shape)
