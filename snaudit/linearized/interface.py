"""What an affine op of the graph is given and returns: how a value depends on a section's source.

A `Coefficients` value says how one value of the graph depends on a section's source and on the units
before it. Ops that move entries about are done on an array of entry numbers, so that numpy's own
semantics decide where an entry goes. What is not understood to the last attribute is refused: the
section then ends there. A batch axis of any size counts as one entry, and every op is checked to treat
batch entries alike and apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from snaudit import folding
from snaudit.attributes import attribute
from snaudit.enclosed import Enclosed, product, scaled

LARGEST = 4096
"""Entries of the largest value that is followed."""
MOST = 1 << 23
"""Entries of the largest matrix that is written out."""


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """A value's dependence: `blocks[0]` on the source, `blocks[k]` on unit k, rows in C order of `shape`.

    batched: axis 0 is a batch of any size, `shape` has 1 there. depth: how many maps that are no mere
    scaling led here (a section of one has nothing to gain over its own norm).
    """

    shape: tuple[int, ...]
    batched: bool
    blocks: dict[int, Enclosed]
    depth: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def numbers(self) -> np.ndarray:
        return np.arange(self.size).reshape(self.shape)

    def picked(self, numbers: np.ndarray) -> Coefficients | None:
        """The entries with those numbers, in their order; −1 stands for a constant."""
        if not 0 < numbers.size <= LARGEST or (self.batched and numbers.shape[:1] != (1,)):
            return None
        flat = numbers.ravel()
        if np.array_equal(flat, np.arange(self.size)):
            return Coefficients(numbers.shape, self.batched, self.blocks, self.depth)
        found = {j: matrix[flat] for j, matrix in self.blocks.items()}
        if (flat < 0).any():
            keep = (flat >= 0).astype(float)
            found = {j: scaled(matrix, keep) for j, matrix in found.items()}
        return Coefficients(numbers.shape, self.batched, found, self.depth)

    def mapped(self, matrix: Enclosed, shape: tuple[int, ...]) -> Coefficients | None:
        """A matrix times it."""
        found = {j: product(matrix, part) for j, part in self.blocks.items()}
        return Coefficients(shape, self.batched, found, self.depth + 1)

    def times(self, factors: np.ndarray, relative: float = 0.0) -> Coefficients:
        """Each entry times its factor, the factors being known to a relative error."""
        flat = np.broadcast_to(factors, self.shape).ravel()
        found = {j: scaled(part, flat, relative) for j, part in self.blocks.items()}
        return Coefficients(self.shape, self.batched, found, self.depth)


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the ops here see it: coefficients of its varying inputs, arrays of the constant ones."""

    node: ir.Node
    data: dict[int, Coefficients]
    opset: int

    def attribute(self, name: str, default: Any = None) -> Any:
        return attribute(self.node, name, default)

    def constant(self, index: int) -> np.ndarray | None:
        """The finite array of a constant input; None where it is absent."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            return None
        array = folding.evaluate(value)
        if array.dtype.kind not in "iub" and not np.isfinite(array.astype(np.float64)).all():
            raise Refused
        return array if array.dtype.kind in "iub" else array.astype(np.float64)

    def whole(self, index: int, name: str) -> tuple[int, ...] | None:
        """Integers that are an attribute in older opsets and an input in newer ones."""
        found = self.attribute(name)
        if found is None:
            found = self.constant(index)
        return None if found is None else tuple(int(v) for v in np.asarray(found).ravel())

    def only(self) -> Coefficients:
        """The one varying input, which must be the first."""
        if set(self.data) != {0}:
            raise Refused
        return self.data[0]


class Refused(Exception):
    """The op, as it stands here, is not understood."""


Op = Callable[[Node], Coefficients | Sequence[Coefficients | None] | None]


def aligned(constant: np.ndarray, data: Coefficients) -> np.ndarray:
    """The constant with the data's rank; refused where it would tell batch entries apart."""
    if constant.ndim > len(data.shape):
        raise Refused
    wide = constant.reshape((1,) * (len(data.shape) - constant.ndim) + constant.shape)
    if data.batched and wide.shape[:1] != (1,):
        raise Refused
    return wide


def same_batch(parts: Sequence[Coefficients]) -> None:
    """All of the same rank and batch; refused otherwise (a broadcast batch copies entries)."""
    if len({(len(p.shape), p.batched) for p in parts}) != 1:
        raise Refused
