"""What a row of the table of differentiable ops is given and may raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Tensor = Any
"""A torch.Tensor: torch is optional, and the witness's child alone imports it."""


class NoGradient(Exception):
    """The graph, or a node of it, is not differentiated here; the message says why."""


@dataclass(frozen=True, slots=True)
class Call:
    """A node as its row sees it: its op, the opset, its attributes (bytes as text), how many outputs it has,
    and the torch dtype of real numbers in this run."""

    op: str
    opset: int
    attributes: dict[str, Any]
    outputs: int
    real: Any

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute; `default` where the node does not have it."""
        return self.attributes.get(name, default)

    def refuse(self, what: str) -> NoGradient:
        """The error for a setting that the row does not know."""
        return NoGradient(f"{self.op} with {what} is not differentiated")


Given = Any
"""An input: a Tensor, None where the node leaves it out."""
Row = Callable[..., Any]
"""row(call, *inputs) → the output, or a tuple of them."""


def integers(given: Given) -> list[int]:
    """An input that holds sizes or axes."""
    return [int(v) for v in given.reshape(-1).tolist()]


def axes_of(call: Call, inputs: tuple[Given, ...], rank: int, index: int = 1) -> list[int] | None:
    """Axes as an attribute or an input, counted from the front; None where there are none."""
    axes = call.get("axes")
    if axes is None and len(inputs) > index and inputs[index] is not None:
        axes = integers(inputs[index])
    return None if axes is None else [int(axis) % rank for axis in axes]
