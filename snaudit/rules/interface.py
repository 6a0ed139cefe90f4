"""What a rule is given and what it returns.

A rule bounds one op. It sees a `Step` and returns a `Value` for each output of the node; it raises
`Unbounded` where no finite constant exists or is known, with the reason and the remedy, and
`lipschitz.compose` makes that a Gap. Rules never measure a σ: they receive it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from snaudit.bound import Bound, Norm, exactly

if TYPE_CHECKING:
    import onnx_ir


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of one value of the graph, as a function of the network's real inputs jointly.

    lip      its Lipschitz constant in the audit's norm, over the concatenation of all real inputs
    sources  the real inputs it depends on; empty: it is constant (weights, shapes, token ids)
    jumps    not None: piecewise constant in real inputs (an index, a comparison); using it in
             arithmetic or to choose between values has no Lipschitz constant; says which node
    """

    lip: Bound
    sources: frozenset[str] = frozenset()
    jumps: str | None = None

    @property
    def is_constant(self) -> bool:
        return not self.sources and self.jumps is None


CONSTANT = Value(exactly(0.0, "constant"))


class Unbounded(Exception):
    """No finite constant is known here: why, and what the user can do."""

    def __init__(self, reason: str, remedy: str, code: str = "no-constant") -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.code = reason, remedy, code


@dataclass(frozen=True, slots=True)
class Step:
    """One node of the graph as a rule sees it.

    node     the onnx_ir node; use `attribute`, `constant`, `shape` rather than digging in it
    inputs   a Value for each input, None where an optional one is absent
    norm     the audit's norm
    operator the measured norm of the node's own linear map (its layer), or None
    opset    version of the node's domain
    """

    node: onnx_ir.Node
    inputs: tuple[Value | None, ...]
    norm: Norm
    opset: int
    operator: Bound | None = None
    fold: Callable[[Any], np.ndarray | None] = field(default=lambda value: None, repr=False)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value, or `default` where the node does not have it."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def constant(self, index: int) -> np.ndarray | None:
        """The array that input `index` always holds, or None if it is absent or no constant."""
        if index >= len(self.node.inputs) or self.node.inputs[index] is None:
            return None
        return self.fold(self.node.inputs[index])

    def shape(self, index: int) -> tuple[int | None, ...] | None:
        """Input `index`'s shape with None for each unknown dimension; None if its rank is unknown."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return _shape(value)

    def output_shape(self, index: int = 0) -> tuple[int | None, ...] | None:
        """Output `index`'s shape, as `shape`."""
        return _shape(self.node.outputs[index])


def _shape(value: Any) -> tuple[int | None, ...] | None:
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) and d >= 0 else None for d in value.shape)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the op table: which op, since which opset, under which condition, with what constant."""

    op: str
    rule: Callable[[Step], tuple[Value, ...]]
    constant: str
    theorem: str
    condition: str = ""
    domain: str = ""
    norms: tuple[Norm, ...] = ("l2", "linf", "l1")
