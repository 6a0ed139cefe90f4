"""What it takes to fold an op: the values that `folding` and its two tables of ops share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from snaudit.attributes import attribute

Inputs = Sequence[Any]
Compute = Callable[[ir.Node, Inputs, int, Any], Any]


class CannotFold(Exception):
    """The result is not defined, not static, or larger than it may be."""


class Quiet(np.errstate):
    """Floating-point exceptions make inf and NaN, which are the result."""

    def __init__(self) -> None:
        super().__init__(all="ignore")


@dataclass(frozen=True, slots=True)
class Op:
    """How to fold one op.

    needs        inputs whose numbers decide the result's shape, or whether there is one
    elementwise  the result's shape is the inputs' broadcast shape
    shape_only   uses the shape of its input, and nothing else
    may_truncate where it makes integers, whether there is a result depends on every number
    """

    compute: Compute
    needs: tuple[int, ...] = ()
    elementwise: bool = False
    shape_only: bool = False
    may_truncate: bool = False

    def exact(self, node: ir.Node) -> tuple[int, ...]:
        """The inputs that a dry run needs as they are."""
        return tuple(range(len(node.inputs))) if self.needs == (-1,) else self.needs


def bounded(shape: Sequence[int], dtype: np.dtype, limit: int) -> tuple[int, ...]:
    """The shape, if an array of it stays within the limit."""
    if any(size < 0 for size in shape) or len(shape) > 32 or math.prod(shape) * dtype.itemsize > limit:
        raise CannotFold(f"shape {list(shape)[:8]} is over the limit")
    return tuple(int(size) for size in shape)


def integers(array: Any) -> list[int]:
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise CannotFold("sizes or axes that are no integers")
    return [int(v) for v in array.reshape(-1)]


def axes_of(node: ir.Node, inputs: Inputs, index: int, rank: int) -> list[int] | None:
    """Axes as an attribute or an input, counted from the front; None where there are none."""
    axes = attribute(node, "axes")
    if axes is None:
        if len(inputs) <= index or inputs[index] is None:
            return None
        axes = integers(inputs[index])
    return [axis_of(axis, rank) for axis in axes]


def axis_of(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise CannotFold(f"axis {axis} of {rank}")
    return int(axis) % rank
