"""What the matchers of forms that exporters write out ask of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import onnx_ir as ir

from snaudit.bound import Bound, Norm
from snaudit.domains import is_default
from snaudit.local_slopes import Gated
from snaudit.slopes import Interval

Fold = Callable[[ir.Value], np.ndarray | None]

LEAST = 1e-140
"""No scale of a chain lies further from one than that, so that the product of two is a normal number."""


@dataclass(frozen=True, slots=True)
class Shortcut:
    """`output` is a function of `source` alone, with this Lipschitz bound; `name` is for display;
    `assumes` as a Value's.

    slopes: where it is one function of each entry by itself, between which slopes its own lie
    gated:  that function, where its slopes are known place by place
    also:   further values that it is a function of; the bound is then with respect to all of them, side by side
    more:   other values that it depends on besides, with the constants with respect to those alone
    """

    output: ir.Value
    source: ir.Value
    bound: Bound
    name: str
    assumes: tuple[str, ...] = ()
    _: KW_ONLY
    slopes: Interval | None = None
    gated: Gated | None = None
    also: tuple[ir.Value, ...] = ()
    more: tuple[tuple[ir.Value, Bound], ...] = ()

    @property
    def parts(self) -> tuple[tuple[tuple[ir.Value, ...], Bound], ...]:
        """All values that it depends on, each or several side by side with a constant; these add."""
        return ((self.source, *self.also), self.bound), *(((value,), bound) for value, bound in self.more)


@dataclass(frozen=True, slots=True)
class Graph:
    """What the matchers ask of a graph: producers, scalars, linear chains."""

    fold: Fold
    norm: Norm
    opset: int

    def made(self, value: ir.Value | None, *ops: str) -> ir.Node | None:
        """The node that makes a value, if it is one of the default domain's `ops`."""
        node = None if value is None else value.producer()
        if node is None or not is_default(node) or node.op_type not in ops:
            return None
        return node if all(v is not None for v in node.inputs[:1]) else None

    def scalar(self, value: ir.Value | None) -> float | None:
        """The number that a constant of one finite entry holds."""
        shape = None if value is None else value.shape
        if value is None or (shape is not None and any(d != 1 for d in shape)):
            return None  # its bytes need not be read
        array = self.fold(value)
        if array is None or array.size != 1 or array.dtype.kind not in "fiu":
            return None
        number = float(array.ravel()[0])
        return number if math.isfinite(number) else None

    def split(self, node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Both orders of a node's two inputs."""
        if len(node.inputs) == 2 and None not in node.inputs:
            yield node.inputs[0], node.inputs[1]
            yield node.inputs[1], node.inputs[0]

    def scales(self, value: ir.Value) -> list[tuple[ir.Value, float]]:
        """All (r, a) with value = a·r by a chain of multiplications with scalars, nearest first."""
        found, scale = [(value, 1.0)], 1.0
        for _ in range(8):
            node = self.made(value, "Mul", "Div")
            step = None
            if node is not None:
                for data, other in self.split(node):
                    number = self.scalar(other)
                    if number is not None and (
                        node.op_type == "Mul" or (data is node.inputs[0] and number != 0)
                    ):
                        step = data, number if node.op_type == "Mul" else 1.0 / number
                        break
            if step is None or (step[1] and not LEAST < abs(scale * step[1]) < 1.0 / LEAST):
                break  # a product of scales must not underflow
            value, scale = step[0], scale * step[1]
            found.append((value, scale))
        return found

    def plus(self, value: ir.Value | None) -> tuple[ir.Value, float] | None:
        """(r, c) where value = r + c with a scalar c."""
        node = self.made(value, "Add")
        for data, other in self.split(node) if node is not None else ():
            number = self.scalar(other)
            if number is not None:
                return data, number
        return None

    def clip(self, value: ir.Value) -> tuple[ir.Value, float, float] | None:
        """(r, low, high) where value = Clip(r, low, high), both finite numbers."""
        node = self.made(value, "Clip")
        if node is None:
            return None
        if self.opset < 11:
            limits = [
                node.attributes[name].value if name in node.attributes else None for name in ("min", "max")
            ]
        else:
            limits = [self.scalar(v) for v in (*node.inputs[1:3], None, None)[:2]]
        if None in limits or not (math.isfinite(limits[0]) and limits[0] <= limits[1] < math.inf):
            return None
        return node.inputs[0], float(limits[0]), float(limits[1])

    def squared(self, value: ir.Value | None) -> ir.Value | None:
        """r where value = r², as Pow or as Mul."""
        node = self.made(value, "Pow", "Mul")
        if node is None or len(node.inputs) != 2:
            return None
        if node.op_type == "Mul":
            return node.inputs[0] if node.inputs[0] is node.inputs[1] else None
        return node.inputs[0] if self.scalar(node.inputs[1]) == 2.0 else None

    def axes(self, node: ir.Node) -> tuple[int, ...] | None:
        """The axes of a reduction; None if they are not known."""
        if "axes" in node.attributes:
            axes = node.attributes["axes"].value
        elif len(node.inputs) > 1 and node.inputs[1] is not None:
            array = self.fold(node.inputs[1])
            axes = None if array is None else array.ravel()
        else:
            axes = None
        shape = node.inputs[0].shape
        if axes is None or len(axes) == 0:
            return None
        if shape is not None:
            axes = [int(axis) % len(shape) for axis in axes]
        return tuple(sorted({int(axis) for axis in axes}))


def size_along(value: ir.Value, axes: tuple[int, ...]) -> int | None:
    """How many entries a value has along some of its axes; None if that is not known."""
    if value.shape is None:
        return None
    sizes = [value.shape[axis] for axis in axes]
    return math.prod(sizes) if all(isinstance(d, int) for d in sizes) else None
